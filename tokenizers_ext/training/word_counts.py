"""How often every pre-token occurs: all that training a BPE needs of a corpus.

Counts of parts of a corpus add up, so parts are counted wherever they lie and merged afterwards. A counter is a hash
table over an arena of bytes; what it takes is known exactly and kept below a budget by forgetting the rarest words.
"""

from collections.abc import Iterator

import numba
import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import as_large_binary, offsets_and_bytes
from seqmill.tokenizers_ext.splitting import character_classes, pre_token_end, rule_number

SCHEMA = pa.schema({"word": pa.large_binary(), "count": pa.uint64()})
LONGEST_WORD = 4096  # bytes; a pre-token beyond it is no word (base64, DNA, a line of dashes): it is counted apart
BYTES_PER_WORD = 4 * 8 + 2 * 8  # a record and two slots; the word's own letters come on top
BATCH_WORDS = 1 << 18
LEAST_CAPACITY = 1 << 12  # words; a power of two, as every capacity, so that slots are found by a mask
LEAST_ARENA = 1 << 16  # bytes

WORDS, ARENA_BYTES, TOO_LONG = range(3)  # places in `used`
START, LENGTH, COUNT, HASH = range(4)  # columns of a record: what one look at a word needs lies together
EMPTY = np.uint64(0)  # a slot holds the upper half of a word's hash and, in the lower half, its number + 1
UPPER = np.uint64(0xFFFFFFFF00000000)
LOWER = np.uint64(0xFFFFFFFF)


