"""Verbs of repeated data: how much a corpus repeats, and corpora that repeat on purpose."""

from pathlib import Path
from typing import Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Out, Quiet, Workers, stage_of
from seqmill.errors import UserError

app = typer.Typer(help="Measure and make repeated data.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def histogram(
    dedup: Annotated[Path, typer.Argument(metavar="DEDUP_OUT", help="A finished dedup folder.")],
    tokens: Annotated[
        Path | None, typer.Option(help="Tokens of the same documents before dedup: adds bytes, tokens and sources.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(help="The documents before dedup: adds bytes and sources, where there are no tokens.")
    ] = None,
    spans: Annotated[Path | None, typer.Option(help="What `seqmill substrings` wrote over them.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: DEDUP_OUT/histogram.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count documents, bytes and tokens by exact copies, near-cluster size and copies of spans."""
    import json

    from seqmill.pipeline.repeats import histogram as count_repeats
    from seqmill.pipeline.repeats.histogram import table_lines
    from seqmill.storage import write_json

    if tokens and documents:
        raise UserError("--tokens and --documents exclude each other: tokens tell bytes too")
    result = count_repeats(dedup, tokens or documents, spans)
    file = out or dedup / "histogram.json"
    write_json(file, result)
    print(json.dumps(result) if as_json else "\n".join([*table_lines(result), f"written to {file}"]))


@app.command()
def sample(
    tokens: Annotated[Path, typer.Argument(metavar="IN", help="Tokens folder without repeats.")],
    out: Out,
    size: Annotated[int, typer.Option("--tokens", help="Tokens of the output.")],
    repeat_fraction: Annotated[float, typer.Option(help="Part of them that is repeats, 0 to 1.")],
    repeats: Annotated[int, typer.Option(help="Copies of the repeated subset.")],
    seed: Annotated[int, typer.Option(help="Of the choice and the order.")] = 0,
    mode: Annotated[str, typer.Option(help="document, or sequence: windows of --seq-len tokens.")] = "document",
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a window.")] = None,
    memory: Annotated[int, typer.Option("--memory", metavar="MB", help="MiB that one worker may take.")] = 1024,
    parameters: Annotated[
        int | None, typer.Option(help="Size of the model to train: tells where repetition harms it most.")
    ] = None,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a tokens folder of which a known part is copies of a small random subset."""
    from seqmill.pipeline.repeats import SampleConfig
    from seqmill.pipeline.repeats import sample as sample_stage

    config = SampleConfig(
        tokens=size,
        repeat_fraction=repeat_fraction,
        repeats=repeats,
        seed=seed,
        mode=mode,
        seq_len=seq_len,
        memory_mb=memory,
        parameters=parameters,
    )
    with stage_of("repeats sample", out, executor, workers, address, quiet, as_json) as stage:
        stage.manifest = sample_stage(tokens.absolute(), config, stage.out, stage.executor, stage.progress)
        realised = stage.manifest["repeats"]
        stage.figures = {
            "subset_documents": realised["realised"]["subset"]["documents"],
            "subset_tokens": realised["realised"]["subset"]["tokens"],
            "repeated_tokens": realised["realised"]["repeated"]["tokens"],
            "unique_tokens": realised["realised"]["unique"]["tokens"],
            "fraction": realised["realised"]["fraction"],
            "repeats": realised,
        }
    if "damage_band" in realised and not as_json:
        band = realised["damage_band"]
        print(
            f"{repeats:,} repeats lie {'inside' if band['inside'] else 'outside'} the damage band of "
            f"{parameters:,} parameters: {band['from_repeats']:,} to {band['to_repeats']:,}"
        )
