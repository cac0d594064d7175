"""Verbs of copyright traps."""

import typer

app = typer.Typer(help="Make, inject, verify and score copyright traps.", no_args_is_help=True, rich_markup_mode=None)
