"""Verbs that look at what is there: folders and speed."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from seqmill.cli.common import AsJson, print_figures

app = typer.Typer()


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Documents, tokens, packed rows or packed sets.")],
    validate: Annotated[
        bool, typer.Option("--validate", help="Read everything and check hashes and invariants.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a folder holds; with --validate, exit 1 when anything is wrong with it."""
    from seqmill.pipeline.inspection import inspect_folder

    figures, faults = inspect_folder(folder, validate)
    print_figures(figures["kind"], {**figures, **({"faults": faults} if validate else {})}, as_json)
    if faults:
        sys.exit(1)


@app.command()
def trace(
    packed: Annotated[Path, typer.Argument(help="A packed folder.")],
    what: Annotated[
        str, typer.Argument(metavar="ROW|DOC", help="row:17, doc:FILE:ROW, doc:DOC_ID, or id:NAME of the user's ids.")
    ],
    tokens: Annotated[
        Path | None, typer.Option(help="The tokens that were packed; default: found beside PACKED.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(help="The documents that were tokenized; default: found beside them.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Default: the one in PACKED.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Show texts whole.")] = False,
    as_json: AsJson = False,
) -> None:
    """Follow a packed row back to its documents, bytes and text; or a document to its rows."""
    from seqmill.pipeline.tracing import Sources, Target, lines_of
    from seqmill.pipeline.tracing import trace as trace_target

    found = trace_target(packed, Target.of(what), Sources(tokens, documents, tokenizer))
    print(json.dumps(found) if as_json else "\n".join(lines_of(found, full)))


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="A file of benchmarks/; default: all.")] = None,
    cases: Annotated[str | None, typer.Option(help="Only these cases, with commas between.")] = None,
    data: Annotated[Path | None, typer.Option(help="Documents to run on; default: examples/corpus.")] = None,
    truth: Annotated[Path | None, typer.Option(help="A folder of pairs known to be duplicates or not.")] = None,
    documents: Annotated[
        int | None, typer.Option(help="The most documents that a scaling case goes to, or prompts.")
    ] = None,
    peers: Annotated[str | None, typer.Option(help="Only these peers, with commas between.")] = None,
    ranks: Annotated[Path | None, typer.Option(help="A tokenizer to encode with as well, such as *.tiktoken.")] = None,
    dna: Annotated[Path | None, typer.Option(help="FASTA for k-mers; default: random bases.")] = None,
    window: Annotated[int | None, typer.Option(help="Bits of the windows that dictionaries are built for.")] = None,
    tables: Annotated[int | None, typer.Option(help="Tables of a further dictionary; default: none.")] = None,
    arms: Annotated[str | None, typer.Option(help="Only these arms of an experiment, with commas between.")] = None,
    minutes: Annotated[float | None, typer.Option(help="About how long an experiment trains.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Models that an experiment trains of each arm.")] = None,
    device: Annotated[str | None, typer.Option(help="Where an experiment trains: cpu or cuda.")] = None,
    model: Annotated[str | None, typer.Option(help="A preset of `seqmill train` to measure with, or a folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for an experiment's table and plot.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run benchmarks beside their peers."""
    from seqmill.pipeline.bench import benchmark_names, run_benchmark

    given: dict[str, Any] = {"data": data, "truth": truth, "documents": documents, "ranks": ranks, "dna": dna}
    given |= {"window": window, "tables": tables, "minutes": minutes, "seeds": seeds, "device": device, "out": out}
    given |= {"model": model}
    lists = {"cases": cases, "peers": peers, "arms": arms}
    given |= {key: None if text is None else [one for one in text.split(",") if one] for key, text in lists.items()}
    options = {key: value for key, value in given.items() if value is not None}
    for chosen in [name] if name else benchmark_names():
        result = run_benchmark(chosen, **options)
        if as_json:
            print(json.dumps(result))
            continue
        print(f"{chosen} on " + ", ".join(f"{key} {value}" for key, value in result["machine"].items()))
        for row in result["rows"]:
            print(f"  {row['case']:<56} {row['system']:<28} {row['value']:>10,} {row['unit']}")
        for note in result.get("notes", []):
            print(f"  note: {note}")
