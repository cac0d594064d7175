"""DNA as k-mers: runs of k bases as one id each, everything else as bytes, so that nothing is lost.

With k = 3, stride 3, frame 0, and the id of a k-mer written as itself:

    ACGTNACG      ACG T N A C G         k-mers begin at positions 0, 3, 6 of the document, whatever stands between
    ACGTACGT      ACG TAC G T           the two bases behind the last k-mer as bytes; or, with remainder "pad",
                  ACG TAC GTA <2>       as a k-mer filled up with A, and a mark of how many of its bases are there
    ACGTACGT      ACG GTA ACG T         with stride 2: k-mers that follow each other share k - stride bases

Lower case (soft masking), N and the other IUPAC codes stay as bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_level import BYTE_VALUES, SPECIAL_IDS
from seqmill.tokenizers_ext.encoder import as_large_binary, flat_ids, id_type, list_array, offsets_and_bytes

BASES = b"ACGT"  # a k-mer's number has these as its digits, the first base the highest
OTHER = 4
LONGEST = 12  # bases: 16.8 million k-mers
REMAINDERS = ("nucleotide", "pad")
FIRST_MARK = BYTE_VALUES + len(SPECIAL_IDS)  # the mark of one base; marks of up to k - 1 follow
COMPLEMENTS = dict(zip(b"ACGTRYKMBVDHacgtrykmbvdh", b"TGCAYRMKVBHDtgcayrmkvbhd", strict=True))  # others stay


@dataclass(frozen=True)
class KmerConfig:
    """How DNA is cut into k-mers."""

    k: int = 6  # bases of a k-mer
    stride: int | None = None  # bases from one k-mer to the next; default: k, no overlap
    frame: int = 0  # k-mers begin at positions of a document that are this modulo the stride
    remainder: str = "nucleotide"  # bases behind the last k-mer: one id each, or "pad": filled up with A, and a mark
    reverse_complement: bool = False  # encode the other strand

    def __post_init__(self) -> None:
        if not 1 <= self.k <= LONGEST:
            raise UserError(f"k = {self.k}: between 1 and {LONGEST} bases, for there are 4 ** k ids")
        if self.stride is not None and not 1 <= self.stride <= self.k:
            raise UserError(
                f"stride = {self.stride}: between 1 and k = {self.k}, or bases between k-mers would be lost"
            )
        if not 0 <= self.frame < self.step:
            raise UserError(f"frame = {self.frame}: from 0 to the stride less one, {self.step - 1}")
        if self.remainder not in REMAINDERS:
            raise UserError(f"remainder = {self.remainder!r}: choose one of {', '.join(REMAINDERS)}")
        if self.remainder == "pad" and self.step != self.k:
            raise UserError(f"remainder = 'pad' goes with k-mers that do not overlap, not with stride = {self.stride}")

    @property
    def step(self) -> int:
        """Bases from one k-mer to the next."""
        return self.k if self.stride is None else self.stride

    @property
    def first_kmer(self) -> int:
        """The id of the k-mer of A alone."""
        return FIRST_MARK + self.k - 1


@dataclass(frozen=True)
class KmerEncoder:
    """The tokenizer of DNA: lossless for arbitrary bytes."""

    config: KmerConfig = KmerConfig()
    kind: str = "kmer"

    @property
    def vocab_size(self) -> int:
        """Bytes, special ids, marks and 4 ** k k-mers."""
        return self.config.first_kmer + 4**self.config.k

    @property
    def special_ids(self) -> Mapping[str, int]:
        """As those of bytes."""
        return SPECIAL_IDS

    @property
    def fingerprint(self) -> str:
        """Of the settings: there is no vocabulary to learn."""
        return hashlib.sha256(f"seqmill kmer {json.dumps(vars(self.config), sort_keys=True)}".encode()).hexdigest()

    def encode(self, texts: pa.Array) -> pa.ListArray:
        """K-mers and bytes of every document; see `Encoder.encode`."""
        offsets, data = offsets_and_bytes(as_large_binary(texts))
        if self.config.reverse_complement:
            offsets, data = _other_strand(offsets, data)
        config = self.config
        ids = np.empty(offsets[-1] - offsets[0], id_type(self.vocab_size).to_pandas_dtype())
        settings = (config.k, config.step, config.frame, config.remainder == "pad", config.first_kmer)
        ends = _encode(data, offsets, _digits(), *settings, ids)
        return list_array(ends, ids[: ends[-1]], self.vocab_size)

    def decode(self, ids: pa.ListArray) -> pa.LargeBinaryArray:
        """The bytes of every document, special ids left out; see `Encoder.decode`."""
        values = flat_ids(ids, self.vocab_size)
        ends = np.concatenate([[0], np.cumsum(np.diff(ids.offsets.to_numpy()), dtype=np.int64)])
        config = self.config
        bases = np.frombuffer(BASES, np.uint8)
        offsets, data = _decode(values, ends, bases, config.k, config.step, FIRST_MARK, config.first_kmer)
        if config.reverse_complement:
            offsets, data = _other_strand(offsets, data)
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(ids), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        )

    def bytes_added(self, ids: pa.ListArray) -> pa.ListArray:
        """How many bytes of its document each id stands for, list<uint8>: they add up to the document.

        A k-mer that was filled up counts its own bases, its mark none; one that overlaps the k-mer before it, the bases
        behind that. A loss can be weighted by them, so that filling is not learned, or divided by them to be one of
        bases.

        Raises:
            UserError: an id lies outside the vocabulary.
        """
        values = flat_ids(ids, self.vocab_size)
        ends = np.concatenate([[0], np.cumsum(np.diff(ids.offsets.to_numpy()), dtype=np.int64)])
        added = np.zeros(len(values), np.uint8)
        _bytes_added(values, ends, self.config.k, self.config.step, FIRST_MARK, self.config.first_kmer, added)
        return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(added))


@cache
def _digits() -> np.ndarray:
    """uint8[256]: 0 to 3 for ACGT, OTHER for all other bytes."""
    table = np.full(256, OTHER, np.uint8)
    table[list(BASES)] = range(4)
    return table


@numba.njit(nogil=True, cache=True)
def _encode(
    data: np.ndarray,
    offsets: np.ndarray,
    digits: np.ndarray,
    k: int,
    step: int,
    frame: int,
    pads: bool,
    first_kmer: int,
    ids: np.ndarray,
) -> np.ndarray:
    """Write the ids of all documents into `ids` (one a byte is always enough); returns int64[documents + 1] ends."""
    ends = np.zeros(len(offsets), np.int64)
    out = 0
    for d in range(len(offsets) - 1):
        start, stop = offsets[d], offsets[d + 1]
        place = start + frame  # of the next k-mer
        covered = start  # bytes before it are written
        while covered < stop:
            number, bad = np.int64(0), np.uint8(OTHER)
            if place + k <= stop:
                bad = np.uint8(0)
                for at in range(place, place + k):
                    digit = digits[data[np.uint64(at)]]  # unsigned: not tested for counting from the end
                    bad |= digit
                    number = number << 2 | np.int64(digit & 3)
            if bad < OTHER:
                out = _bytes_between(data, covered, place, ids, out)
                ids[out] = first_kmer + number
                out += 1
                covered = place + k
            elif covered < place + step:  # no k-mer here: what the former one leaves up to the next place
                last = min(place + step, stop)
                begin = max(covered, min(place, last))
                out = _bytes_between(data, covered, begin, ids, out)
                if pads:
                    out = _padded(data, begin, last, digits, k, first_kmer, ids, out)
                else:
                    out = _bytes_between(data, begin, last, ids, out)
                covered = last
            place += step
        ends[d + 1] = out
    return ends


@numba.njit(nogil=True, cache=True, inline="always")
def _bytes_between(data: np.ndarray, first: int, last: int, ids: np.ndarray, out: int) -> int:
    for at in range(first, last):
        ids[out] = data[at]
        out += 1
    return out


@numba.njit(nogil=True, cache=True)
def _padded(
    data: np.ndarray, first: int, last: int, digits: np.ndarray, k: int, first_kmer: int, ids: np.ndarray, out: int
) -> int:
    """Write data[first:last], which is no k-mer: two bases or more at its start as one filled up with A and a mark,
    the rest as bytes. (A single base takes one id as a byte and two with a mark.)"""
    number, bases = np.int64(0), 0
    while first + bases < last and digits[data[first + bases]] < OTHER:
        number = number << 2 | np.int64(digits[data[first + bases]])
        bases += 1
    if bases >= 2:
        ids[out] = first_kmer + (number << 2 * (k - bases))
        ids[out + 1] = FIRST_MARK + bases - 1
        out += 2
        first += bases
    return _bytes_between(data, first, last, ids, out)


@numba.njit(nogil=True, cache=True)
def _decode(
    ids: np.ndarray, ends: np.ndarray, bases: np.ndarray, k: int, step: int, first_mark: int, first_kmer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64[documents + 1] and bytes of the documents whose ids lie between `ends`."""
    offsets = np.zeros(len(ends), np.int64)
    data = np.empty(len(ids) * k, np.uint8)
    out = 0
    for d in range(len(ends) - 1):
        after_kmer = False
        for t in range(ends[d], ends[d + 1]):
            id_ = np.int64(ids[t])
            if id_ >= first_kmer:
                if after_kmer:
                    out -= k - step
                number = id_ - first_kmer
                for b in range(k):
                    data[out + b] = bases[number >> 2 * (k - 1 - b) & 3]
                out += k
                after_kmer = True
                continue
            if id_ >= first_mark:
                if after_kmer:
                    out -= k - (int(id_) - first_mark + 1)
            elif id_ < 256:
                data[out] = id_
                out += 1
            after_kmer = False
        offsets[d + 1] = out
    return offsets, data[:out].copy()


