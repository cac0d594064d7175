"""Verbs of the data: a whole run, or one stage on its own paths."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Inputs, Out, Quiet, Workers, stage_of
from seqmill.errors import UserError

app = typer.Typer()


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="TOML file of the run.")],
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. pack.seq_len=4096.")
    ] = [],  # noqa: B006
    executor: Annotated[str | None, typer.Option(help="local or ray; default: as configured.")] = None,
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole pipeline; run the same command again to resume."""
    from seqmill.pipeline import load_config
    from seqmill.pipeline import run as run_pipeline
    from seqmill.pipeline.progress import make_progress
    from seqmill.pipeline.report import print_report

    flags = {"executor": executor, "workers": workers, "address": address}
    overrides = [*set_, *(f"execution.{key}={json.dumps(value)}" for key, value in flags.items() if value is not None)]
    report = run_pipeline(load_config(config, overrides), make_progress(quiet))
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)


@app.command()
def ingest(
    inputs: Inputs,
    out: Out,
    text_field: Annotated[str, typer.Option(help="Field or column with the text.")] = "text",
    id_field: Annotated[str, typer.Option(help="Field with the user's id.")] = "id",
    source_field: Annotated[str, typer.Option(help="Field with the source.")] = "source",
    separator: Annotated[
        str | None, typer.Option(help="Between the documents of a text file; \\n is a new line.")
    ] = None,
    unicode: Annotated[str, typer.Option(help="none or nfc.")] = "none",
    max_bad_fraction: Annotated[float, typer.Option(help="Unreadable records that are tolerated.")] = 0.001,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read raw files into a documents folder."""
    from seqmill.pipeline.ingest import IngestConfig
    from seqmill.pipeline.ingest import ingest as ingest_stage
    from seqmill.pipeline.normalise import NormaliseConfig

    config = IngestConfig(
        inputs=tuple(inputs),
        text_field=text_field,
        id_field=id_field,
        source_field=source_field,
        separator=None if separator is None else _unescaped(separator),
        max_bad_fraction=max_bad_fraction,
    )
    with stage_of("ingest", out, executor, workers, address, quiet, as_json) as stage:
        stage.manifest = ingest_stage(
            config, NormaliseConfig(unicode=unicode), stage.out, stage.executor, stage.progress
        )


@app.command()
def dedup(
    inputs: Inputs,
    out: Out,
    id_field: Annotated[str, typer.Option(help="Field with the user's id, for raw inputs.")] = "id",
    preset: Annotated[str, typer.Option(help="fineweb, slimpajama, lee, dclm or data-juicer.")] = "fineweb",
    threshold: Annotated[float, typer.Option(help="Jaccard similarity that removes a near duplicate.")] = 0.8,
    scope: Annotated[str, typer.Option(help="none, local (inside each source) or global.")] = "global",
    bands: Annotated[int | None, typer.Option(help="Bands of the signature; default: the preset's.")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of a band; default: the preset's.")] = None,
    ngram: Annotated[int | None, typer.Option(help="Units of a shingle; default: the preset's.")] = None,
    containment: Annotated[
        float | None, typer.Option(help="Share of a document's shingles in a kept one that removes it too.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Folder that remembers kept documents: compare with it, and add to it.")
    ] = None,
    holdout: Annotated[
        list[str], typer.Option(help="Evaluation set (repeat for more): what matches it is removed.")
    ] = [],  # noqa: B006
    holdout_share: Annotated[
        float, typer.Option(help="Share of a holdout document's 13-grams in one document that removes it.")
    ] = 0.8,
    holdout_ngram: Annotated[int, typer.Option(help="Words per run, instead of 13.")] = 13,
    memory_mb: Annotated[int, typer.Option(help="MiB that a unit plans with.")] = 1024,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove exact and verified near duplicates, what an index holds already, and what matches an evaluation set."""
    from seqmill.pipeline.dedup import DedupConfig
    from seqmill.pipeline.dedup import dedup as dedup_stage

    config = DedupConfig(
        preset=preset,
        threshold=threshold,
        containment=containment,
        scope=scope,
        bands=bands,
        rows=rows,
        ngram=ngram,
        index=None if index is None else str(index),
        holdout=tuple(holdout),
        holdout_share=holdout_share,
        holdout_ngram=holdout_ngram,
        memory_mb=memory_mb,
    )
    with stage_of("dedup", out, executor, workers, address, quiet, as_json) as stage:
        documents = stage.documents(inputs, id_field=id_field)
        stage.manifest = dedup_stage(documents, config, stage.out, stage.executor, stage.progress)
        lost = {reason: n["documents"] for line in stage.manifest["funnel"] for reason, n in line["reasons"].items()}
        stage.figures = {reason: count for reason, count in lost.items() if reason != "holdout" or holdout}


@app.command()
def tokenize(
    inputs: Inputs,
    tokenizer: Annotated[Path, typer.Option(help="A tokenizer folder, or a tokenizer.json.")],
    out: Out,
    append_eos: Annotated[bool, typer.Option(help="Put the end-of-document id behind every document.")] = True,
    patching: Annotated[
        str | None, typer.Option(help="Add patch_lengths to bytes: byte, static, space, bpe or entropy.")
    ] = None,
    max_patch: Annotated[int | None, typer.Option(help="Bytes of a patch at most; default: 64.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="static: bytes of a patch.")] = None,
    patch_tokenizer: Annotated[Path | None, typer.Option(help="bpe: the tokenizer whose tokens are patches.")] = None,
    patch_rule: Annotated[str | None, typer.Option(help="entropy: threshold, monotonic or both.")] = None,
    patch_bytes: Annotated[float | None, typer.Option(help="entropy: mean patch that a bound is chosen for.")] = None,
    theta: Annotated[float | None, typer.Option(help="entropy: patches begin above this many nats.")] = None,
    theta_add: Annotated[float | None, typer.Option(help="entropy: patches begin where it rises by more nats.")] = None,
    patch_model: Annotated[
        Path | None, typer.Option(help="entropy: a trained scorer, TOKENS/patcher/scorer; default: train one.")
    ] = None,
    patch_entropies: Annotated[
        Path | None, typer.Option(help="entropy: folder with another model's entropies, part by part.")
    ] = None,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn documents into ids."""
    from seqmill.pipeline.tokenize import TokenizeConfig
    from seqmill.pipeline.tokenize import tokenize as tokenize_stage
    from seqmill.tokenizers_ext.patching import PatchConfig

    settings = {
        "max_patch": max_patch,
        "size": patch_size,
        "tokenizer": patch_tokenizer and str(patch_tokenizer),
        "rule": patch_rule,
        "target_bytes": patch_bytes,
        "theta": theta,
        "theta_add": theta_add,
        "model": patch_model and str(patch_model),
        "entropies": patch_entropies and str(patch_entropies),
    }
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if given and patching is None:
        raise UserError(f"patching.{next(iter(given))} is given, but no scheme: add --patching")
    patches = None if patching is None else PatchConfig(scheme=patching, **given)
    config = TokenizeConfig(append_eos=append_eos, patching=patches)
    with stage_of("tokenize", out, executor, workers, address, quiet, as_json) as stage:
        documents = stage.documents(inputs)
        stage.manifest = tokenize_stage(documents, tokenizer, config, stage.out, stage.executor, stage.progress)


@app.command()
def pack(
    tokens: Annotated[Path, typer.Argument(help="A tokens folder.")],
    out: Out,
    seq_len: Annotated[int | None, typer.Option(help="Tokens that a row has room for; default: 2048.")] = None,
    overflow: Annotated[str, typer.Option(help="Longer documents: split, truncate, drop or error.")] = "split",
    seed: Annotated[int, typer.Option(help="Of the order of rows.")] = 0,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="best-fit-decreasing (default), or one that keeps the order of documents: windowed, concat, first-fit."
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="windowed: documents that are packed together; default: 65536.")
    ] = None,
    buckets: Annotated[
        str | None, typer.Option(help="Rows of power-of-two lengths instead, each of one document: 256:8192.")
    ] = None,
    overlong: Annotated[
        str | None, typer.Option(help="buckets: pieces of longer documents: longest, equal_tokens or seeded_random.")
    ] = None,
    leftovers: Annotated[
        str | None, typer.Option(help="buckets: ends below the shortest: carry_to_packer, drop or pad.")
    ] = None,
    curriculum: Annotated[
        str | None, typer.Option(help="buckets: uniform, grow-linear, grow-p2 (default) or natural.")
    ] = None,
    cycles: Annotated[int | None, typer.Option(help="buckets: cycles of the curriculum; default: 8.")] = None,
    step_tokens: Annotated[
        int | None, typer.Option(help="buckets: room of a training step, in tokens; default: 524288.")
    ] = None,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pack a tokens folder into rows for training."""
    from seqmill.manifest import open_manifest
    from seqmill.pipeline.pack import PackConfig, bucket_config, bucket_figures
    from seqmill.pipeline.pack import pack as pack_stage
    from seqmill.pipeline.report import packing_figures

    settings = {
        "overlong": overlong,
        "leftovers": leftovers,
        "curriculum": curriculum,
        "cycles": cycles,
        "step_tokens": step_tokens,
    }
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if given and buckets is None:
        raise UserError(f"pack.buckets.{next(iter(given))} is given, but no buckets: add --buckets 256:8192")
    if buckets is not None and seq_len is not None:
        raise UserError(
            f"--seq-len {seq_len} and --buckets {buckets}: rows have one length or several; give one of them"
        )
    cut = None if buckets is None else bucket_config(buckets, **given)
    chosen = {"seq_len": seq_len, "algorithm": algorithm, "window": window}
    named: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    config = PackConfig(overflow=overflow, seed=seed, buckets=cut, **named)
    with stage_of("pack", out, executor, workers, address, quiet, as_json) as stage:
        manifest = pack_stage(tokens.absolute(), config, stage.out, stage.executor, stage.progress)
        totals = open_manifest(tokens)["totals"]
        stage.figures = {"documents": totals["documents"], "bytes": totals["bytes"], **packing_figures(manifest)}
        stage.figures |= bucket_figures(manifest)


def _unescaped(text: str) -> str:
    r"""`text` with \n, \t, \x1e and the like read as in Python; other characters, of any script, are themselves."""
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--separator {text!r} is no valid escape sequence ({error}); write \\\\ for a backslash"
        ) from error
