"""Check a packed folder against everything that its readers rely on.

    schema  columns and types
    I1      cu_seqlens begin at 0, increase, and end at the row's number of tokens, which is at most the capacity
    I2      seq_lengths, max_seqlen, n_tokens and sum_sq follow from cu_seqlens; every segment column has its length
    I3      0 <= token < vocabulary
    I4      the segments of each document tile it from its first token, without overlap or gap
    I5      next_token is the first token of the document's next segment, -1 at its end and nowhere else
    I6      n_loss_tokens is the number of tokens with a target
    I7      row_id is dense, in file order
    I8      the list offsets of every record batch begin at 0
    I10     files and rows match their hashes
    totals  the manifest's totals and drops are those of the rows

I9, equal bytes for equal inputs, is a property of the writer and not of a folder.

Where the manifest says that documents share ids (documents_repeated), I4 and I5 ask whether the segments of an id can
be joined to that many documents: at each position as many segments end with a next token as begin there, with the same
tokens. Nothing tells the copies of a document apart, so nothing more can be asked of rows alone. Given the tokens
folder, the segments of such ids are compared with its pieces as two bags of (id, position, tokens, is_repeat).

In a folder with buckets (seqmill.packing.decomposition) I1 also asks that all rows but those of leftovers are one
piece of their bucket's length. A document's last token is there in no segment: it is the next_token of the last one.
I4 and I5 take it for a segment of its own, and the totals ask for one per document.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, open_manifest
from seqmill.packing.buckets import Buckets
from seqmill.packing.decomposition import decompose, kept_pairs
from seqmill.packing.schema import (
    KIND,
    LIST_COLUMNS,
    NO_NEXT,
    REPEAT_COLUMN,
    SEGMENT_COLUMNS,
    hash_rows,
    packed_schema,
)
from seqmill.packing.tokens import TokenStore
from seqmill.packing.totals import RowTotals
from seqmill.storage import hash_file, read_arrow, read_json

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Violation:
    """One invariant that does not hold in one file."""

    invariant: str  # "I1" to "I10", "schema" or "totals"
    file: str  # name of the shard, or of the manifest
    row: int | None  # number of the first such row in the whole dataset, where it is about rows
    count: int  # rows (I4, I5: segments) that violate it
    detail: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{self.invariant}: {where}: {self.detail} ({self.count} in this file)"


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` looked at and found."""

    folder: str
    files: int  # listed in the manifest
    rows: int  # checked
    tokens: int  # checked
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return not self.violations

    def __str__(self) -> str:
        head = f"{self.folder}: {self.files} files, {self.rows} rows, {self.tokens} tokens: "
        return head + ("valid" if self.ok else "\n".join(["INVALID", *map(str, self.violations)]))


@dataclass(frozen=True, eq=False)
class _Lists:
    """A list column as numpy arrays, of lists that need not begin at 0."""

    offsets: Int64s  # int64[rows + 1], from 0
    values: np.ndarray

    @property
    def counts(self) -> Int64s:
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class _Segments:
    """All segments of a shard, for the checks that go beyond it; every array has one element per segment."""

    file: npt.NDArray[np.int32]  # number in the manifest
    row: Int64s  # in the whole dataset
    doc_id: npt.NDArray[np.uint64]
    start: Int64s  # doc_offset
    stop: Int64s
    first_token: Int64s
    next_token: Int64s
    digest: UInt64s  # of tokens and is_repeat, where the id stands for several documents of the tokens folder; else 0


