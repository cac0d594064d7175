"""What `[tokenize.patching]` needs before documents are cut: a scorer of entropies, and a bound that suits the data.

count      documents part            -> n-grams of its sampled documents                  (one unit a part)
train      all counts                -> the scorer                                        (one unit)
calibrate  documents part, scorer    -> a histogram of what the rule compares             (one unit a part)

The result is the folder OUT/patcher. Documents for calibration are drawn independently of those that the scorer was
trained on, whose entropies are lower than those of others; where the sample is the whole corpus, they are the same.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, STATE_FOLDER, open_manifest
from seqmill.pipeline.documents import document_batches, utf8_buffers
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    UnitResult,
    all_done,
    part_references,
    run_units,
)
from seqmill.pipeline.sampling import drawn
from seqmill.pipeline.settings import build
from seqmill.storage import atomic_path, hash_file, read_arrow, read_json, write_arrow
from seqmill.tokenizers_ext.patching import (
    NgramConfig,
    PatchConfig,
    Run,
    add_scores,
    build_scorer,
    choose_bound,
    count_runs,
    describe_patcher,
    empty_histogram,
    entropy_pieces,
    load_scorer,
    save_patcher,
    save_scorer,
)

PATCHER_FOLDER = "patcher"  # inside tokens folders: data carries the patcher it was made with
ENTROPY = "entropy"  # column of given entropies, beside doc_id

_RUNS = pa.schema({"event": pa.uint64(), "count": pa.uint64()})  # a record batch is a run
_HISTOGRAM = pa.schema({"count": pa.int64()})
Parts = Mapping[str, Mapping[str, Any]]


def put_patcher(
    documents: Path, config: PatchConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Write OUT/patcher and return its description. A manifest that names another patcher is withdrawn first, so that
    no folder is ever finished with a patcher that did not make its patches.

    Raises:
        UserError: a model or tokenizer cannot be read, or the documents are too few to choose a bound.
    """
    state = out / STATE_FOLDER / "patching"
    manifest = open_manifest(documents, "documents")
    parts = part_references(documents, manifest)
    share = min(1.0, config.ngram.sample_bytes / max(1, manifest["totals"]["bytes"]))
    scorer = None
    if config.scheme == "entropy" and config.entropies is None:
        scorer = Path(config.model).absolute() if config.model else state / "scorer"
        if config.model is None:
            _train(parts, share, config.ngram, state, executor, progress)
        load_scorer(scorer)
    calibration = None
    if config.target_bytes is not None:
        config, calibration = _calibrate(parts, share, config, scorer, state, executor, progress)
    staged = state / PATCHER_FOLDER
    shutil.rmtree(staged, ignore_errors=True)  # what a killed run left of another patcher
    save_patcher(staged, config, scorer, calibration)
    described = describe_patcher(staged)
    _put_in_place(staged, described, out)
    shutil.rmtree(staged)
    return described


