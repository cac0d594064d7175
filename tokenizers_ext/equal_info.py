"""Equal-info windows as a tokenizer: a dictionary of byte strings, or one for each group of documents.

An id stands for the bytes of one window of the code, so every sequence of ids is text and every text has ids, whatever
its bytes. With several tables a document begins with the id of the one that it is written in:

    one table       the cat sat      [the ][cat ][sat]
    several         the cat sat      <table 0>[the ][cat ][sat]        кот сидел      <table 3>[кот ][сидел]
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from seqmill.compress.dictionary import Dictionary
from seqmill.compress.healing import HealedPrompt, heal
from seqmill.compress.parsing import parse
from seqmill.compress.trie import Trie
from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import (
    as_large_binary,
    document_offsets,
    flat_ids,
    id_type,
    list_array,
    offsets_and_bytes,
)
from seqmill.tokenizers_ext.gather import concatenate_pieces

UINT32_MAX = 2**32 - 1
PROBE = 1024  # bytes of a document by which its table is chosen: the one that needs the fewest windows for them


@dataclass(frozen=True, eq=False)
class EqualInfoEncoder:
    """A tokenizer of windows: lossless for arbitrary bytes."""

    tables: Sequence[Dictionary]  # all of as many strings
    parse_name: str = "longest"  # how text is cut: "longest", or "fewest" windows
    kind: str = "equal-info"

    def __post_init__(self) -> None:
        parse(self.parse_name)
        sizes = sorted({len(table) for table in self.tables})
        if len(sizes) != 1:
            raise UserError(f"tables of {', '.join(map(str, sizes)) or 'no'} strings: all need as many")
        if sum(len(table.blob) for table in self.tables) > UINT32_MAX:
            raise UserError(f"the strings of all tables have more than {UINT32_MAX} bytes: use fewer tables")

    @property
    def strings(self) -> int:
        """Ids that stand for bytes; special ids lie above."""
        return len(self.tables[0])

    @property
    def vocab_size(self) -> int:
        """Strings, the end of a document, padding, and the marks of tables where there are several."""
        return self.strings + len(self.special_ids)

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        """ "eos", "pad", and "table 0", "table 1", ... where there are several."""
        names = ["eos", "pad", *(f"table {number}" for number in range(len(self.tables)) if len(self.tables) > 1)]
        return {name: self.strings + place for place, name in enumerate(names)}

    @cached_property
    def fingerprint(self) -> str:
        """Of the strings of all tables and the way of cutting."""
        parts = ["seqmill equal-info", self.parse_name, *(table.fingerprint for table in self.tables)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @cached_property
    def tries(self) -> list[Trie]:
        """The tables, to be matched against text."""
        return [Trie.of(table) for table in self.tables]

    @cached_property
    def pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of the strings of all tables, one table after the other, and of special ids, which have none."""
        ends = np.cumsum([0, *(len(table.blob) for table in self.tables)])
        starts = [table.offsets[:-1] + end for table, end in zip(self.tables, ends, strict=False)]
        tail = np.full(len(self.special_ids) + 1, ends[-1])
        offsets = np.concatenate([*starts, tail]).astype(np.uint32)
        return offsets, np.concatenate([table.blob for table in self.tables])

    def encode(self, texts: pa.Array) -> pa.ListArray:
        """The windows of every document; see `Encoder.encode`."""
        binary = as_large_binary(texts)
        if len(self.tables) > 1:
            return self._encode_by_table(binary)
        offsets, data = offsets_and_bytes(binary)
        ids, ends = self._cut(0, data, offsets)
        return list_array(ends, ids, self.vocab_size)

    def decode(self, ids: pa.ListArray) -> pa.LargeBinaryArray:
        """The bytes of every document, special ids left out; see `Encoder.decode`.

        Raises:
            UserError: an id lies outside the vocabulary; or there are several tables, and the first id of a document
                does not say which one it is written in.
        """
        values, offsets = flat_ids(ids, self.vocab_size), document_offsets(ids)
        return concatenate_pieces(self._places(values, offsets), offsets, *self.pieces)

    def lengths_of(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Bytes that each id of whole documents stands for: int64[ids].

        Args:
            values: integers[ids] of all documents, inside the vocabulary.
            offsets: int64[documents + 1] into `values`.

        Raises:
            UserError: as of `decode`.
        """
        piece_offsets = self.pieces[0].astype(np.int64)
        return np.diff(piece_offsets)[self._places(values, offsets)]

    def heal(self, ids: Sequence[int]) -> HealedPrompt:
        """The ids of one prompt without the last, and what can stand in its place.

        At least one id is kept, so a prompt of one stays as it is, and may go on with any id.

        Raises:
            UserError: there are several tables, and the first id does not say which one.
        """
        table, first = 0, 0
        if len(self.tables) > 1 and len(ids):
            table, first = ids[0] - self.special_ids["table 0"], 1
            if not 0 <= table < len(self.tables):
                raise UserError(f"id {ids[0]} at a prompt's beginning says no table: encode the prompt as a document")
        if len(ids) < 2 or ids[-1] >= self.strings:
            return HealedPrompt(np.array(ids, np.int64), b"", range(self.vocab_size))
        healed = heal(self.tables[table], np.array(ids[first:]))
        return HealedPrompt(np.concatenate([ids[:first], healed.ids]).astype(np.int64), healed.prefix, healed.next_ids)

    def table_of(self, texts: pa.LargeBinaryArray) -> np.ndarray:
        """Which table writes the first bytes of each document in the fewest windows: int64[documents].

        Of equals the first; an empty document is written in table 0.
        """
        offsets, data = offsets_and_bytes(texts)
        lengths = np.minimum(np.diff(offsets), PROBE)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        probes = data[np.arange(ends[-1]) - np.repeat(ends[:-1] - offsets[:-1], lengths)]
        windows = [np.diff(self._cut(table, probes, ends)[1]) for table in range(len(self.tables))]
        return np.argmin(windows, axis=0)

    def _cut(self, table: int, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        narrow = id_type(self.vocab_size).to_pandas_dtype()
        return parse(self.parse_name)(self.tries[table], data, offsets, narrow)

    def _encode_by_table(self, texts: pa.LargeBinaryArray) -> pa.ListArray:
        """Encode the documents of one table after the other, and put them back into their order."""
        table_of = self.table_of(texts)
        order = np.argsort(table_of, kind="stable")
        pieces, sizes = [], np.zeros(len(texts), np.int64)
        for table in range(len(self.tables)):
            chosen = order[table_of[order] == table]
            offsets, data = offsets_and_bytes(texts.take(pa.array(chosen)))
            ids, ends = self._cut(table, data, offsets)
            pieces.append(np.insert(ids, ends[:-1], self.special_ids[f"table {table}"]))
            sizes[chosen] = np.diff(ends) + 1
        values = list_array(np.concatenate([[0], np.cumsum(sizes[order])]), np.concatenate(pieces), self.vocab_size)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return values.take(pa.array(back))

    def _places(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Where each id's bytes stand among those of all tables."""
        if len(self.tables) == 1:
            return values
        sizes = np.diff(offsets)
        first = values[offsets[:-1][sizes > 0]].astype(np.int64) - self.special_ids["table 0"]
        if len(first) and first.min() < 0:
            document = int(np.flatnonzero(sizes > 0)[int(first.argmin())])
            raise UserError(
                f"document {document} does not begin with the id of a table, {self.special_ids['table 0']} to "
                f"{self.vocab_size - 1}: without it its ids mean nothing; decode documents from their first id "
                "on, and where single ids are looked at (merging, traps) use a tokenizer of one table"
            )
        shift = np.repeat(first * self.strings, sizes[sizes > 0])
        special = values >= self.strings
        above = values.astype(np.int64) + (len(self.tables) - 1) * self.strings
        return np.where(special, above, values + shift)