@dataclass(frozen=True, eq=False)
class _Reference:
    """The documents that were packed, to be found by id."""

    store: TokenStore
    ids: UInt64s  # all document ids, sorted
    item: Int64s  # the documents in the order of `ids`
    shared: UInt64s  # the ids of more than one document, sorted

    @classmethod
    def of(cls, store: TokenStore) -> "_Reference":
        order = np.argsort(store.doc_ids, kind="stable")
        ids = store.doc_ids[order]
        return cls(store, ids, order, np.unique(ids[1:][ids[1:] == ids[:-1]]))

    def is_shared(self, doc_id: UInt64s) -> Bools:
        """Whether several documents have this id."""
        return np.isin(doc_id, self.shared)

    def find(self, doc_id: npt.NDArray[np.uint64]) -> tuple[Int64s, Bools]:
        """The document of every id, and whether there is one."""
        if not len(self.ids):
            return np.zeros(len(doc_id), np.int64), np.zeros(len(doc_id), np.bool_)
        place = np.minimum(np.searchsorted(self.ids, doc_id), len(self.ids) - 1)
        return self.item[place], self.ids[place] == doc_id

    def differs(self, doc_id: UInt64s, start: Int64s, stop: Int64s, tokens: np.ndarray, is_repeat: Bools) -> Bools:
        """Whether each of these segments of unshared ids has other tokens, or another is_repeat, than its document.

        Segments that are not inside a known document are left to the checks of I4 that compare bounds.
        """
        item, known = self.find(doc_id)
        comparable = known & (start >= 0) & (stop <= self.store.lengths[item])
        lengths = stop - start
        expected = self.store.gather(item[comparable], start[comparable], stop[comparable])
        unequal = expected != tokens[np.repeat(comparable, lengths)]
        wrong = np.zeros(len(doc_id), np.bool_)
        ends = np.concatenate([[0], np.cumsum(lengths[comparable])])
        wrong[comparable] = _any(unequal, ends) | (self.store.is_repeat_of(item[comparable]) != is_repeat[comparable])
        return wrong


