"""The tokens of a corpus, mapped: lengths for the planner, fragments for the writer.

Documents are numbered in file order, across all files and record batches; `item` is such a number. A fragment is
(item, start, stop). Kernels find the record batch of an item by bisection and read its buffers by address.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import carray, njit

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing.addresses import address_of, bits_of, pointer, read_bit
from seqmill.packing.schema import NO_NEXT, REPEAT_COLUMN, token_dtype
from seqmill.storage import read_arrow

Int64s = npt.NDArray[np.int64]

# Columns of the table of record batches, int64[batches, 10]. "Wide" is 1 where list offsets are int64, else 0.
(
    _OFFSETS,
    _OFFSETS_WIDE,
    _VALUES,
    _VALUE_COUNT,
    _DOC_IDS,
    _NAMES,
    _NAMES_WIDE,
    _NAME_BYTES,
    _REPEAT,
    _REPEAT_BIT,
) = range(10)
_NOT_IN_BATCH = -1
_FNV_PRIME = np.uint64(0x100000001B3)
_FNV_BASIS = np.uint64(0xCBF29CE484222325)


class TokenStore:
    """Random access to the documents of token tables.

    Attributes:
        documents: number of documents.
        vocab_size: every token id is below it.
        sources: names; `source_of` gives positions in this list.
        manifest: the tokens folder's manifest, or what stands for it.
        dtype: what `gather` gives, uint16 or uint32.
        has_repeats: whether the tables have a column is_repeat.
    """

    def __init__(self, tables: Sequence[pa.Table], manifest: Mapping[str, Any]) -> None:
        """Describe `tables`, one per file in order; `manifest` needs "vocab_size" and "sources".

        Raises:
            UserError: a column is missing, has nulls or another type, token types differ between batches, or some
                tables have a column is_repeat and others not.
        """
        self.manifest = manifest
        self.vocab_size: int = manifest["vocab_size"]
        self.sources: list[str] = list(manifest["sources"])
        self.dtype = token_dtype(self.vocab_size)
        with_repeats = {REPEAT_COLUMN in table.column_names for table in tables}
        if len(with_repeats) > 1:
            raise UserError(f"some token tables have a column {REPEAT_COLUMN}, others not; write them in one run")
        self.has_repeats = True in with_repeats
        self._batches = [batch for table in tables for batch in _checked(table).to_batches() if batch.num_rows]
        sizes = [batch.num_rows for batch in self._batches]
        self._first_item = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.documents = int(self._first_item[-1])
        described = [_describe(batch) for batch in self._batches]
        self._table = np.array(described, np.int64).reshape(-1, 10)
        stored = {batch.column("input_ids").type.value_type for batch in self._batches}
        if len(stored) > 1:
            raise UserError(
                f"token columns have several types ({', '.join(map(str, stored))}); tokenize again in one run"
            )
        self._sample = np.empty(0, stored.pop().to_pandas_dtype() if stored else self.dtype)

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Map a finished tokens folder.

        Raises:
            UserError: it is not finished or not a tokens folder.
        """
        manifest = open_manifest(Path(folder), "tokens")
        return cls([read_arrow(Path(folder) / file["name"]) for file in manifest["files"]], manifest)

    @cached_property
    def lengths(self) -> Int64s:
        """Tokens per document, int64[documents]."""
        lengths = np.empty(self.documents, np.int64)
        for first, batch in zip(self._first_item, self._batches, strict=False):
            np.subtract(
                *_both_ends(batch.column("input_ids")), out=lengths[first : first + batch.num_rows], casting="unsafe"
            )
        return lengths

    @cached_property
    def doc_ids(self) -> npt.NDArray[np.uint64]:
        """Ids of all documents, uint64[documents]."""
        return self.doc_id_of(np.arange(self.documents))

    def length_of(self, item: Int64s) -> Int64s:
        """Tokens of these documents, int64[len(item)]."""
        out = np.empty(len(item), np.int64)
        _check(_gather_lengths(self._table, self._first_item, item, out), "document")
        return out

    def doc_id_of(self, item: Int64s) -> npt.NDArray[np.uint64]:
        """The ids of these documents, uint64[len(item)]."""
        out = np.empty(len(item), np.uint64)
        _check(_gather_doc_ids(self._table, self._first_item, item, out), "document")
        return out

    def source_of(self, item: Int64s) -> npt.NDArray[np.int16]:
        """The sources of these documents as positions in `sources`, int16[len(item)].

        Raises:
            UserError: a document names a source that the manifest does not list.
        """
        hashes = np.empty(len(item), np.uint64)
        _check(_hash_names(self._table, self._first_item, item, hashes), "document")
        known = np.array([_hash_name(np.frombuffer(name.encode(), np.uint8)) for name in self.sources], np.uint64)
        order = np.argsort(known)
        place = np.searchsorted(known[order], hashes)
        is_known = place < len(known)
        is_known[is_known] = known[order][place[is_known]] == hashes[is_known]
        if not is_known.all():
            document = int(item[np.argmin(is_known)])
            raise UserError(
                f"document {document} is of a source that the manifest does not list ({', '.join(self.sources)}); "
                "run the stage that wrote the tokens again"
            )
        return order[place].astype(np.int16)

    def is_repeat_of(self, item: Int64s) -> npt.NDArray[np.bool_]:
        """The column is_repeat of these documents, bool[len(item)]; False where the tables have none."""
        out = np.zeros(len(item), np.bool_)
        if self.has_repeats:
            _check(_gather_repeats(self._table, self._first_item, item, out), "document")
        return out

    def gather(self, item: Int64s, start: Int64s, stop: Int64s) -> npt.NDArray[np.unsignedinteger]:
        """Fragments one after the other in one array, `dtype`[sum(stop - start)].

        Raises:
            UserError: a token id is not below `vocab_size`.
            IndexError: a fragment does not lie inside its document.
        """
        out = np.empty(int((stop - start).sum()), self.dtype)
        result, largest = _gather_tokens(self._table, self._first_item, item, start, stop, out, self._sample)
        _check(result, "fragment")
        if largest >= self.vocab_size:
            raise UserError(
                f"the tokens hold id {largest}, but their vocabulary has {self.vocab_size}; tokenize again with the "
                "tokenizer that the manifest names"
            )
        return out

    def next_token(self, item: Int64s, stop: Int64s) -> npt.NDArray[np.int32]:
        """The token at `stop` of each document, int32[len(item)], or -1 where the document ends there."""
        out = np.empty(len(item), np.int32)
        _check(_gather_next(self._table, self._first_item, item, stop, out, self._sample), "fragment")
        return out


