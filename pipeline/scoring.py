"""The score stage: how well a model foresees every document, and on request one vector for each.

    plan     a part of documents or tokens -> the rows at which it is cut into units of about `unit_bytes` of text
    score    such a piece of a part -> OUT/part-*.arrow

A model reads a thousand times slower than a tokenizer, so units are smaller than parts: all workers have work, and a
killed one loses little. A document's first token is given, as nothing stands before it; but where the model is of the
HF hub and its tokenizer's template puts an id there, that id is. All others are predicted, the end-of-document id among
them. What a document's numbers are depends on the unit that it is in only by the rounding of matrix kernels, and the
unit on the data and the settings alone.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, open_manifest, write_manifest
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import Executor, Progress, Unit, UnitResult, part_references, prepare_folder, run_units
from seqmill.pipeline.executors import RayExecutor
from seqmill.pipeline.funnel import check_funnel, funnel_entry
from seqmill.pipeline.model_steps import ModelFiles, Scorer, find_model, open_scorer
from seqmill.pipeline.score_columns import ScoringConfig, encode_texts, score_columns, score_fields
from seqmill.pipeline.settings import build
from seqmill.pipeline.tokenize import check_sizes
from seqmill.storage import read_json, with_metadata, write_arrow
from seqmill.tokenizers_ext import load

UNPREDICTED = "no token to predict"  # documents that have none, or only one that is given
_COUNTS = ("documents", "bytes", "scored_documents", "scored_bytes", "tokens", "nats")


def score_corpus(
    data: Path, checkpoint: Path, config: ScoringConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Score a folder of documents or tokens with a trained model; returns the manifest.

        doc_id uint64, source string, num_bytes uint32 (of the text)
        tokens uint32             that were predicted
        log_prob float64          their sum, natural logarithm; null without such a token
        bits_per_byte float64     -log_prob / ln 2 / num_bytes; null without such a token, or without a byte
        token_log_probs list<float32>              with `per_token`, one number a predicted token
        embedding fixed_size_list<float32>[dim]    with `pooling`; null for a document without a token

    Totals hold these counts of all documents, and by_source those of each source; bits_per_byte is of the scored bytes.

    A worker's memory: the model, a forward pass of `max_tokens` tokens or of one longer document
    (seqmill.models.inference.passes says what such a one takes), and the scores of `unit_bytes` of text.

    Args:
        data: a finished folder of documents, or of tokens that the model's own tokenizer made.
        checkpoint: a training folder, one of its checkpoints, or a folder of the HF hub, with a tokenizer.

    Raises:
        UserError: a folder cannot be read, the tokens are another tokenizer's, the tokenizer has no end-of-document id
            although one is to be appended, an id lies outside the model's vocabulary, or a score is no number.
    """
    manifest = open_manifest(data)
    _require_own_folder(out)
    model = find_model(checkpoint)
    _require_fit(data, manifest, model, config)
    if config.device == "cuda" and isinstance(executor, RayExecutor):
        raise UserError(
            "device = 'cuda' with the ray executor, whose tasks hold no GPU; use --executor local on a machine that "
            "has one, or seqmill.pipeline.ray_data.ScoreBatch in map_batches(..., num_gpus=1)"
        )
    prepare_folder(out)
    parts = part_references(data, manifest)
    planning = [
        Unit(f"plan-{part}", {"kind": manifest["kind"], "data": file, "unit_bytes": config.unit_bytes})
        for part, file in parts.items()
    ]
    planned = run_units("score plan", plan_part, planning, out, executor, progress)
    shared = {"kind": manifest["kind"], "model": asdict(model), "config": asdict(config)}
    pieces = [
        {"data": file, "rows": rows}
        for file, record in zip(parts.values(), planned, strict=True)
        for rows in record.stats["pieces"]
    ]
    names = [f"part-{index:05d}" for index in range(len(pieces))]
    units = [Unit(name, {"name": name, **piece, **shared}) for name, piece in zip(names, pieces, strict=True)]
    records = run_units("score", score_piece, units, out, executor, progress)
    by_source: dict[str, dict[str, Any]] = {}
    for record in records:
        _add(by_source, record.stats["by_source"])
    totals = {name: sum(source[name] for source in by_source.values()) for name in _COUNTS}
    funnel = [_funnel_entry(totals)]
    check_funnel(funnel)
    return write_manifest(
        out,
        "scores",
        [file for record in records for file in record.files],
        stage="score",
        data=manifest["fingerprint"],
        model=model.fingerprint,
        tokenizer=model.tokenizer_fingerprint,
        config=asdict(config),
        funnel=funnel,
        totals=_described(totals),
        by_source={name: _described(by_source[name]) for name in sorted(by_source)},
    )


def _require_own_folder(out: Path) -> None:
    """Scores beside the parts of something else would take their place."""
    kind = read_json(out / MANIFEST).get("kind") if (out / MANIFEST).is_file() else "scores"
    if kind != "scores":
        raise UserError(f"{out} holds {kind}, which would be lost; choose another --out")


def _require_fit(data: Path, manifest: Mapping[str, Any], model: ModelFiles, config: ScoringConfig) -> None:
    if manifest["kind"] not in ("documents", "tokens"):
        raise UserError(f"{data} holds {manifest['kind']}, but documents or tokens are scored; name such a folder")
    if manifest["kind"] == "tokens":
        made_by = str(manifest.get("tokenizer", {}).get("fingerprint"))
        if made_by != model.tokenizer_fingerprint:
            raise UserError(
                f"the tokenizer of {data} ({made_by[:16]}) is not the one that the model was trained with, "
                f"{model.tokenizer} ({model.tokenizer_fingerprint[:16]}), so its ids mean other texts; score the "
                "documents instead, or tokenize them with the latter"
            )
    else:
        config.require_end(load(model.tokenizer), model.tokenizer)