@numba.njit(nogil=True, cache=True)
def _bytes_added(
    ids: np.ndarray, ends: np.ndarray, k: int, step: int, first_mark: int, first_kmer: int, added: np.ndarray
) -> None:
    for d in range(len(ends) - 1):
        after_kmer = False
        for t in range(ends[d], ends[d + 1]):
            id_ = np.int64(ids[t])
            if id_ >= first_kmer:
                added[t] = step if after_kmer else k
                after_kmer = True
                continue
            if id_ >= first_mark:
                if after_kmer:
                    added[t - 1] = id_ - first_mark + 1
            elif id_ < BYTE_VALUES:
                added[t] = 1
            after_kmer = False


def _other_strand(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every document backwards, each base replaced by its complement: its own inverse."""
    table = np.arange(256, dtype=np.uint8)
    table[list(COMPLEMENTS)] = list(COMPLEMENTS.values())
    turned = np.empty(offsets[-1] - offsets[0], np.uint8)
    _turn(data, offsets, table, turned)
    return offsets - offsets[0], turned


@numba.njit(nogil=True, cache=True)
def _turn(data: np.ndarray, offsets: np.ndarray, table: np.ndarray, turned: np.ndarray) -> None:
    base = offsets[0]
    for d in range(len(offsets) - 1):
        start, stop = offsets[d], offsets[d + 1]
        for at in range(stop - start):
            turned[start - base + at] = table[data[stop - 1 - at]]