def validate(folder: str | Path, tokens: str | Path | None = None) -> ValidationReport:
    """Check all shards of a packed folder.

    Args:
        folder: with a manifest of kind "packed".
        tokens: the tokens folder that was packed; when given, the lengths and tokens of all documents are compared
            with it too.

    Returns:
        A report with one violation per invariant and file, at its first row. Memory: about 200 bytes per segment.

    Raises:
        UserError: the folder has no readable manifest of packed rows, or `tokens` is no tokens folder.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    reference = _Reference.of(TokenStore.open(Path(tokens))) if tokens is not None else None
    violations: list[Violation] = []
    segments: list[_Segments] = []
    total = RowTotals()
    first_row = 0
    for number, file in enumerate(manifest["files"]):
        shard = _Shard(file["name"], first_row, manifest["pack"], violations, reference)
        table = shard.open(folder, file)
        for batch in table.to_batches() if table is not None else []:
            found = shard.check(batch, number)
            if found:
                segments.append(found[0])
                total += found[1]
        first_row += file["rows"]
    joined = _join(segments)
    violations += _check_documents(joined, manifest, reference)
    violations += _check_totals(total, joined, manifest)
    return ValidationReport(str(folder), len(manifest["files"]), total.rows, total.tokens, tuple(violations))


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    manifest = read_json(path) if path.is_file() else open_manifest(folder)  # which says that there is none
    if manifest.get("kind") != KIND:
        raise UserError(
            f"{folder} holds {manifest.get('kind')}, but packed rows are validated; validate another folder"
        )
    missing = [name for name in ("files", "pack", "totals", "drops") if name not in manifest]
    if missing:
        raise UserError(f"{path} has no entry {missing[0]!r}; pack again")
    return manifest


class _Shard:
    """The checks of one shard; adds at most one violation per invariant to `violations`."""

    def __init__(
        self,
        name: str,
        first_row: int,
        pack: Mapping[str, Any],
        violations: list[Violation],
        reference: _Reference | None,
    ) -> None:
        self.name = name
        self.row = first_row  # of the next batch
        self.pack = pack
        self.violations = violations
        self.reference = reference
        self.has_repeats: bool = pack.get(REPEAT_COLUMN, False)
        optional = [REPEAT_COLUMN] if self.has_repeats else []
        self.list_columns = [*LIST_COLUMNS, *optional]
        self.segment_columns = [*SEGMENT_COLUMNS, *optional]
        self.reported: dict[str, int] = {}  # invariant -> its place in `violations`

    def report(self, invariant: str, detail: str, wrong: Bools | None = None, rows: Int64s | None = None) -> None:
        """Add a violation: of the file, or of the rows (default: those of the batch) where `wrong` is True."""
        count = 1 if wrong is None else int(np.count_nonzero(wrong))
        if not count:
            return
        if invariant in self.reported:
            old = self.violations[self.reported[invariant]]
            new = Violation(invariant, self.name, old.row, old.count + count, old.detail)
            self.violations[self.reported[invariant]] = new
            return
        first = None if wrong is None else int(np.argmax(wrong))
        row = None if first is None else self.row + first if rows is None else int(rows[first])
        self.reported[invariant] = len(self.violations)
        self.violations.append(Violation(invariant, self.name, row, count, detail))

    def open(self, folder: Path, file: Mapping[str, Any]) -> pa.Table | None:
        """The shard's table, or None when it cannot be read or has another layout."""
        path = folder / self.name
        if not path.is_file():
            self.report("I10", "the file is missing")
            return None
        if path.stat().st_size != file["bytes"] or hash_file(path) != file["xxh3_128"]:
            self.report("I10", "the file does not match the hash in the manifest")
        try:
            table = read_arrow(path)
            table.validate(full=True)
        except (UserError, pa.ArrowException) as error:
            self.report("I10", f"the file cannot be read: {error}")
            return None
        expected = packed_schema(self.pack["vocab_size"], {}, self.has_repeats)
        if table.schema.names != expected.names or table.schema.types != expected.types:
            self.report("schema", f"columns {dict(zip(table.schema.names, map(str, table.schema.types), strict=True))}")
            return None
        if table.num_rows != file["rows"]:
            self.report("totals", f"{table.num_rows} rows, the manifest lists {file['rows']}")
        return table

    def check(self, batch: pa.RecordBatch, number: int) -> tuple[_Segments, RowTotals] | None:
        """Check one record batch; its segments and counts, or None when its segments make no sense."""
        if batch.num_rows == 0:
            return None
        if any(column.null_count for column in batch.columns):
            self.report("schema", "the file has nulls")
            return None
        lists = {name: _lists(batch.column(name)) for name in self.list_columns}
        if any(batch.column(name).offsets[0].as_py() for name in self.list_columns):
            self.report("I8", "the list offsets of a record batch do not begin at 0")
        numbers = {
            name: batch.column(name).to_numpy(zero_copy_only=True)
            for name in batch.schema.names
            if name not in self.list_columns
        }
        self._check_rows(lists, numbers)
        found = self._check_segments(lists, numbers, number) if self._has_bounds(lists) else None
        if self.reference and found:
            found = self._compare(found[0], lists), found[1]
        self.row += batch.num_rows
        return found

    def _compare(self, segments: _Segments, lists: Mapping[str, _Lists]) -> _Segments:
        """I4 against the documents: the tokens of unshared ids here, those of shared ids as digests for later."""
        assert self.reference is not None
        tokens, offsets = lists["input_ids"].values, lists["doc_id"].offsets
        has_flags = self.has_repeats and self.reference.store.has_repeats
        if self.has_repeats != self.reference.store.has_repeats:
            self.report("I4", f"only one of the rows and the tokens folder has the column {REPEAT_COLUMN}")
        is_repeat = lists[REPEAT_COLUMN].values if has_flags else np.zeros(len(segments.row), np.bool_)
        lengths = segments.stop - segments.start
        shared = self.reference.is_shared(segments.doc_id)
        alone, of_alone = ~shared, np.repeat(~shared, lengths)
        wrong = np.zeros(len(shared), np.bool_)
        wrong[alone] = self.reference.differs(
            segments.doc_id[alone], segments.start[alone], segments.stop[alone], tokens[of_alone], is_repeat[alone]
        )
        self.report("I4", "tokens or is_repeat are not those of the tokens folder", _any(wrong, offsets))
        digest = np.zeros(len(shared), np.uint64)
        digest[shared] = _digests(tokens[~of_alone], lengths[shared], is_repeat[shared])
        return replace(segments, digest=digest)

    def _check_rows(self, lists: Mapping[str, _Lists], numbers: Mapping[str, np.ndarray]) -> None:
        """I3, I7 and the row hashes: what needs no segments."""
        ids, cu = lists["input_ids"], lists["cu_seqlens"]
        rows = np.arange(self.row, self.row + len(ids.counts))
        self.report("I7", "row_id is not the number of the row", numbers["row_id"] != rows)
        outside = ids.values >= self.pack["vocab_size"]
        if outside.any():
            self.report(
                "I3", f"a token is not below the vocabulary of {self.pack['vocab_size']}", _any(outside, ids.offsets)
            )
        hashes = hash_rows(ids.values, ids.offsets, cu.values, cu.offsets)
        self.report("I10", "the row does not match its hash", numbers["xxh3"] != hashes)

    def _has_bounds(self, lists: Mapping[str, _Lists]) -> bool:
        """I1, and whether every segment column has one element per segment (I2); False stops the further checks."""
        cu, ids = lists["cu_seqlens"], lists["input_ids"]
        too_short = cu.counts < 2
        self.report("I1", "cu_seqlens has no segment", too_short)
        if too_short.any():
            return False
        steps = np.diff(cu.values.astype(np.int64), append=0)
        steps[cu.offsets[1:] - 1] = 1  # from the last bound of a row to the first of the next: not a segment
        wrong = (cu.values[cu.offsets[:-1]] != 0) | _any(steps <= 0, cu.offsets)
        wrong |= (cu.values[cu.offsets[1:] - 1] != ids.counts) | (ids.counts > self.pack["capacity"])
        detail = f"cu_seqlens do not run from 0 to the row's tokens, or these exceed {self.pack['capacity']}"
        self.report("I1", detail, wrong)
        if "buckets" in self.pack:
            buckets, rows = Buckets.of(self.pack["buckets"]), np.arange(self.row, self.row + len(wrong))
            room = buckets.room_of(rows)
            is_piece = (ids.counts == room) & (cu.counts == 2)
            other = np.where(buckets.is_leftover(rows), ids.counts > room, ~is_piece)
            self.report("I1", "the row is not one piece of its bucket's length", other)
        uneven = np.zeros(len(wrong), np.bool_)
        for name in self.segment_columns:
            uneven |= lists[name].counts != cu.counts - 1
        self.report("I2", "a segment column does not have one element per segment", uneven)
        return not (wrong.any() or uneven.any())

    def _check_segments(
        self, lists: Mapping[str, _Lists], numbers: Mapping[str, np.ndarray], number: int
    ) -> tuple[_Segments, RowTotals]:
        """I2 and I6, for segments whose bounds are sound."""
        ids, cu = lists["input_ids"], lists["cu_seqlens"]
        offsets = lists["seq_lengths"].offsets
        bounds: Int64s = np.delete(np.diff(cu.values.astype(np.int64)), cu.offsets[1:-1] - 1)
        begins = offsets[:-1]
        ends = np.concatenate([[0], np.cumsum(bounds)])
        following = lists["next_token"].values.astype(np.int64)
        n_tokens, sum_sq = np.add.reduceat(bounds, begins), np.add.reduceat(bounds * bounds, begins)
        longest = np.maximum.reduceat(bounds, begins)
        wrong = _any(lists["seq_lengths"].values != bounds, offsets) | (numbers["n_tokens"] != n_tokens)
        wrong |= (numbers["sum_sq"] != sum_sq) | (numbers["max_seqlen"] != longest)
        self.report("I2", "seq_lengths, max_seqlen, n_tokens or sum_sq do not follow from cu_seqlens", wrong)
        n_loss = n_tokens - np.add.reduceat(following == NO_NEXT, begins, dtype=np.int64)
        self.report("I6", "n_loss_tokens is not the number of tokens with a target", numbers["n_loss_tokens"] != n_loss)
        rows = len(n_tokens)
        start = lists["doc_offset"].values
        segments = _Segments(
            file=np.full(len(bounds), number, np.int32),
            row=np.repeat(np.arange(self.row, self.row + rows), np.diff(offsets)),
            doc_id=lists["doc_id"].values,
            start=start,
            stop=start + bounds,
            first_token=ids.values[ends[:-1]].astype(np.int64),
            next_token=following,
            digest=np.zeros(len(bounds), np.uint64),
        )
        is_repeat = lists[REPEAT_COLUMN].values if self.has_repeats else None
        totals = RowTotals(
            rows=rows,
            tokens=int(ends[-1]),
            loss_tokens=int(n_loss.sum()),
            segments=len(bounds),
            sum_sq=int(sum_sq.sum()),
            max_row_sum_sq=int(sum_sq.max()),
            min_seqlen=int(bounds.min()),
            max_seqlen=int(longest.max()),
            repeat_tokens=None if is_repeat is None else int(bounds[is_repeat].sum()),
        )
        return segments, totals


