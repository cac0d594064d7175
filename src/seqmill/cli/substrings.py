"""Verbs for spans that several documents share."""

from typing import Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Inputs, Out, Quiet, Workers, stage_of

app = typer.Typer()


@app.command()
def substrings(
    inputs: Inputs,
    out: Out,
    min_bytes: Annotated[int, typer.Option(help="Shortest repeated span, in bytes.")] = 200,
    action: Annotated[str, typer.Option(help="cut, or annotate: count marked bytes in a column.")] = "cut",
    min_kept_bytes: Annotated[int, typer.Option(help="A document cut to fewer bytes is removed.")] = 1,
    memory: Annotated[int, typer.Option(help="MB for one unit of work.")] = 1024,
    id_field: Annotated[str, typer.Option(help="Field with the user's id, for raw inputs.")] = "id",
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find spans that occur before, in the same or an earlier document, and cut them out."""
    from seqmill.pipeline.substrings import SubstringConfig, cut_substrings

    config = SubstringConfig(min_bytes=min_bytes, action=action, min_kept_bytes=min_kept_bytes, memory_mb=memory)
    with stage_of("substrings", out, executor, workers, address, quiet, as_json) as stage:
        documents = stage.documents(inputs, id_field=id_field)
        stage.manifest = cut_substrings(documents, config, stage.out, stage.executor, stage.progress)
        duplicates = stage.manifest["duplicates"]
        stage.figures = {
            "spans": duplicates["spans"],
            "duplicate_bytes": duplicates["bytes"],
            "duplicate_documents": duplicates["documents"],
        }
