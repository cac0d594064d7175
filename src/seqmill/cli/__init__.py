"""The `seqmill` command. Verbs import what they need when they run, so that `--help` is instant."""

import logging
import sys

import typer

from seqmill.cli import (
    filters,
    look,
    mixing,
    models,
    planning,
    repeats,
    sets,
    stages,
    substrings,
    tokenizer,
    tokenizer_report,
    traps,
)
from seqmill.errors import UserError, as_user_error

app = typer.Typer(
    name="seqmill",
    help="From raw text to gradients, in Arrow: ingest, deduplicate, tokenize, pack, train, generate.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verbs in (stages, sets, planning, filters, substrings, mixing, models, look):
    app.add_typer(verbs.app)
tokenizer.app.add_typer(tokenizer_report.app)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(repeats.app, name="repeats")
app.add_typer(traps.app, name="traps")


def main() -> None:
    """Run the command line: user errors are one line on stderr and exit code 2; our own errors keep their traceback."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        app()
    except UserError as error:
        print(f"seqmill: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        friendly = as_user_error(error, "writing")
        if not isinstance(friendly, UserError):
            raise
        print(f"seqmill: {_one_line(friendly)}", file=sys.stderr)
        sys.exit(2)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