def _lists(column: pa.ListArray) -> _Lists:
    """Correct for slices too: `.values` is the whole child, and the offsets say which part of it is meant."""
    offsets = column.offsets.to_numpy(zero_copy_only=True).astype(np.int64)
    values = column.values
    is_bits = pa.types.is_boolean(values.type)
    return _Lists(offsets - offsets[0], values.to_numpy(zero_copy_only=not is_bits)[offsets[0] : offsets[-1]])


def _any(flags: Bools, offsets: Int64s) -> Bools:
    """Whether any flag of each list is set: bool[rows]; empty lists have none."""
    cumulated = np.concatenate([[0], np.cumsum(flags)])
    return cumulated[offsets[1:]] > cumulated[offsets[:-1]]


def _join(parts: list[_Segments]) -> _Segments:
    names = ("file", "row", "doc_id", "start", "stop", "first_token", "next_token", "digest")
    dtypes = (np.int32, np.int64, np.uint64, np.int64, np.int64, np.int64, np.int64, np.uint64)
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts] or [np.empty(0, dtype)])
        for name, dtype in zip(names, dtypes, strict=True)
    }
    return _Segments(**joined)


def _check_documents(
    segments: _Segments, manifest: Mapping[str, Any], reference: _Reference | None
) -> Iterator[Violation]:
    """I4 and I5, over all shards: meet the ends of an id's segments with the beginnings at the same position.

    A document of 40 tokens in rows of 16, twice: two segments begin at 0; at 16 and at 32 two end and two begin; two
    end at 40, where none begins. The next tokens at 16 are the two that begin there, those at 40 are both -1.
    """
    if not len(segments.row):
        return
    pieces = segments
    if "buckets" in manifest["pack"]:
        segments = _with_last_tokens(segments)
    count = len(segments.row)
    doc_id = np.concatenate([segments.doc_id, segments.doc_id])
    place = _number_keys(doc_id, np.concatenate([segments.stop, segments.start]))
    ends_at, begins_at = place[:count], place[count:]
    places = int(place.max()) + 1
    ends, begins = np.bincount(ends_at, minlength=places), np.bincount(begins_at, minlength=places)
    is_head = segments.start == 0
    begins[begins_at[is_head]] = 0  # a document's beginning continues nothing
    # the order of tokens matches equal ones; it falls, so that the -1 of those that end here come last
    _, end_rank = _ranks(ends_at, -segments.next_token)
    begin_order, begin_rank = _ranks(begins_at, -segments.first_token)
    allowed = np.where(is_head, count if manifest["totals"].get("documents_repeated") else 1, ends[begins_at])
    everything = np.arange(count)
    detail = "a segment does not begin where its document's last one ended"
    yield from _per_file(manifest, segments, everything, begin_rank >= allowed, "I4", detail)
    continues = begin_order[~is_head[begin_order]]  # by position, and there by falling token
    first = np.concatenate([[0], np.cumsum(begins)])[ends_at]
    expected = np.full(count, NO_NEXT, np.int64)
    goes_on = end_rank < begins[ends_at]
    expected[goes_on] = segments.first_token[continues[(first + end_rank)[goes_on]]]
    wrong = segments.next_token != expected
    yield from _per_file(manifest, segments, everything, wrong, "I5", "next_token is not the document's next token")
    if reference is not None:
        yield from _compare_lengths(segments, manifest, reference)
        yield from _compare_shared(pieces, manifest, reference)
        if pieces is not segments:
            yield from _compare_targets(pieces, manifest, reference)