def remove_patcher(out: Path) -> None:
    """Delete the patcher of an earlier run with other settings, and the manifest that names it first."""
    if (out / PATCHER_FOLDER).exists():
        (out / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(out / PATCHER_FOLDER)


def _put_in_place(staged: Path, described: Mapping[str, Any], out: Path) -> None:
    """Copy the patcher to its place, file by file, so that a finished folder always has a whole one."""
    if not (out / MANIFEST).is_file() or read_json(out / MANIFEST).get("patching") != described:
        remove_patcher(out)
        (out / MANIFEST).unlink(missing_ok=True)
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        with atomic_path(out / PATCHER_FOLDER / file.relative_to(staged)) as temporary:
            shutil.copyfile(file, temporary)


def with_entropies(config: PatchConfig | None, parts: Parts) -> dict[str, dict[str, Any]]:
    """Part name -> what its units read: the documents, and the file of given entropies where there is one.

    Raises:
        UserError: the file of a part is missing.
    """
    if config is None or config.entropies is None:
        return {name: {"documents": file} for name, file in parts.items()}
    found = {}
    for name, file in parts.items():
        path = Path(config.entropies).absolute() / f"{name}.arrow"
        if not path.is_file():
            raise UserError(
                f"patching.entropies: {path} is missing; write one Arrow stream a documents part under the same name, "
                f"with the columns doc_id and {ENTROPY} (lists of float16 or float32, one a byte)"
            )
        found[name] = {"documents": file, "entropies": {"path": str(path), "xxh3_128": hash_file(path)}}
    return found


def scored_batches(payload: Mapping[str, Any]) -> Iterator[tuple[pa.RecordBatch, pa.Array | None]]:
    """The batches of payload["documents"], each with its column of given entropies, or None.

    Raises:
        UserError: the files are not of the same documents.
    """
    batches = document_batches(Path(payload["documents"]["path"]))
    if "entropies" not in payload:
        yield from ((batch, None) for batch in batches)
        return
    path = payload["entropies"]["path"]
    table = read_arrow(Path(path))
    if not {"doc_id", ENTROPY} <= set(table.column_names):
        raise UserError(f"{path} has columns {', '.join(table.column_names)}: doc_id and {ENTROPY} are needed")
    row = 0
    for batch in batches:
        rows = table.slice(row, len(batch))
        row += len(batch)
        if not np.array_equal(rows["doc_id"].to_numpy(), batch.column("doc_id").to_numpy()):
            row = -1
            break
        yield batch, rows[ENTROPY].combine_chunks()
    if row != len(table):
        raise UserError(f"{path} is not of the documents in {payload['documents']['path']}, in their order")


def count_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Count the n-grams of a part's sampled documents."""

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in document_batches(Path(payload["documents"]["path"])):
            chosen = drawn(batch.column("doc_id").to_numpy(), payload["share"], payload["seed"])
            yield utf8_buffers(batch.column("text").filter(pa.array(chosen)))

    runs = (pa.record_batch(list(map(pa.array, run)), schema=_RUNS) for run in count_runs(batches(), payload["order"]))
    name = f"{payload['part']}.arrow"
    return UnitResult({name: write_arrow(out / name, _RUNS, runs)})


def train_scorer(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Add up the counts of all parts and write the scorer.

    Raises:
        UserError: nothing was counted.
    """
    config = build(NgramConfig, payload["config"])
    tables = [read_arrow(Path(payload["counts"]) / f"{part}.arrow") for part in payload["parts"]]
    runs = [Run(*(column.to_numpy() for column in batch.columns)) for table in tables for batch in table.to_batches()]
    sampled = {
        "documents": sum(int(run.counts[run.events >> np.uint64(8) & np.uint64(255) == 0].sum()) for run in runs),
        "bytes": sum(int(run.counts.sum()) for run in runs),
    }
    if not sampled["bytes"]:
        raise UserError(
            "there is no text to train a scorer of entropies on: all was filtered out, or patching.ngram.sample_bytes "
            "is too small"
        )
    save_scorer(out, build_scorer(runs, config), {**sampled, "seed": config.seed})
    files = ("short.arrow", "long.arrow", "scorer.json")
    return UnitResult(dict.fromkeys(files, 1), {"sample": sampled})


def calibrate_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Count what the rule compares with its bound, over a part's sampled documents."""
    config = build(PatchConfig, payload["config"])
    scorer = load_scorer(Path(payload["scorer"]["path"])) if payload["scorer"] else None
    histogram = empty_histogram()
    sampled = {"documents": 0, "bytes": 0, "decided": 0}
    for batch, given in scored_batches(payload):
        chosen = pa.array(drawn(batch.column("doc_id").to_numpy(), payload["share"], payload["seed"]))
        offsets, data = utf8_buffers(batch.column("text").filter(chosen))
        source = scorer if given is None else given.filter(chosen)
        for piece in entropy_pieces(data, offsets, source):
            sampled["decided"] += add_scores(histogram, config, offsets, piece)
        sampled["documents"] += len(offsets) - 1
        sampled["bytes"] += int(offsets[-1])
    name = f"{payload['part']}.arrow"
    counted = pa.record_batch([pa.array(histogram)], schema=_HISTOGRAM)
    return UnitResult({name: write_arrow(out / name, _HISTOGRAM, [counted], compression="zstd")}, sampled)


def _train(
    parts: Parts, share: float, config: NgramConfig, state: Path, executor: Executor, progress: Progress
) -> None:
    """Write state/scorer; counts are made only while it is missing, and deleted once it is there."""
    counts = state / "counts"
    shared = {"share": share, "seed": config.seed, "order": config.order}
    counting = [Unit(name, {"part": name, "documents": file, **shared}) for name, file in parts.items()]
    told = {"parts": list(parts), "documents": list(parts.values()), "share": share, "config": asdict(config)}
    training = [Unit("scorer", {**told, "counts": str(counts)})]
    if not all_done("train scorer", training, state / "scorer"):
        run_units("count n-grams", count_part, counting, counts, executor, progress)
        run_units("train scorer", train_scorer, training, state / "scorer", executor, progress)
    shutil.rmtree(counts, ignore_errors=True)


def _calibrate(
    parts: Parts,
    share: float,
    config: PatchConfig,
    scorer: Path | None,
    state: Path,
    executor: Executor,
    progress: Progress,
) -> tuple[PatchConfig, dict[str, Any]]:
    """`config` with a bound in place of the wanted patch size, and what it was chosen from."""
    reference = scorer and {"path": str(scorer), "xxh3_128": hash_file(scorer / "scorer.json")}
    shared = {"share": share, "seed": config.ngram.seed + 1, "scorer": reference, "config": asdict(config)}
    units = [Unit(name, {"part": name, **read, **shared}) for name, read in with_entropies(config, parts).items()]
    folder = state / "calibration"
    records = run_units("calibrate patches", calibrate_part, units, folder, executor, progress)
    histogram = empty_histogram()
    for record in records:
        histogram += read_arrow(folder / record.files[0].name)["count"].to_numpy()
    sampled = {key: sum(record.stats[key] for record in records) for key in ("documents", "bytes", "decided")}
    bound = choose_bound(histogram, sampled.pop("decided"), config)
    if config.rule == "monotonic":
        bounded = replace(config, theta_add=bound, target_bytes=None)
    else:
        bounded = replace(config, theta=bound, target_bytes=None)
    return bounded, {"target_bytes": config.target_bytes, **sampled}
