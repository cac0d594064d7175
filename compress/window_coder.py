"""Bytes as windows of W bits by what a model expects, and exactly back: the stop-cell code.

A window is a number below N0. Coding a byte narrows the numbers that the window can still have, each byte's share as
large as its frequency, and after each byte one number, the first that is left, means "the window ends here":

    numbers 0..99, a and b equally frequent
    a      0..49         0 now says "a"
    ab     1 + 24..48    25 now says "ab": of the 49 that were left, b got the upper half
    aba    26..37 ...

A byte that would get no number ends the window and begins the next one, where the model has forgotten everything. So
every number below N0 is some text, no two are the same text, and nothing is padded or ambiguous.

One source serves two ways of computing: compiled with 64-bit integers where N0 << precision fits them, and as it stands
with Python's integers for longer windows. No float anywhere, and no byte of text that could not be coded.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np

from seqmill.compress.byte_model import BYTE_VALUES, ByteModel, check_frequencies
from seqmill.compress.code_range import code_range
from seqmill.compress.views import WIDEST_ID, from_view, to_view, view_bits
from seqmill.errors import UserError

TOGETHER = 4096  # documents, or windows to decode, whose next bytes the model is asked for in one call
KNOWN_CONTEXTS = 1 << 14  # kept with their frequencies: 3 kB each, taken as they are met
DOCUMENT_CONTEXT = 64  # bytes that a model which is never reset looks back
ROOM = 64  # bytes that a window may grow before its text is taken out of the decoder's buffer
EMPTY = 0  # the row of the context of no bytes
UNKNOWN = -1
BLOCK_BYTES = 16 << 20  # of documents that are coded together


@dataclass(frozen=True, eq=False)
class WindowCoder:
    """A lossless code of any bytes by windows of `window` bits. One thread at a time: it remembers contexts.

    Windows of up to 20 bits are strings of a dictionary: `builders.stopcell` lists it, and a trie then codes by it
    without a model. The end of a document is outside the code; it closes the document's last window.
    """

    model: ByteModel
    window: int = 16  # bits, 8 to 128
    specials: int | None = None  # numbers of a window kept for special ids; None: 64 at 16 bits, else none
    view: int | None = None  # ids below 256 or 65,536; None: one id a window, up to 64 bits (65,536 above)
    resets_model: bool = True  # False: the model goes on over windows, 64 bytes back (Lester et al. 2024)
    exact: bool = False  # True: Python's integers even where 64 bits would do, to compare with

    def __post_init__(self) -> None:
        if 1 << self.model.precision > self.numbers:
            raise UserError(
                f"a model of {self.model.precision} bits with {self.numbers} numbers of a window: not every byte would "
                f"get one; its frequencies must add up to {self.numbers} or less"
            )
        view_bits(self.window, self.view)

    @property
    def numbers(self) -> int:
        """N0: the numbers of a window that stand for text."""
        return code_range(self.window, self.specials)

    @property
    def compiled(self) -> bool:
        """Whether 64 bits hold every product of a number and a frequency."""
        return not self.exact and self.numbers << self.model.precision < 1 << 64

    def encode(self, text: bytes) -> np.ndarray:
        """uint16, uint32 or uint64[ids] of one document; none of an empty one."""
        ids, _ = self.encode_batch(np.frombuffer(text, np.uint8), np.array([0, len(text)]))
        return ids

    def decode(self, ids: np.ndarray | Sequence[int]) -> bytes:
        """The bytes of one document.

        Raises:
            UserError: an id or a window's number is out of range, or the ids end within a window.
        """
        data, _ = self.decode_batch(_as_column(ids), np.array([0, len(ids)]))
        return data.tobytes()

    def encode_batch(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of many documents, coded side by side: the model is called once for all their next bytes.

        Args:
            data: uint8[...], the bytes of all documents.
            offsets: int64[documents + 1] into `data`.

        Returns:
            ids of all documents, and their offsets int64[documents + 1].
        """
        bits = view_bits(self.window, self.view)
        found = [(np.zeros(0, np.uint64), np.zeros(1, np.int64))]
        for first, last in _blocks(offsets):
            found.append(self._encode_together(data, offsets[first : last + 1]))
        numbers, ends = _end_to_end(found)
        if self.window % bits:
            return _each(numbers, ends, lambda part: to_view(part, self.window, bits))
        return to_view(numbers, self.window, bits), ends * (self.window // bits)

    def decode_batch(self, ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `encode_batch`: bytes uint8[...] of all documents, and their offsets.

        Raises:
            UserError: an id or a window's number is out of range, or a document's ids end within a window.
        """
        if len(ids) and not (np.issubdtype(ids.dtype, np.integer) and ids.min() >= 0):
            raise UserError(f"ids of type {ids.dtype}, the least {ids.min()}: integers of 0 or more are needed")
        bits = view_bits(self.window, self.view)
        numbers, ends = _each(
            ids[offsets[0] : offsets[-1]], offsets - offsets[0], lambda part: from_view(part, self.window, bits)
        )
        if len(numbers) and numbers.max() >= self.numbers:
            raise UserError(
                f"a window's number is {numbers.max()}, but only those below {self.numbers} stand for text: a special "
                "id, or ids of another code"
            )
        texts, which = self._texts_of(numbers, ends)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        data = np.frombuffer(b"".join([texts[k] for k in which.tolist()]), np.uint8)
        behind = np.concatenate([[0], np.cumsum(lengths[which])])
        return data, behind[ends] if self.resets_model else behind

    @cached_property
    def _known(self) -> "_KnownContexts":
        return _KnownContexts(self.model)

    @cached_property
    def _arithmetic(self) -> "_Arithmetic":
        precision = self.model.precision
        if self.compiled:
            unsigned = np.uint64
            return _Arithmetic(
                _push, _pull, self._known.cumulative, np.dtype(unsigned), unsigned(self.numbers), unsigned(1),
                unsigned(precision),
            )  # fmt: skip
        exact = self._known.cumulative.data  # an element of it is a Python integer
        return _Arithmetic(_push.py_func, _pull.py_func, exact, np.dtype(object), self.numbers, 1, precision)

    def _encode_together(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of all windows of some documents, and where each document's end."""
        how, documents = self._arithmetic, len(offsets) - 1
        begin, end = offsets[:-1].astype(np.int64), offsets[1:].astype(np.int64)
        position, cursor = begin.copy(), begin - offsets[0]
        state = _State.at_root(documents, how.dtype)
        numbers = np.empty(offsets[-1] - offsets[0], how.dtype)  # a byte a window is the worst there is
        while True:
            how.push(
                data, position, end, *state.arrays, cursor, numbers, how.cumulative, self._known.child, how.whole,
                how.one, how.precision, self.resets_model,
            )  # fmt: skip
            waiting = np.flatnonzero(position < end)
            if not len(waiting):
                break
            back = state.length[waiting] if self.resets_model else position[waiting] - begin[waiting]
            if not self.resets_model:
                back = np.minimum(back, DOCUMENT_CONTEXT)
            places = position[waiting].tolist()
            contexts = [data[at - size : at].tobytes() for at, size in zip(places, back.tolist(), strict=True)]
            self._ask(contexts, waiting, state)
        first = begin - offsets[0]
        ends = np.concatenate([[0], np.cumsum(cursor - first)])
        taken = np.arange(ends[-1]) + np.repeat(first - ends[:-1], cursor - first)
        numbers = numbers[taken]
        return (numbers.astype(np.uint64) if self.window <= 64 else numbers.astype(object)), ends

    def _texts_of(self, numbers: np.ndarray, ends: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Texts, and which of them follow each other: of distinct windows, or of documents if the model goes on."""
        if not self.resets_model:
            return self._decode_together(numbers, ends[:-1], ends[1:]), np.arange(len(ends) - 1)
        distinct, which = np.unique(numbers, return_inverse=True)
        every = np.arange(len(distinct))
        return self._decode_together(distinct, every, every + 1), which

    def _decode_together(self, numbers: np.ndarray, first: np.ndarray, last: np.ndarray) -> list[bytes]:
        """The text of each run of windows numbers[first:last]."""
        found: list[bytes] = []
        codes = numbers.astype(self._arithmetic.dtype)
        for begin in range(0, len(first), TOGETHER):
            block = slice(begin, begin + TOGETHER)
            found += self._decode_block(codes, first[block].copy(), last[block])
        return found

    def _decode_block(self, codes: np.ndarray, cursor: np.ndarray, last: np.ndarray) -> list[bytes]:
        how, runs = self._arithmetic, len(cursor)
        state = _State.at_root(runs, how.dtype)
        room, filled = np.empty((runs, ROOM), np.uint8), np.zeros(runs, np.int64)
        texts = [bytearray() for _ in range(runs)]
        while True:
            how.pull(
                codes, cursor, last, *state.arrays, room, filled, how.cumulative, self._known.child, how.whole,
                how.one, how.precision, self.resets_model,
            )  # fmt: skip
            for run in np.flatnonzero(filled).tolist():
                texts[run] += room[run, : filled[run]].tobytes()
            filled[:] = 0
            going_on = cursor < last
            if not going_on.any():
                return [bytes(text) for text in texts]
            waiting = np.flatnonzero(going_on & (state.row == UNKNOWN))
            back = state.length[waiting].tolist() if self.resets_model else [DOCUMENT_CONTEXT] * len(waiting)
            contexts = [bytes(texts[run][-size:]) for run, size in zip(waiting.tolist(), back, strict=True)]
            self._ask(contexts, waiting, state)

    def _ask(self, contexts: list[bytes], waiting: np.ndarray, state: "_State") -> None:
        """Give those who wait the rows of their contexts, and remember them as continuations of the rows before."""
        if not len(waiting):
            return
        before = state.before[waiting] if self.resets_model else np.full(len(waiting), UNKNOWN)
        state.row[waiting] = self._known.rows(contexts, before, state.byte[waiting])


@dataclass(frozen=True)
class _Arithmetic:
    """The two loops, and the integers that they compute with: compiled and of 64 bits, or Python's."""

    push: Callable[..., None]
    pull: Callable[..., None]
    cumulative: Any
    dtype: np.dtype
    whole: Any  # N0
    one: Any
    precision: Any


@dataclass(frozen=True, eq=False)
class _State:
    """Of every document that is encoded, or run of windows that is decoded."""

    row: np.ndarray  # int64: of the context's frequencies; UNKNOWN: the model must be asked
    before: np.ndarray  # int64: the row of the context without its last byte,
    byte: np.ndarray  # uint8: and that byte
    length: np.ndarray  # int64: bytes of the window so far
    size: np.ndarray  # numbers that the window can still have,
    start: np.ndarray  # and the first of them: it says that the window ends here

    @classmethod
    def at_root(cls, count: int, dtype: np.dtype) -> "_State":
        """All windows empty."""
        numbers = [np.zeros(count, np.int64) for _ in range(3)]
        row, before, length = numbers
        return cls(row, before, np.zeros(count, np.uint8), length, np.zeros(count, dtype), np.zeros(count, dtype))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.row, self.before, self.byte, self.length, self.size, self.start


class _KnownContexts:
    """Cumulative frequencies by context: a tree that grows as text asks, until it is full, and rows for one use."""

    def __init__(self, model: ByteModel) -> None:
        self.model = model
        rows = KNOWN_CONTEXTS + TOGETHER
        self.cumulative = np.zeros((rows, BYTE_VALUES + 1), np.uint64)  # pages are taken when first written
        self.child = np.zeros((rows, BYTE_VALUES), np.int32)  # the row of a context with one byte more; 0: unknown
        self.used = 0
        self._place([b""], np.array([EMPTY]))
        self.used = 1

    def rows(self, contexts: list[bytes], before: np.ndarray, byte: np.ndarray) -> np.ndarray:
        """int64[contexts]: the row of each context, good until the next call at least.

        Args:
            contexts: no more than TOGETHER.
            before: the row of each context without its last byte; UNKNOWN: do not remember the context.
            byte: that last byte.
        """
        example = {context: place for place, context in reversed(list(enumerate(contexts)))}
        distinct = list(example)
        places = np.fromiter(example.values(), np.int64, len(example))
        can_stay = (before[places] >= 0) & (before[places] < KNOWN_CONTEXTS)
        stays = can_stay & (np.cumsum(can_stay) <= KNOWN_CONTEXTS - self.used)
        rows = np.where(stays, self.used - 1 + np.cumsum(stays), KNOWN_CONTEXTS + np.arange(len(distinct)))
        self._place(distinct, rows)
        self.used += int(stays.sum())
        kept = places[stays]
        self.child[before[kept], byte[kept]] = rows[stays]
        row_of = dict(zip(distinct, rows.tolist(), strict=True))
        return np.array([row_of[context] for context in contexts], np.int64)

    def _place(self, contexts: list[bytes], rows: np.ndarray) -> None:
        frequencies = self.model.frequencies(contexts)
        check_frequencies(frequencies, self.model.precision)
        self.cumulative[rows, 1:] = np.cumsum(frequencies, axis=1, dtype=np.uint64)


def _as_column(ids: np.ndarray | Sequence[int]) -> np.ndarray:
    """Ids as an array: numpy would make floats of large and small integers together."""
    if isinstance(ids, np.ndarray):
        return ids
    outside = [number for number in ids if not 0 <= number < 1 << WIDEST_ID]
    if outside:
        raise UserError(f"id {outside[0]}: integers from 0 to 2**{WIDEST_ID} - 1 are needed")
    return np.array(ids, np.uint64)


def _blocks(offsets: np.ndarray) -> list[tuple[int, int]]:
    """Runs of documents that are coded together: at most TOGETHER, and of 16 MB or one."""
    blocks, first = [], 0
    while first < len(offsets) - 1:
        by_size = int(np.searchsorted(offsets, offsets[first] + BLOCK_BYTES, "right")) - 1
        last = min(max(by_size, first + 1), first + TOGETHER, len(offsets) - 1)
        blocks.append((first, last))
        first = last
    return blocks


def _end_to_end(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    values = [part for part, _ in parts if len(part)] or [parts[0][0]]
    sizes = np.concatenate([np.diff(ends) for _, ends in parts])
    return np.concatenate(values), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _each(
    values: np.ndarray, ends: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The values of every document converted alone: where windows do not fill its last id."""
    parts = [convert(values[first:last]) for first, last in itertools.pairwise(ends.tolist())]
    sizes = [len(part) for part in parts]
    return np.concatenate(parts or [convert(values)]), np.cumsum([0, *sizes], dtype=np.int64)


@numba.njit(nogil=True, cache=True)
def _push(
    data: np.ndarray,
    position: np.ndarray,
    end: np.ndarray,
    row: np.ndarray,
    before: np.ndarray,
    byte: np.ndarray,
    length: np.ndarray,
    size: np.ndarray,
    start: np.ndarray,
    cursor: np.ndarray,
    numbers: np.ndarray,
    cumulative: np.ndarray,
    child: np.ndarray,
    whole: int,
    one: int,
    precision: int,
    resets_model: bool,
) -> None:
    """Code each document's bytes until it ends or comes to a context that is not known."""
    for d in range(len(position)):
        while position[d] < end[d]:
            left, behind = (whole, one - one) if length[d] == 0 else (size[d] - one, start[d] + one)
            next_byte = int(data[position[d]])
            first, last = left, left  # no share: so without asking, where only the number to stop is left
            if length[d] == 0 or left > 0:
                if row[d] < 0:
                    break
                first = (left * cumulative[row[d], next_byte]) >> precision
                last = (left * cumulative[row[d], next_byte + 1]) >> precision
            if first == last:
                numbers[cursor[d]] = start[d]
                cursor[d] += 1
                length[d] = 0
                if resets_model:
                    row[d] = 0
                continue
            start[d], size[d] = behind + first, last - first
            length[d] += 1
            position[d] += 1
            before[d], byte[d] = row[d], next_byte
            row[d] = child[row[d], next_byte] if child[row[d], next_byte] > 0 else -1
        if position[d] == end[d] and length[d] > 0:
            numbers[cursor[d]] = start[d]
            cursor[d] += 1
            length[d] = 0


@numba.njit(nogil=True, cache=True)
def _pull(
    numbers: np.ndarray,
    cursor: np.ndarray,
    end: np.ndarray,
    row: np.ndarray,
    before: np.ndarray,
    byte: np.ndarray,
    length: np.ndarray,
    size: np.ndarray,
    start: np.ndarray,
    room: np.ndarray,
    filled: np.ndarray,
    cumulative: np.ndarray,
    child: np.ndarray,
    whole: int,
    one: int,
    precision: int,
    resets_model: bool,
) -> None:
    """Decode each run of windows until it ends, comes to a context that is not known, or its room is full."""
    for d in range(len(cursor)):
        while cursor[d] < end[d] and filled[d] < room.shape[1]:
            number = numbers[cursor[d]]
            if length[d] > 0 and number == start[d]:
                cursor[d] += 1
                length[d] = 0
                if resets_model:
                    row[d] = 0
                continue
            if row[d] < 0:
                break
            left, behind = (whole, one - one) if length[d] == 0 else (size[d] - one, start[d] + one)
            share, above = 0, 256  # the last byte whose share begins at or before the number
            while above - share > 1:
                middle = (share + above) // 2
                if (left * cumulative[row[d], middle]) >> precision <= number - behind:
                    share = middle
                else:
                    above = middle
            first = (left * cumulative[row[d], share]) >> precision
            last = (left * cumulative[row[d], share + 1]) >> precision
            start[d], size[d] = behind + first, last - first
            length[d] += 1
            room[d, filled[d]] = share
            filled[d] += 1
            before[d], byte[d] = row[d], share
            row[d] = child[row[d], share] if child[row[d], share] > 0 else -1
