"""Verbs that drop or change documents for what they say."""

import typer

app = typer.Typer()