def _with_last_tokens(segments: _Segments) -> _Segments:
    """`segments`, and one of length 1 for each next token that begins none of them: the last of its document.

    At one position of one id, the next tokens 5, 5, 7 and a beginning with 5 leave the last tokens 5 and 7.
    """
    key = _number_keys(
        np.concatenate([segments.doc_id, segments.doc_id]),
        np.concatenate([segments.stop, segments.start]),
        np.concatenate([segments.next_token, segments.first_token]),
    )
    ends_at, begins_at = key[: len(segments.row)], key[len(segments.row) :]
    begins = np.bincount(begins_at, minlength=int(key.max()) + 1)
    _, rank = _ranks(ends_at, np.arange(len(ends_at)))
    last = np.flatnonzero((rank >= begins[ends_at]) & (segments.next_token != NO_NEXT))
    added = _Segments(
        file=segments.file[last],
        row=segments.row[last],
        doc_id=segments.doc_id[last],
        start=segments.stop[last],
        stop=segments.stop[last] + 1,
        first_token=segments.next_token[last],
        next_token=np.full(len(last), NO_NEXT, np.int64),
        digest=np.zeros(len(last), np.uint64),
    )
    return _join([segments, added])


def _number_keys(*keys: np.ndarray) -> Int64s:
    """A number for each tuple of keys, int64[n]: equal for equal tuples, and rising with them from 0."""
    order = np.lexsort(keys[::-1])
    changes = np.zeros(len(order), np.bool_)
    for key in keys:
        changes[1:] |= key[order][1:] != key[order][:-1]
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(changes)
    return numbers


