"""Verbs for spans that several documents share."""

import typer

app = typer.Typer()
