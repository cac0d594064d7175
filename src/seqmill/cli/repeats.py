"""Verbs of repeated data: how much a corpus repeats, and corpora that repeat on purpose."""

import typer

app = typer.Typer(help="Measure and make repeated data.", no_args_is_help=True, rich_markup_mode=None)