def _checked(table: pa.Table) -> pa.Table:
    """`table` with the columns that are read, in types the kernels know: three, and is_repeat where there is one."""
    missing = [name for name in ("doc_id", "input_ids", "source") if name not in table.column_names]
    if missing:
        raise UserError(
            f"the token table has no column {missing[0]!r}, only {', '.join(table.column_names)}; tokenize again"
        )
    optional = [REPEAT_COLUMN] if REPEAT_COLUMN in table.column_names else []
    table = table.select(["doc_id", "input_ids", "source", *optional])
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            raise UserError(f"the token table has {column.null_count} nulls in {name!r}; tokenize again")
    ids = table.schema.field("input_ids").type
    is_list = pa.types.is_list(ids) or pa.types.is_large_list(ids)
    if not is_list or ids.value_type not in (pa.uint16(), pa.uint32()):
        raise UserError(f"input_ids has type {ids}, but lists of uint16 or uint32 are needed; tokenize again")
    if optional and table.schema.field(REPEAT_COLUMN).type != pa.bool_():
        found = table.schema.field(REPEAT_COLUMN).type
        raise UserError(f"{REPEAT_COLUMN} has type {found}, but bool is needed; rename that column or write it again")
    source = table.schema.field("source").type
    if not (pa.types.is_string(source) or pa.types.is_large_string(source)):
        table = table.set_column(2, "source", table.column("source").cast(pa.string()))
    return table.set_column(0, "doc_id", table.column("doc_id").cast(pa.uint64()))


def _describe(batch: pa.RecordBatch) -> tuple[int, ...]:
    ids, names = batch.column("input_ids"), batch.column("source")
    _, offsets_buffer, bytes_buffer = names.buffers()
    names_wide = pa.types.is_large_string(names.type)
    return (
        address_of(ids.offsets),  # of this slice of the list array; they count from the start of .values
        pa.types.is_large_list(ids.type),
        address_of(ids.values),
        len(ids.values),
        address_of(batch.column("doc_id")),
        offsets_buffer.address + names.offset * (8 if names_wide else 4),
        names_wide,
        bytes_buffer.address if bytes_buffer is not None else 0,
        *(bits_of(batch.column(REPEAT_COLUMN)) if REPEAT_COLUMN in batch.schema.names else (0, 0)),
    )


