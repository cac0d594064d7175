"""The verb that compares tokenizers: `seqmill tokenizer report`."""

import json
from typing import Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Inputs, Out, Quiet, Stage, Workers

app = typer.Typer()

COLUMNS = ("doc_id", "id", "text", "source")  # of all documents


@app.command()
def report(
    inputs: Inputs,
    tokenizer: Annotated[list[str], typer.Option(help="Tokenizer to report on; repeat for more.")],
    out: Out,
    group_by: Annotated[str, typer.Option(help="Column whose values get figures of their own.")] = "source",
    sample_bytes: Annotated[int, typer.Option(help="Text to read at most, about.")] = 100_000_000,
    parallel: Annotated[bool, typer.Option("--parallel", help="Every group is the same content: tell parity.")] = False,
    parallel_field: Annotated[
        str | None, typer.Option(help="Documents that are equal in this column are the same content: tell parity.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The group that parity is told against.")] = None,
    timings: Annotated[bool, typer.Option(help="Measure speed as well.")] = True,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare tokenizers on documents, by source or language: OUT/report.json, and OUT/report.html with plots."""
    import time

    from seqmill.pipeline.executors import make_executor
    from seqmill.pipeline.progress import make_progress
    from seqmill.pipeline.tokenizer_page import PAGE, print_report, write_page
    from seqmill.pipeline.tokenizer_report import ReportConfig, tokenizer_report
    from seqmill.storage import local_folder, only_writer

    began = time.monotonic()
    config = ReportConfig(group_by, sample_bytes, parallel, parallel_field, reference, timings)
    folder = local_folder(out)
    with only_writer(folder):
        stage = Stage(folder, make_executor(executor, workers, address), make_progress(quiet))
        kept = dict.fromkeys(name for name in (group_by, parallel_field) if name and name not in COLUMNS)
        documents = stage.documents(inputs, keep_fields=tuple(kept))
        found = tokenizer_report(documents, tokenizer, config, folder, stage.executor, stage.progress)
        write_page(found, folder / PAGE)
    if not as_json:
        print_report(found)
        print(f"written to {out}: report.json, {PAGE}")
        return
    corpus = found["corpus"]
    totals = {"documents": corpus["documents"], "bytes": corpus["bytes"], "quarantined": stage.quarantined}
    print(json.dumps({**totals, "seconds": round(time.monotonic() - began, 3), "out": str(out), **found}))
