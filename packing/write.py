"""Packed rows to a shard: gather the fragments of a range of rows and write them with everything a consumer needs.

Positions restart at 0 in every fragment, so `pos_start` is 0 everywhere: the tail of a split document is trained
like a document of its own, as nothing it could attend to is in its row. The true offset is kept in `doc_offset`, and
`next_token` keeps the target that a cut would lose, so that a split document is trained on all its targets.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.packing.loss_weights import document_targets
from seqmill.packing.pack_plan import PackPlan
from seqmill.packing.schema import NO_NEXT, REPEAT_COLUMN, hash_rows, packed_schema
from seqmill.packing.tokens import TokenStore
from seqmill.packing.totals import RowTotals
from seqmill.storage import write_arrow

BATCH_TOKENS = 1 << 22  # places per record batch: 8 MiB of uint16 tokens


def write_rows(
    path: Path,
    plan: PackPlan,
    first_row: int,
    last_row: int,
    tokens: TokenStore,
    metadata: Mapping[str, Any],
    batch_tokens: int = BATCH_TOKENS,
) -> RowTotals:
    """Write rows first_row to last_row (exclusive) of `plan` as one shard; the bytes depend on the arguments alone.

    Args:
        metadata: JSON values for the schema, usually `totals.pack_settings(plan, tokens)`.
        batch_tokens: a record batch holds batch_tokens // (room of the last of these rows) rows, at least one.

    Returns:
        The counts of these rows.

    Raises:
        UserError: the plan is of other documents, or the tokens do not fit their vocabulary.
    """
    if plan.documents != tokens.documents:
        raise UserError(
            f"the plan is of {plan.documents} documents, the tokens folder has {tokens.documents}; plan again"
        )
    if not 0 <= first_row <= last_row <= plan.rows:
        raise UserError(f"rows {first_row} to {last_row} are not in the plan, which has {plan.rows}; choose others")
    schema = packed_schema(tokens.vocab_size, metadata, tokens.has_repeats)
    rows_per_batch = max(1, batch_tokens // plan.room(max(first_row, last_row - 1)))
    total = RowTotals()

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal total
        for row in range(first_row, last_row, rows_per_batch):
            batch, counts = _pack(plan, row, min(row + rows_per_batch, last_row), tokens, schema)
            total += counts
            yield batch

    write_arrow(path, schema, batches())
    return total


def _pack(
    plan: PackPlan, first_row: int, last_row: int, tokens: TokenStore, schema: pa.Schema
) -> tuple[pa.RecordBatch, RowTotals]:
    """One record batch; its list offsets start at 0."""
    bounds = plan.row_offsets[first_row : last_row + 1]
    here = slice(bounds[0], bounds[-1])
    item, start, stop = plan.item[here], plan.start[here], plan.stop[here]
    segments = bounds - bounds[0]  # [rows + 1], where the segments of each row begin
    lengths = stop - start
    ends = np.concatenate([[0], np.cumsum(lengths)])  # [fragments + 1], in tokens from the start of the batch
    token_offsets = ends[segments]
    cu_seqlens = _cumulated(ends, segments)
    cu_offsets = segments + np.arange(len(segments))
    if plan.overflow == "split":
        next_token = tokens.next_token(item, stop)
    else:  # what follows a truncated document is in no row
        next_token = np.full(len(item), NO_NEXT, np.int32)
    input_ids = tokens.gather(item, start, stop)
    n_tokens = np.diff(token_offsets)
    n_loss = n_tokens - np.add.reduceat(next_token == NO_NEXT, segments[:-1], dtype=np.int64)
    sum_sq = np.add.reduceat(lengths * lengths, segments[:-1])
    max_seqlen = np.maximum.reduceat(lengths, segments[:-1])
    columns = {
        "row_id": np.arange(first_row, last_row),
        "input_ids": _lists(token_offsets, input_ids),
        "seq_lengths": _lists(segments, lengths.astype(np.int32)),
        "cu_seqlens": _lists(cu_offsets, cu_seqlens),
        "max_seqlen": max_seqlen.astype(np.int32),
        "n_tokens": n_tokens.astype(np.int32),
        "n_loss_tokens": n_loss.astype(np.int32),
        "sum_sq": sum_sq,
        "doc_id": _lists(segments, tokens.doc_id_of(item)),
        "doc_offset": _lists(segments, start),
        "doc_targets": _lists(segments, document_targets(plan, tokens.length_of(item))),
        "next_token": _lists(segments, next_token),
        "pos_start": _lists(segments, np.zeros(len(item), np.int32)),
        "source": _lists(segments, tokens.source_of(item)),
        "xxh3": hash_rows(input_ids, token_offsets, cu_seqlens, cu_offsets),
    }
    repeat_tokens = None
    if tokens.has_repeats:
        is_repeat = tokens.is_repeat_of(item)
        columns[REPEAT_COLUMN] = _lists(segments, is_repeat)
        repeat_tokens = int(lengths[is_repeat].sum())
    counts = RowTotals(
        rows=last_row - first_row,
        tokens=int(ends[-1]),
        loss_tokens=int(n_loss.sum()),
        segments=len(item),
        sum_sq=int(sum_sq.sum()),
        max_row_sum_sq=int(sum_sq.max()),
        min_seqlen=int(lengths.min()),
        max_seqlen=int(max_seqlen.max()),
        repeat_tokens=repeat_tokens,
    )
    return pa.record_batch([pa.array(columns[name]) for name in schema.names], schema=schema), counts


def _cumulated(ends: npt.NDArray[np.int64], segments: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """cu_seqlens of all rows, one after the other.

    For rows of lengths [3, 2] and [4]: ends = [0, 3, 5, 9], segments = [0, 2, 3] -> [0, 3, 5, 0, 4].
    """
    per_row = np.diff(segments)
    rows = np.arange(len(per_row))
    cumulated = np.zeros(len(ends) - 1 + len(per_row), np.int32)
    row_of_segment = np.repeat(rows, per_row)
    places = np.arange(len(ends) - 1) + row_of_segment + 1  # one 0 stands before the ends of every row
    cumulated[places] = ends[1:] - ends[segments[:-1]][row_of_segment]
    return cumulated


def _lists(offsets: npt.NDArray[np.int64], values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