def plan_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Cut a part into runs of rows: [first, one past the last] of each, a single empty one if there are no rows.

    A piece begins with the first document that begins in its stretch of `unit_bytes`. With 3, 4, 9 and 1 bytes in units
    of 5, documents begin at 0, 3, 7 and 16, and the pieces are [0, 2], [2, 3] and [3, 4].
    """
    rows, size, cuts = 0, 0, [np.empty(0, np.int64)]
    last = 0  # number of the stretch that the document before began in
    for batch in document_batches(Path(payload["data"]["path"])):
        num_bytes = _num_bytes(batch, payload["kind"]).astype(np.int64)
        stretch = (size + np.cumsum(num_bytes) - num_bytes) // payload["unit_bytes"]
        cuts.append(rows + np.flatnonzero(np.diff(stretch, prepend=last)))
        rows, size = rows + len(batch), size + int(num_bytes.sum())
        last = int(stretch[-1]) if len(stretch) else last
    bounds = [0, *np.concatenate(cuts).tolist(), rows]
    return UnitResult({}, {"pieces": [list(piece) for piece in pairwise(bounds)]})


def score_piece(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Score a run of a part's rows."""
    config = build(ScoringConfig, payload["config"])
    scorer = open_scorer(ModelFiles(**payload["model"]), config.device, config.dtype, config.threads)
    fields = {"doc_id": pa.uint64(), "source": pa.string(), "num_bytes": pa.uint32()}
    schema = with_metadata(
        pa.schema({**fields, **score_fields(config, scorer.dim)}),
        "scores",
        model=payload["model"]["fingerprint"],
        tokenizer=scorer.encoder.fingerprint,
        config=payload["config"],
    )
    by_source: dict[str, dict[str, Any]] = {}

    def scored() -> Iterator[pa.RecordBatch]:
        """Every batch of rows with its scores; what the record says of them is added up on the way."""
        for batch in _rows(Path(payload["data"]["path"]), *payload["rows"]):
            found = pa.record_batch(_scored_columns(batch, payload["kind"], scorer, config), schema=schema)
            _add(by_source, _count(found))
            yield found

    name = f"{payload['name']}.arrow"
    return UnitResult({name: write_arrow(out / name, schema, scored())}, {"by_source": by_source})


def _scored_columns(batch: pa.RecordBatch, kind: str, scorer: Scorer, config: ScoringConfig) -> list[pa.Array]:
    """The columns of OUT/part-*.arrow for rows of documents or tokens."""
    doc_ids, num_bytes = batch.column("doc_id"), pa.array(_num_bytes(batch, kind).astype(np.uint32))
    if kind == "tokens":
        ids = batch.column("input_ids")
    else:
        ids = encode_texts(scorer.encoder, batch.column("text"), config.append_eos)
    columns = score_columns(scorer, ids, num_bytes, config, lambda row: f"document {doc_ids[row]}")
    return [doc_ids, batch.column("source").cast(pa.string()), num_bytes, *columns.values()]


def _rows(path: Path, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """The rows from `start` to before `stop` of a part, batch by batch."""
    first = 0
    for batch in document_batches(path):
        begin, end = max(start - first, 0), min(stop - first, len(batch))
        if begin < end:
            yield batch.slice(begin, end - begin)
        first += len(batch)
        if first >= stop:
            return


def _num_bytes(batch: pa.RecordBatch, kind: str) -> np.ndarray:
    """Integers, of the text of each document."""
    if kind == "tokens":
        return batch.column("num_bytes").to_numpy()
    num_bytes = pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False)
    check_sizes(batch, num_bytes)
    return num_bytes


def _count(scores: pa.RecordBatch) -> dict[str, dict[str, Any]]:
    """Source -> its documents, bytes and predicted tokens, those that were scored, and their nats."""
    sources = scores.column("source").dictionary_encode()
    place = sources.indices.to_numpy()
    num_bytes, tokens = (scores.column(name).to_numpy() for name in ("num_bytes", "tokens"))
    is_scored = tokens > 0
    nats = -scores.column("log_prob").fill_null(0.0).to_numpy()
    columns = (np.ones(len(scores)), num_bytes, is_scored, num_bytes * is_scored, tokens, nats)
    sums = [np.bincount(place, column, len(sources.dictionary)) for column in columns]
    integers = [each.astype(np.int64) for each in sums[:-1]]
    rows = zip(*(each.tolist() for each in (*integers, sums[-1])), strict=True)
    return {
        name: dict(zip(_COUNTS, row, strict=True))
        for name, row in zip(sources.dictionary.to_pylist(), rows, strict=True)
    }


def _add(total: dict[str, dict[str, Any]], more: Mapping[str, Mapping[str, Any]]) -> None:
    for source, counts in more.items():
        mine = total.setdefault(source, dict.fromkeys(_COUNTS, 0))
        for name in _COUNTS:
            mine[name] += counts[name]


def _described(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as a manifest has them: bits per byte, of what was scored, instead of nats."""
    size = counts["scored_bytes"]
    bits_per_byte = round(counts["nats"] / math.log(2) / size, 6) if size else None
    return {**{name: counts[name] for name in _COUNTS if name != "nats"}, "bits_per_byte": bits_per_byte}


def _funnel_entry(totals: Mapping[str, Any]) -> dict[str, Any]:
    entered = {"documents": totals["documents"], "bytes": totals["bytes"]}
    lost = {unit: count - totals[f"scored_{unit}"] for unit, count in entered.items()}
    return funnel_entry("score", entered, {UNPREDICTED: lost} if lost["documents"] else {})