def _ranks(group: Int64s, value: np.ndarray) -> tuple[Int64s, Int64s]:
    """The order by group and value, and each element's rank in its group by that order, from 0."""
    order = np.lexsort((value, group))
    first = np.concatenate([[0], np.cumsum(np.bincount(group))])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - first[group[order]]
    return order, rank


def _per_file(
    manifest: Mapping[str, Any], segments: _Segments, order: Int64s, wrong: Bools, invariant: str, detail: str
) -> Iterator[Violation]:
    """One violation per file for the segments `order[wrong]`."""
    culprits = order[wrong]
    for number in np.unique(segments.file[culprits]):
        here = culprits[segments.file[culprits] == number]
        name = manifest["files"][number]["name"]
        yield Violation(invariant, name, int(segments.row[here].min()), len(here), detail)


def _kept(store: TokenStore, manifest: Mapping[str, Any]) -> Int64s:
    """The tokens of every document that the policies leave, int64[documents]; with buckets a last target included."""
    lengths, capacity = store.lengths, manifest["pack"]["capacity"]
    if "buckets" in manifest["pack"]:
        kept = kept_pairs(lengths, Buckets.of(manifest["pack"]["buckets"]))
        return kept + (kept > 0)
    if manifest["drops"]["policy"] == "truncate":
        return np.minimum(lengths, capacity)
    if manifest["drops"]["policy"] == "drop":
        return np.where(lengths > capacity, 0, lengths)
    return lengths