def _both_ends(ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    offsets = ids.offsets.to_numpy(zero_copy_only=True)
    return offsets[1:], offsets[:-1]


def _check(bad: int, what: str) -> None:
    if bad != _NOT_IN_BATCH:
        raise IndexError(f"{what} {bad} of the request lies outside the token tables")


@njit(cache=True, nogil=True)
def _batch_of(first_item: Int64s, item: int) -> int:
    """The record batch that holds a document: the last one that does not begin after it; -1 outside all."""
    if item < 0 or item >= first_item[-1]:
        return -1
    low, high = 0, first_item.size - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if first_item[middle] <= item:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _bounds(address: int, wide: int, index: int) -> tuple[np.int64, np.int64]:
    """Offsets `index` and `index + 1` at an address."""
    if wide:
        offsets = carray(pointer(address), index + 2, np.int64)
        return offsets[index], offsets[index + 1]
    narrow = carray(pointer(address), index + 2, np.int32)
    return np.int64(narrow[index]), np.int64(narrow[index + 1])


@njit(cache=True, nogil=True)
def _document(table: Int64s, first_item: Int64s, item: int) -> tuple[int, int, int]:
    """(record batch, first token, one past the last) in the batch's values; batch -1 for anything out of range."""
    batch = _batch_of(first_item, item)
    if batch < 0:
        return -1, 0, 0
    begin, end = _bounds(table[batch, _OFFSETS], table[batch, _OFFSETS_WIDE], item - first_item[batch])
    if begin < 0 or end < begin or end > table[batch, _VALUE_COUNT]:
        return -1, 0, 0
    return batch, begin, end


@njit(cache=True, nogil=True)
def _gather_tokens(
    table: Int64s, first_item: Int64s, item: Int64s, start: Int64s, stop: Int64s, out: np.ndarray, sample: np.ndarray
) -> tuple[int, np.int64]:
    """Copy fragments to `out`: (-1, largest id), or (number of the bad fragment, 0)."""
    place = 0
    largest = np.uint32(0)
    for fragment in range(item.size):
        batch, begin, end = _document(table, first_item, item[fragment])
        count = stop[fragment] - start[fragment]
        if batch < 0 or start[fragment] < 0 or count < 0 or stop[fragment] > end - begin or place + count > out.size:
            return fragment, np.int64(0)
        values = carray(pointer(table[batch, _VALUES]), table[batch, _VALUE_COUNT], sample.dtype)
        values = values[begin + start[fragment] : begin + stop[fragment]]
        target = out[place : place + count]
        top = np.uint32(0)
        for index in range(count):
            token = values[index]
            target[index] = token
            top = max(top, np.uint32(token))
        largest = max(largest, top)
        place += count
    return _NOT_IN_BATCH, np.int64(largest)


@njit(cache=True, nogil=True)
def _gather_next(
    table: Int64s, first_item: Int64s, item: Int64s, stop: Int64s, out: npt.NDArray[np.int32], sample: np.ndarray
) -> int:
    for fragment in range(item.size):
        batch, begin, end = _document(table, first_item, item[fragment])
        if batch < 0 or stop[fragment] < 0 or stop[fragment] > end - begin:
            return fragment
        values = carray(pointer(table[batch, _VALUES]), table[batch, _VALUE_COUNT], sample.dtype)
        position = begin + stop[fragment]
        out[fragment] = np.int64(values[position]) if position < end else NO_NEXT
    return _NOT_IN_BATCH


@njit(cache=True, nogil=True)
def _gather_lengths(table: Int64s, first_item: Int64s, item: Int64s, out: Int64s) -> int:
    for index in range(item.size):
        batch, begin, end = _document(table, first_item, item[index])
        if batch < 0:
            return index
        out[index] = end - begin
    return _NOT_IN_BATCH


@njit(cache=True, nogil=True)
def _gather_doc_ids(table: Int64s, first_item: Int64s, item: Int64s, out: npt.NDArray[np.uint64]) -> int:
    for index in range(item.size):
        batch = _batch_of(first_item, item[index])
        if batch < 0:
            return index
        within = item[index] - first_item[batch]
        out[index] = carray(pointer(table[batch, _DOC_IDS]), within + 1, np.uint64)[within]
    return _NOT_IN_BATCH


@njit(cache=True, nogil=True)
def _gather_repeats(table: Int64s, first_item: Int64s, item: Int64s, out: npt.NDArray[np.bool_]) -> int:
    for index in range(item.size):
        batch = _batch_of(first_item, item[index])
        if batch < 0:
            return index
        out[index] = read_bit(table[batch, _REPEAT], table[batch, _REPEAT_BIT] + item[index] - first_item[batch])
    return _NOT_IN_BATCH


@njit(cache=True, nogil=True)
def _hash_name(name: npt.NDArray[np.uint8]) -> np.uint64:
    """FNV-1a, 64 bits: plenty for the handful of names of a corpus."""
    digest = _FNV_BASIS
    for byte in name:
        digest = (digest ^ np.uint64(byte)) * _FNV_PRIME
    return digest


@njit(cache=True, nogil=True)
def _hash_names(table: Int64s, first_item: Int64s, item: Int64s, out: npt.NDArray[np.uint64]) -> int:
    for index in range(item.size):
        batch = _batch_of(first_item, item[index])
        if batch < 0:
            return index
        begin, end = _bounds(table[batch, _NAMES], table[batch, _NAMES_WIDE], item[index] - first_item[batch])
        out[index] = _hash_name(carray(pointer(table[batch, _NAME_BYTES]), end, np.uint8)[begin:end])
    return _NOT_IN_BATCH
