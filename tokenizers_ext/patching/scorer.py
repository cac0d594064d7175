"""The entropy of the next byte, looked up in a table: contexts of up to five bytes to steps of 2^-13 nats.

DIR/scorer.json      what it is, what it was trained on, sha256 of the files
DIR/short.arrow      step uint16[65536 + 256 + 1]: entropies behind two bytes, one byte and none
DIR/long.arrow       slot uint64[2^s]: a hash table of longer contexts with open addressing, mapped as it is

A slot holds a key of 43 bits (the context's length, and its bytes, the latest one highest) above 16 bits of entropy;
0 is an empty one. Where a context of k bytes is in the table, so is each of its ends, and the longest one known at a
byte is at most one byte longer than the one before: so a byte costs two look-ups at most, on average.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.storage import FORMAT_VERSION, atomic_path, read_arrow, read_json, with_metadata, write_arrow, write_json
from seqmill.tokenizers_ext.patching.config import ORDERS
from seqmill.tokenizers_ext.patching.ngrams import Int64s, Uint8s, UInt64s, window_before
from seqmill.tokenizers_ext.patching.prefetch import prefetch

STEPS_PER_NAT = 8192.0  # the resolution of stored entropies; ln 256 is step 45,426
FILL = 2 / 3  # of the hash table at most
DESCRIPTION = "scorer.json"
SHORT, LONG = "short.arrow", "long.arrow"
_BLOCK = 64  # bytes whose contexts are fetched side by side
_KIND = "byte n-grams"
_CONTEXT_BITS = 40  # of a key: five bytes
_PAIRS = np.uint64(1 << 16)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Scorer:
    """An order-n byte model, reduced to the entropy behind each context; see `build_scorer`."""

    order: int  # a byte is predicted from up to order - 1 bytes before it
    min_count: int  # contexts of up to two bytes were seen this often, or those of the shorter one are used
    min_count_long: int  # the same for longer ones: `min_count` or more, so that the table fits its budget
    short: npt.NDArray[np.uint16]  # steps[65536 + 256 + 1]
    slots: UInt64s  # [a power of two]

    @property
    def contexts(self) -> int:
        """Contexts of three bytes and more."""
        return int(np.count_nonzero(self.slots))

    def entropies(self, data: Uint8s, offsets: Int64s, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Nats of the distribution of each of data[start:stop] given the bytes before it in its document.

        Args:
            offsets: int64[documents + 1] into `data`; `start` and `stop` lie between the first and the last.

        Returns:
            float32[stop - start], exact multiples of 2^-13.
        """
        out = np.empty(stop - start, np.float32)
        _look_up(data, offsets, start, stop, self.order - 1, self.short, self.slots, _shift(self.slots), out)
        return out


def save_scorer(folder: Path, scorer: Scorer, trained_on: Mapping[str, Any]) -> None:
    """Write the artifact; `trained_on` are JSON values that say where the counts came from, for people."""
    columns = {SHORT: pa.array(scorer.short), LONG: pa.array(scorer.slots)}
    for name, column in columns.items():
        schema = with_metadata(pa.schema({Path(name).stem: column.type}), _KIND)
        write_arrow(folder / name, schema, [pa.record_batch([column], schema=schema)])
    description = {
        "format_version": FORMAT_VERSION,
        "kind": _KIND,
        "order": scorer.order,
        "min_count": scorer.min_count,
        "min_count_long": scorer.min_count_long,
        "contexts": scorer.contexts,
        "sha256": {name: _sha256(folder / name) for name in columns},
        "trained_on": dict(trained_on),
    }
    write_json(folder / DESCRIPTION, description)  # last: without it there is no artifact


def load_scorer(folder: Path) -> Scorer:
    """Map the scorer in `folder`.

    Raises:
        UserError: there is none, or a file does not match its recorded hash.
    """
    described = describe_scorer(folder)
    for name, expected in described["sha256"].items():
        found = _sha256(folder / name) if (folder / name).is_file() else "nothing"
        if found != expected:
            raise UserError(
                f"{folder / name}: {DESCRIPTION} records sha256 {expected[:16]}..., found {found[:16]}...; patches "
                "would differ from the ones on disk: restore the file, or train the scorer again"
            )
    short, slots = (read_arrow(folder / name).column(0).combine_chunks().to_numpy() for name in (SHORT, LONG))
    return Scorer(described["order"], described["min_count"], described["min_count_long"], short, slots)


def copy_scorer(source: Path, folder: Path) -> None:
    """Put the scorer at `source` into `folder`, after checking it.

    Raises:
        UserError: as `load_scorer`.
    """
    load_scorer(source)
    for name in (SHORT, LONG, DESCRIPTION):  # the description last
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)