def _compare_lengths(segments: _Segments, manifest: Mapping[str, Any], reference: _Reference) -> Iterator[Violation]:
    """I4 against the documents themselves: each is packed to the end that the overflow policy leaves it."""
    store = reference.store
    item, known = reference.find(segments.doc_id)
    everything = np.arange(len(known))
    yield from _per_file(manifest, segments, everything, ~known, "I4", "a document is not in the tokens folder")
    if not known.all():
        return
    kept = _kept(store, manifest)
    order = np.lexsort((segments.start, segments.doc_id))
    doc_id = segments.doc_id[order]
    is_last = np.concatenate([doc_id[1:] != doc_id[:-1], [True]])
    wrong = is_last & (segments.stop[order] != kept[item[order]]) & ~reference.is_shared(doc_id)
    detail = "a document does not end where the tokens folder and the overflow policy say"
    yield from _per_file(manifest, segments, order, wrong, "I4", detail)
    packed = np.zeros(store.documents, np.bool_)
    packed[item] = True
    lost = np.flatnonzero(~packed & (kept > 0) & ~reference.is_shared(store.doc_ids))
    if len(lost):
        detail = f"document {store.doc_ids[lost[0]]} is in no row and not in the drop record"
        yield Violation("I4", MANIFEST, None, len(lost), detail)


def _compare_shared(segments: _Segments, manifest: Mapping[str, Any], reference: _Reference) -> Iterator[Violation]:
    """I4 for ids of several documents: the segments are, as a bag, the pieces into which the policy cuts these."""
    store = reference.store
    item, start, stop = _pieces_of(np.flatnonzero(reference.is_shared(store.doc_ids)), manifest, store)
    has_flags = manifest["pack"].get(REPEAT_COLUMN, False) and store.has_repeats
    flags = store.is_repeat_of(item) if has_flags else np.zeros(len(item), np.bool_)
    expected = _digests(store.gather(item, start, stop), stop - start, flags)
    found = np.flatnonzero(reference.is_shared(segments.doc_id))
    key = _number_keys(
        np.concatenate([store.doc_ids[item], segments.doc_id[found]]),
        np.concatenate([start, segments.start[found]]),
        np.concatenate([expected, segments.digest[found]]),
    )
    wanted, got = (np.bincount(part, minlength=len(key)) for part in (key[: len(item)], key[len(item) :]))
    _, rank = _ranks(key[len(item) :], found)
    wrong = rank >= wanted[key[len(item) :]]
    detail = "a segment is not one of its repeated document's pieces, or one too many"
    yield from _per_file(manifest, segments, found, wrong, "I4", detail)
    missing = np.maximum(wanted - got, 0)
    if missing.any():
        document = store.doc_ids[item[np.argmax(missing[key[: len(item)]] > 0)]]
        detail = f"a piece of the repeated document {document} is in no row and not in the drop record"
        yield Violation("I4", MANIFEST, None, int(missing.sum()), detail)


