"""Verbs that choose and order documents: mixtures, shuffles, holdout splits."""

import typer

app = typer.Typer()