def describe_scorer(folder: Path) -> dict[str, Any]:
    """The contents of scorer.json.

    Raises:
        UserError: `folder` holds no scorer of this version.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"{folder} is no scorer of entropies: it has no {DESCRIPTION}; name the folder patcher/scorer of tokens "
            "that were made with --patching entropy, or leave patching.model out to train one"
        )
    described: dict[str, Any] = read_json(folder / DESCRIPTION)
    found = (described.get("format_version"), described.get("kind"), described.get("order") in ORDERS)
    if found != (FORMAT_VERSION, _KIND, True):
        raise UserError(
            f"{folder}: a scorer of kind {described.get('kind')!r}, order {described.get('order')}, format version "
            f"{described.get('format_version')}; this seqmill reads {_KIND!r} of version {FORMAT_VERSION}; train again"
        )
    return described


def make_slots(keys: UInt64s, steps: npt.NDArray[np.uint16]) -> UInt64s:
    """The hash table of these contexts, uint64: the smallest power of two that is not too full."""
    size = 1 << max(1, (int(np.ceil(len(keys) / FILL)) - 1).bit_length())
    slots = np.zeros(size, np.uint64)
    entries = np.sort(keys << np.uint64(16) | steps)  # sorted: the same table for any order of the keys
    _insert(entries, slots, _shift(slots))
    return slots


def _shift(slots: UInt64s) -> np.uint64:
    """What leaves as many high bits of 64 as number the slots."""
    return np.uint64(65 - len(slots).bit_length())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@numba.njit(nogil=True, cache=True)
def key_of(window: np.uint64, length: int, width: int) -> np.uint64:
    """The key of the latest `length` bytes of a window of `width`."""
    bytes_ = window >> np.uint64(8 * (width - length))
    return np.uint64(length) << np.uint64(_CONTEXT_BITS) | bytes_


@numba.njit(nogil=True, cache=True)
def _home(key: np.uint64, shift: np.uint64) -> np.uint64:
    """The slot where the search for a key begins: the highest bits of a product, which all of the key's decide."""
    return key * _MULTIPLIER >> shift


@numba.njit(nogil=True, cache=True)
def _insert(entries: UInt64s, slots: UInt64s, shift: np.uint64) -> None:
    mask = np.uint64(len(slots) - 1)
    for entry in entries:
        at = _home(entry >> np.uint64(16), shift)
        while slots[at]:
            at = (at + np.uint64(1)) & mask
        slots[at] = entry


@numba.njit(nogil=True, cache=True)
def _look_up(
    data: Uint8s,
    offsets: Int64s,
    start: int,
    stop: int,
    width: int,
    short: npt.NDArray[np.uint16],
    slots: UInt64s,
    shift: np.uint64,
    out: npt.NDArray[np.float32],
) -> None:
    """Block by block: first where the longest contexts of all its bytes would be, so that they are fetched side by
    side; then their entropies."""
    newest = np.uint64(8 * (width - 1))
    windows, lengths = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.int64)
    d = np.searchsorted(offsets, start, side="right") - 1
    window, known = np.uint64(0), width
    for block in range(start, stop, _BLOCK):
        size = min(_BLOCK, stop - block)
        for i in range(size):
            j = block + i
            while j >= offsets[d + 1]:
                d += 1
            if j == start or j == offsets[d]:
                window = window_before(data, offsets[d], j, width)
            windows[i], lengths[i] = window, min(width, j - offsets[d])
            for length in range(max(width - 1, 3), width + 1):
                prefetch(slots, _home(key_of(window, length, width), shift))
            window = np.uint64(data[j]) << newest | window >> np.uint64(8)
        for i in range(size):
            known, step = _longest(windows[i], min(known + 1, lengths[i]), width, short, slots, shift)
            out[block + i - start] = step * (1.0 / STEPS_PER_NAT)


@numba.njit(nogil=True, cache=True)
def _longest(
    window: np.uint64, length: int, width: int, short: npt.NDArray[np.uint16], slots: UInt64s, shift: np.uint64
) -> tuple[int, np.uint16]:
    """The longest context of at most `length` bytes in the table, or 2, 1 or 0: its length and its entropy's step."""
    mask = np.uint64(len(slots) - 1)
    while length >= 3:
        key = key_of(window, length, width)
        at = _home(key, shift)
        while slots[at]:
            if slots[at] >> np.uint64(16) == key:
                return length, np.uint16(slots[at] & np.uint64(0xFFFF))
            at = (at + np.uint64(1)) & mask
        length -= 1
    if length == 2:
        return 2, short[window >> np.uint64(8 * (width - 2))]
    if length == 1:
        return 1, short[_PAIRS + (window >> np.uint64(8 * (width - 1)))]
    return 0, short[_PAIRS + np.uint64(256)]