def _pieces_of(documents: Int64s, manifest: Mapping[str, Any], store: TokenStore) -> tuple[Int64s, Int64s, Int64s]:
    """The item, start and stop of all pieces into which the policies cut these documents."""
    pack = manifest["pack"]
    if "buckets" in pack and len(documents):
        cut = Buckets.of(pack["buckets"])
        plan = decompose(store.lengths, cut.shortest, pack["capacity"], cut.overlong, cut.leftovers, pack["seed"])
        chosen = np.isin(plan.item, documents)
        return plan.item[chosen], plan.start[chosen], plan.stop[chosen]
    kept, capacity = _kept(store, manifest)[documents], pack["capacity"]
    pieces = -(-kept // capacity)
    item, kept = np.repeat(documents, pieces), np.repeat(kept, pieces)
    start = (np.arange(len(item)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * capacity
    return item, start, np.minimum(start + capacity, kept)


def _compare_targets(segments: _Segments, manifest: Mapping[str, Any], reference: _Reference) -> Iterator[Violation]:
    """I5 against the documents: with buckets every segment has a next token, also where no other tells it."""
    item, known = reference.find(segments.doc_id)
    alone = known & ~reference.is_shared(segments.doc_id) & (segments.stop <= reference.store.lengths[item])
    wrong = np.zeros(len(item), np.bool_)
    wrong[alone] = reference.store.next_token(item[alone], segments.stop[alone]) != segments.next_token[alone]
    detail = "next_token is not that of the tokens folder"
    yield from _per_file(manifest, segments, np.arange(len(item)), wrong, "I5", detail)


@njit(cache=True, nogil=True)
def _digests(tokens: np.ndarray, lengths: Int64s, is_repeat: Bools) -> UInt64s:
    """A 64-bit digest of each segment's tokens and flag; the segments lie one after the other in `tokens`."""
    digests = np.empty(lengths.size, np.uint64)
    place = 0
    for segment in range(lengths.size):
        digest = np.uint64(2 * lengths[segment] + is_repeat[segment])
        for index in range(place, place + lengths[segment]):
            digest = (digest ^ np.uint64(tokens[index])) * np.uint64(0x9E3779B97F4A7C15)
            digest ^= digest >> np.uint64(29)
        digests[segment] = digest
        place += lengths[segment]
    return digests


def _check_totals(total: RowTotals, segments: _Segments, manifest: Mapping[str, Any]) -> Iterator[Violation]:
    """The manifest's totals, and that what went in is what came out and what was dropped."""
    for name, value in total.as_json().items():
        if manifest["totals"].get(name) != value:
            yield Violation(
                "totals", MANIFEST, None, 1, f"{name} is {manifest['totals'].get(name)}, the rows have {value}"
            )
    drops = manifest["drops"]
    target_only = drops.get("tokens_target_only", 0)
    ids, repeated = len(np.unique(segments.doc_id)), manifest["totals"].get("documents_repeated", 0)
    heads = int(np.count_nonzero(segments.start == 0))
    if repeated and heads - ids != repeated:  # without any, I4 names a second beginning
        detail = f"documents_repeated is {repeated}, the rows have {heads} beginnings of {ids} documents"
        yield Violation("totals", MANIFEST, None, 1, detail)
    documents = ids + repeated
    accounted = {
        "tokens_in": total.tokens + target_only + drops["tokens"],
        "documents_in": documents + drops["documents"] + drops["documents_empty"],
    }
    for name, value in accounted.items():
        if drops[name] != value:
            detail = f"{name} is {drops[name]}, the rows and the drop record have {value}"
            yield Violation("totals", MANIFEST, None, 1, detail)
    if "buckets" in manifest["pack"]:
        yield from _check_buckets(total, documents, manifest)


def _check_buckets(total: RowTotals, documents: int, manifest: Mapping[str, Any]) -> Iterator[Violation]:
    """That buckets hold all rows and tokens, and that each packed document has one token that is a target only."""
    buckets = Buckets.of(manifest["pack"]["buckets"])
    expected = {
        "rows of all buckets": (sum(buckets.rows), total.rows),
        "tokens of all buckets": (buckets.tokens, total.tokens),
        "targets": (total.tokens, total.loss_tokens),
        "tokens_target_only": (manifest["drops"].get("tokens_target_only"), documents),
    }
    for name, (listed, found) in expected.items():
        if listed != found:
            yield Violation("totals", MANIFEST, None, 1, f"{name} are {listed}, the rows have {found}")