class WordCounts:
    """A bounded multiset of words.

    Attributes:
        forgotten: occurrences (not words) dropped to stay within the budget.
        floor: no word that occurs more often than this was ever dropped; 0 when all are held.
    """

    def __init__(self, budget_bytes: int, bytes_per_letter: int = 1) -> None:
        """An empty counter.

        Args:
            budget_bytes: what the words may take between batches; a batch of text may add its own words to that.
            bytes_per_letter: what one byte of a word takes; more than the byte itself where training is to fit, too.
        """
        self.budget_bytes = budget_bytes
        self.bytes_per_letter = bytes_per_letter
        self.forgotten = 0
        self.floor = 0
        self._used = np.zeros(3, np.int64)
        self._allocate(LEAST_CAPACITY, LEAST_ARENA)

    def __len__(self) -> int:
        return int(self._used[WORDS])

    @property
    def too_long(self) -> int:
        """Occurrences of pre-tokens of more than `LONGEST_WORD` bytes, which are left out."""
        return int(self._used[TOO_LONG])

    @property
    def nbytes(self) -> int:
        """Bytes that the words held take."""
        return len(self) * BYTES_PER_WORD + int(self._used[ARENA_BYTES]) * self.bytes_per_letter

    def add_texts(self, texts: pa.Array, rule: str) -> None:
        """Count the pre-tokens of documents.

        Args:
            texts: (large_)string or (large_)binary, without nulls.
            rule: how text is cut, a key of `splitting.PATTERNS`.
        """
        offsets, data = offsets_and_bytes(as_large_binary(texts))
        at, document = int(offsets[0]), 0
        while document < len(texts):
            document, at = _add_texts(
                offsets, data, document, at, rule_number(rule), character_classes(), *self._arrays(), self._used
            )
            self._grow_if_full()
        self._forget_the_rarest()

    def add_counts(self, words: pa.Array, counts: pa.Array) -> None:
        """Add words with their counts, as `batches` of another counter gives them.

        Raises:
            UserError: a count would pass 2**64 - 1.
        """
        offsets, data = offsets_and_bytes(as_large_binary(words))
        numbers = counts.to_numpy().astype(np.uint64)
        done = 0
        while done < len(numbers):
            done = _add_counts(offsets, data, numbers, done, *self._arrays(), self._used)
            if done < 0:
                raise UserError("a word occurs more than 2**64 - 1 times: train on a sample")
            self._grow_if_full()
        self._forget_the_rarest()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The words and their counts, in the order in which they were first met."""
        for first in range(0, len(self), BATCH_WORDS):
            last = min(first + BATCH_WORDS, len(self))
            offsets = _offsets(self._records[first:last, LENGTH])
            data = self._arena[int(self._records[first, START]) :][: offsets[-1]]
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data.copy())]
            words = pa.LargeBinaryArray.from_buffers(pa.large_binary(), last - first, buffers)
            yield pa.record_batch([words, pa.array(self._records[first:last, COUNT].copy())], schema=SCHEMA)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offsets int64[words + 1] into bytes uint8[...], and counts uint64[words]."""
        records = self._records[: len(self)]
        return _offsets(records[:, LENGTH]), self._arena[: self._used[ARENA_BYTES]], records[:, COUNT]

    def _allocate(self, words: int, arena_bytes: int) -> None:
        self._slots = np.full(2 * words, EMPTY)
        self._records = np.empty((words, 4), np.uint64)
        self._arena = np.empty(arena_bytes, np.uint8)

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self._slots, self._records, self._arena

    def _grow_if_full(self) -> None:
        words, used = len(self), int(self._used[ARENA_BYTES])
        if words == len(self._records):
            self._rebuild(np.ones(words, bool), 2 * words)
        if used + LONGEST_WORD > len(self._arena):
            longer = np.empty(2 * len(self._arena), np.uint8)
            longer[:used] = self._arena[:used]
            self._arena = longer

    def _forget_the_rarest(self) -> None:
        """Over the budget, drop the words of the lowest counts until at most half of the words are left."""
        if self.nbytes <= self.budget_bytes:
            return
        counts = self._records[: len(self), COUNT]
        floor = int(np.partition(counts, len(counts) // 2)[len(counts) // 2])
        kept = counts > floor
        self.forgotten += int(counts[~kept].sum())
        self.floor = max(self.floor, floor)
        self._rebuild(kept, max(LEAST_CAPACITY, 1 << int(kept.sum()).bit_length()))

    def _rebuild(self, kept: np.ndarray, capacity: int) -> None:
        """Hold only the words that are `kept`, with room for `capacity`."""
        _, old_arena, _ = self.arrays()
        old = self._records[: len(kept)]
        records, arena = old[kept], old_arena[np.repeat(kept, old[:, LENGTH].astype(np.int64))]
        records[:, START] = _offsets(records[:, LENGTH])[:-1]
        self._allocate(capacity, max(LEAST_ARENA, 2 * len(arena)))
        self._used[WORDS], self._used[ARENA_BYTES] = len(records), len(arena)
        self._records[: len(records)] = records
        self._arena[: len(arena)] = arena
        _fill_slots(self._slots, self._records, len(records))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """int64[words + 1] from the lengths of words."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


@numba.njit(nogil=True, cache=True)
def _add_texts(
    offsets: np.ndarray,
    data: np.ndarray,
    document: int,
    at: int,
    rule: int,
    classes: np.ndarray,
    slots: np.ndarray,
    records: np.ndarray,
    arena: np.ndarray,
    used: np.ndarray,
) -> tuple[int, int]:
    """Count from data[at] in `document` on until the text ends or the table is full; returns where it stopped."""
    documents = len(offsets) - 1
    while document < documents:
        stop = offsets[document + 1]
        while at < stop:
            if used[WORDS] == len(records) or used[ARENA_BYTES] + LONGEST_WORD > len(arena):
                return document, at
            end = pre_token_end(data, at, stop, rule, classes)
            if end - at > LONGEST_WORD:
                used[TOO_LONG] += 1
            else:
                records[_find_or_add(data, at, end, slots, records, arena, used), COUNT] += np.uint64(1)
            at = end
        document += 1
    return document, at


@numba.njit(nogil=True, cache=True)
def _add_counts(
    offsets: np.ndarray,
    data: np.ndarray,
    numbers: np.ndarray,
    done: int,
    slots: np.ndarray,
    records: np.ndarray,
    arena: np.ndarray,
    used: np.ndarray,
) -> int:
    """Add words from number `done` on until all are in or the table is full; returns how many are in, -1 when a count
    overflows."""
    for word in range(done, len(numbers)):
        if used[WORDS] == len(records) or used[ARENA_BYTES] + LONGEST_WORD > len(arena):
            return word
        place = _find_or_add(data, offsets[word], offsets[word + 1], slots, records, arena, used)
        records[place, COUNT] += numbers[word]
        if records[place, COUNT] < numbers[word]:
            return -1
    return len(numbers)


@numba.njit(nogil=True, cache=True, inline="always")
def _find_or_add(
    data: np.ndarray,
    at: int,
    end: int,
    slots: np.ndarray,
    records: np.ndarray,
    arena: np.ndarray,
    used: np.ndarray,
) -> np.int64:
    """The number of the word data[at:end], which is added with count 0 when it is new."""
    hash_ = np.uint64(0xCBF29CE484222325)
    for k in range(at, end):
        hash_ = (hash_ ^ np.uint64(data[np.uint64(k)])) * np.uint64(0x9E3779B97F4A7C15)
        hash_ ^= hash_ >> np.uint64(29)
    mask = np.uint64(len(slots) - 1)
    slot = hash_ & mask
    while slots[slot] != EMPTY:
        if (slots[slot] ^ hash_) & UPPER == EMPTY:
            word = (slots[slot] & LOWER) - np.uint64(1)
            if _same(data, at, end, arena, np.int64(records[word, START]), np.int64(records[word, LENGTH])):
                return np.int64(word)
        slot = (slot + np.uint64(1)) & mask
    added = used[WORDS]
    place = used[ARENA_BYTES]
    slots[slot] = (hash_ & UPPER) | np.uint64(added + 1)
    records[added, START] = place
    records[added, LENGTH] = end - at
    records[added, COUNT] = 0
    records[added, HASH] = hash_
    for k in range(end - at):
        arena[place + k] = data[at + k]
    used[ARENA_BYTES] = place + end - at
    used[WORDS] = added + 1
    return np.int64(added)


@numba.njit(nogil=True, cache=True, inline="always")
def _same(data: np.ndarray, at: int, end: int, arena: np.ndarray, start: int, length: int) -> bool:
    if length != end - at:
        return False
    for k in range(length):  # noqa: SIM110
        if data[np.uint64(at + k)] != arena[np.uint64(start + k)]:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _fill_slots(slots: np.ndarray, records: np.ndarray, words: int) -> None:
    mask = np.uint64(len(slots) - 1)
    for word in range(words):
        hash_ = records[word, HASH]
        slot = hash_ & mask
        while slots[slot] != EMPTY:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = (hash_ & UPPER) | np.uint64(word + 1)
