"""Dynamic tokenization: rows of ids made shorter by merging the pairs that are frequent in them.

After Feher, Vulic and Minixhofer 2025, "Retrofitting Large Language Models with Dynamic Tokenization" (merging in
batches). The base ids stay what they are; a merged id stands for several of them, and a table says which, so that a
model can make an embedding for it and every row expands to its base ids again.

    merge_batch(encoder, ids, MergeConfig(merges=50))             merges learned on these very rows
    table = learn_table(encoder, sample, MergeConfig(merges=500))    merges learned once ...
    apply_table(encoder, ids, table)                              ... give a row the same ids in every batch
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numba
import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import Encoder, id_type, list_array
from seqmill.tokenizers_ext.merging.boundaries import flat_rows, segments_of
from seqmill.tokenizers_ext.merging.engine import learn_merges
from seqmill.tokenizers_ext.merging.ranks import Ranks, apply_merges, ranks_of
from seqmill.tokenizers_ext.merging.text import Text, remaining, text_of
from seqmill.tokenizers_ext.splitting import PATTERNS

SCOPES = ("sample", "batch")
TOKENS_AT_ONCE = 1 << 21  # that a table is applied to, unless one segment is longer: 40 bytes each while it is
TABLE_SCHEMA = pa.schema({"id": pa.uint32(), "left": pa.uint32(), "right": pa.uint32(), "base": pa.list_(pa.uint32())})


@dataclass(frozen=True)
class MergeConfig:
    """How rows are merged."""

    merges: int = 50  # most merges: of the batch, or of every row under scope "sample"
    scope: str = "batch"  # "batch": pairs are counted over all rows; "sample": every row by itself
    rule: str = "gpt2"  # what a merged id may cover: a pre-token of this rule of splitting.PATTERNS, "word", or "none"
    min_count: int = 1  # a pair that occurs less often is not merged

    def __post_init__(self) -> None:
        if self.merges < 0:
            raise UserError(f"merges = {self.merges}: 0 or more are needed")
        if self.scope not in SCOPES:
            raise UserError(
                f"scope = {self.scope!r}: choose one of {', '.join(SCOPES)}; for merges that do not depend on the "
                "batch, learn a table and apply it"
            )
        if self.rule != "none" and self.rule not in PATTERNS:
            raise UserError(f"rule = {self.rule!r}: choose one of none, {', '.join(PATTERNS)}")
        if self.min_count < 1:
            raise UserError(f"min_count = {self.min_count}: 1 or more is needed")


@dataclass(frozen=True)
class MergeTable:
    """What merged ids stand for.

    Attributes:
        base_vocab: ids below it are base ids; the k-th merge makes id base_vocab + k.
        left, right: int32[merges], the two ids that a merge joins, each a base id or an earlier merged one.
        rule: what a merged id may cover.
        fingerprint: of the tokenizer of the base ids.
    """

    base_vocab: int
    left: np.ndarray
    right: np.ndarray
    rule: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.left)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, base or merged."""
        return self.base_vocab + len(self)

    @cached_property
    def ranks(self) -> Ranks:
        """The merges by the pair that they join."""
        return ranks_of(self.left, self.right)

    def expansions(self) -> tuple[np.ndarray, np.ndarray]:
        """The base ids of every id: int64[vocab_size + 1] offsets into uint32[...]; a base id stands for itself."""
        lengths = np.ones(self.vocab_size, np.int64)
        _lengths(self.left, self.right, self.base_vocab, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        base_ids = np.empty(offsets[-1], np.uint32)
        base_ids[: self.base_vocab] = np.arange(self.base_vocab)
        _expand_merges(self.left, self.right, self.base_vocab, offsets, base_ids)
        return offsets, base_ids

    def to_arrow(self) -> pa.RecordBatch:
        """One row a merge: id, left, right and the base ids that it stands for."""
        offsets, base_ids = self.expansions()
        merged = offsets[self.base_vocab :] - offsets[self.base_vocab]
        base = pa.ListArray.from_arrays(pa.array(merged.astype(np.int32)), pa.array(base_ids[self.base_vocab :]))
        ids = np.arange(self.base_vocab, self.vocab_size, dtype=np.uint32)
        columns = [pa.array(ids), *(pa.array(side.astype(np.uint32)) for side in (self.left, self.right)), base]
        metadata = {"base_vocab": str(self.base_vocab), "rule": self.rule, "tokenizer": self.fingerprint}
        return pa.record_batch(columns, schema=TABLE_SCHEMA.with_metadata(metadata))

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> "MergeTable":
        """The inverse of `to_arrow`.

        Raises:
            UserError: a merge joins an id that does not come before it.
        """
        metadata = {key.decode(): value.decode() for key, value in batch.schema.metadata.items()}
        left, right = (batch.column(side).to_numpy().astype(np.int32) for side in ("left", "right"))
        base_vocab = int(metadata["base_vocab"])
        made = base_vocab + np.arange(len(left))
        if (np.maximum(left, right) >= made).any():
            raise UserError(
                "the merge table joins ids that do not exist yet at that merge; it is damaged: learn it again"
            )
        return cls(base_vocab, left, right, metadata["rule"], metadata["tokenizer"])


@dataclass(frozen=True)
class MergedBatch:
    """Rows of merged ids, and what they stand for."""

    ids: pa.ListArray  # list<uint16 | uint32>
    table: MergeTable


def merge_batch(encoder: Encoder, ids: pa.ListArray, config: MergeConfig) -> MergedBatch:
    """Learn merges on rows of ids and make them there.

    The most frequent pair of neighbours is merged first, of equally frequent ones that of lower ids, and everything is
    counted anew before the next merge. Under scope "batch" a row's ids depend on the rows beside it, not on their
    order; under scope "sample" on nothing but the row, save for the numbers of merged ids.

    Args:
        encoder: the tokenizer of the ids.
        ids: list<integer>, special ids among them are never merged.

    Raises:
        UserError: an id lies outside the vocabulary.
    """
    rows = _Rows.of(encoder, ids, config.rule)
    if config.scope == "sample":
        return _merge_each(encoder, rows, config)
    text = rows.text()
    merges = learn_merges(text, encoder.vocab_size, config.merges, min_count=config.min_count)
    table = MergeTable(encoder.vocab_size, merges.left, merges.right, config.rule, encoder.fingerprint)
    return MergedBatch(_as_lists(text, rows.offsets, table), table)


def learn_table(encoder: Encoder, ids: pa.ListArray, config: MergeConfig) -> MergeTable:
    """Merges learned on a calibration batch, for `apply_table`; see `merge_batch`."""
    return merge_batch(encoder, ids, replace(config, scope="batch")).table


def apply_table(encoder: Encoder, ids: pa.ListArray, table: MergeTable) -> pa.ListArray:
    """Make the merges of a table: lowest first, wherever they apply. A row's ids depend on nothing but the row.

    Raises:
        UserError: the table belongs to another tokenizer.
    """
    if table.fingerprint != encoder.fingerprint:
        raise UserError(
            f"the merge table was learned with tokenizer {table.fingerprint[:12]}..., the ids come from "
            f"{encoder.fingerprint[:12]}...: learn a table for this tokenizer"
        )
    rows = _Rows.of(encoder, ids, table.rule)
    kind = id_type(table.vocab_size).to_pandas_dtype()
    merged, offsets, done = [np.empty(0, kind)], [np.zeros(1, np.int64)], 0
    for start, stop in _stretches(rows.segments, TOKENS_AT_ONCE):
        text = text_of(rows.ids[start:stop], rows.segments[start:stop], np.empty(0, np.int64))
        apply_merges(text, table.ranks, table.base_vocab)
        ends_here = rows.offsets[(rows.offsets > start) & (rows.offsets <= stop)] - start
        kept, ends = remaining(text, np.concatenate([[0], ends_here, [stop - start]]), kind)
        merged.append(kept)
        offsets.append(done + ends[1:-1])
        done += len(kept)
    empty_first = np.zeros(len(rows.offsets) - 1 - sum(len(part) for part in offsets[1:]), np.int64)
    return list_array(np.concatenate([offsets[0], empty_first, *offsets[1:]]), np.concatenate(merged), table.vocab_size)


def _stretches(segments: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Cut tokens into parts of about `most` between segments, which do not know of one another."""
    start = 0
    while start < len(segments):
        stop = min(start + most, len(segments))
        stop = int(np.searchsorted(segments, segments[stop - 1], "right"))
        yield start, stop
        start = stop


def expand(ids: pa.ListArray, table: MergeTable) -> pa.ListArray:
    """The base ids of merged rows: the inverse of `merge_batch` and `apply_table`."""
    values, row_offsets = flat_rows(ids)
    offsets, base_ids = table.expansions()
    lengths = np.diff(offsets)[values]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    expanded = np.empty(ends[-1], np.uint32)
    _expand_rows(values, offsets, base_ids, expanded)
    return list_array(ends[row_offsets], expanded, table.base_vocab)


@dataclass(frozen=True)
class _Rows:
    """Rows of ids with the borders that merges respect."""

    ids: np.ndarray  # unsigned integers[tokens]
    offsets: np.ndarray  # int64[rows + 1]
    segments: np.ndarray  # int32[tokens]

    @classmethod
    def of(cls, encoder: Encoder, ids: pa.ListArray, rule: str) -> "_Rows":
        values, offsets = flat_rows(ids)
        if len(values) and values.max() >= encoder.vocab_size:
            raise UserError(f"id {values.max()} is outside the vocabulary of {encoder.vocab_size} ids")
        return cls(values, offsets, segments_of(values, offsets, encoder, rule))

    def text(self) -> Text:
        once = np.ones(1 + self.segments.max(initial=0), np.int64)
        return text_of(self.ids, self.segments, once)

    def row(self, number: int) -> "_Rows":
        start, stop = self.offsets[number : number + 2]
        segments = self.segments[start:stop]
        return _Rows(self.ids[start:stop], np.array([0, stop - start]), segments - segments[:1].sum())


def _merge_each(encoder: Encoder, rows: _Rows, config: MergeConfig) -> MergedBatch:
    """Merge every row by itself; rows that merge the same base ids share the id."""
    known: dict[tuple[int, ...], int] = {}
    pairs: list[tuple[int, int]] = []
    merged: list[np.ndarray] = [np.empty(0, np.int64)]
    base = encoder.vocab_size
    for number in range(len(rows.offsets) - 1):
        row = rows.row(number)
        text = row.text()
        merges = learn_merges(text, base, config.merges, min_count=config.min_count)
        numbers = np.arange(base + len(merges))  # id of this row -> id of the batch
        stands_for: dict[int, tuple[int, ...]] = {}
        for k, (left, right) in enumerate(zip(merges.left.tolist(), merges.right.tolist(), strict=True)):
            stands_for[base + k] = stands_for.get(left, (left,)) + stands_for.get(right, (right,))
            joined = stands_for[base + k]
            if joined not in known:
                known[joined] = base + len(known)
                pairs.append((int(numbers[left]), int(numbers[right])))
            numbers[base + k] = known[joined]
        merged.append(numbers[remaining(text, row.offsets)[0]])
    left, right = np.array(pairs, np.int32).reshape(-1, 2).T.copy()
    table = MergeTable(base, left, right, config.rule, encoder.fingerprint)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in merged[1:]], dtype=np.int64)])
    return MergedBatch(list_array(offsets, np.concatenate(merged), table.vocab_size), table)


def _as_lists(text: Text, row_offsets: np.ndarray, table: MergeTable) -> pa.ListArray:
    ids, offsets = remaining(text, row_offsets, id_type(table.vocab_size).to_pandas_dtype())
    return list_array(offsets, ids, table.vocab_size)


@numba.njit(nogil=True, cache=True)
def _lengths(left: np.ndarray, right: np.ndarray, base: int, lengths: np.ndarray) -> None:
    for k in range(len(left)):
        lengths[base + k] = lengths[left[k]] + lengths[right[k]]


@numba.njit(nogil=True, cache=True)
def _expand_merges(left: np.ndarray, right: np.ndarray, base: int, offsets: np.ndarray, base_ids: np.ndarray) -> None:
    for k in range(len(left)):
        out = offsets[base + k]
        for part in (left[k], right[k]):
            for at in range(offsets[part], offsets[part + 1]):
                base_ids[out] = base_ids[at]
                out += 1


@numba.njit(nogil=True, cache=True)
def _expand_rows(values: np.ndarray, offsets: np.ndarray, base_ids: np.ndarray, expanded: np.ndarray) -> None:
    out = 0
    for value in values:
        for at in range(offsets[value], offsets[value + 1]):
            expanded[out] = base_ids[at]
            out += 1
