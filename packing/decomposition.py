"""Dataset Decomposition: documents cut into pieces of power-of-two length, each from one document (arXiv 2405.13226).

A document of L tokens has n = L - 1 pairs of a token and its successor, and n is what is cut: its binary digits are
the pieces, longest first, so that each is as long as it can be where it begins.

    L = 14, n = 13 = 8 + 4 + 1:   tokens 0-7 | 8-11 | 12       targets 1-8 | 9-12 | 13

Each piece's last target is the first token behind it (`next_token`), so every target of every document is trained
once, and token 13, behind which nothing comes, is a target only. The authors' code advances by one token more at each
cut and loses a target there; it drops leftovers and part-filled shards, and draws without a seed. Here nothing is lost
but what `leftovers = "drop"` drops, and that is counted.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from seqmill.errors import UserError
from seqmill.packing.buckets import LEFTOVERS, OVERLONG, Buckets, check_lengths
from seqmill.packing.pack_plan import MAX_CAPACITY, PackPlan, checked_lengths, plan
from seqmill.packing.permutation import keyed_number, round_keys

Int64s = npt.NDArray[np.int64]
_LONGEST, _EQUAL_TOKENS, _SEEDED_RANDOM = range(len(OVERLONG))


def decompose(
    lengths: npt.ArrayLike,
    shortest: int,
    longest: int,
    overlong: str = "longest",
    leftovers: str = "carry_to_packer",
    seed: int = 0,
) -> PackPlan:
    """Cut documents into pieces of `shortest`, 2 * shortest, ... `longest` tokens: a row per piece, by bucket.

    Args:
        lengths: tokens per document, integers[documents] >= 0.
        shortest, longest: powers of two, 1 <= shortest <= longest <= MAX_CAPACITY.
        overlong: while 2 * longest pairs or more are left of a document, the next piece is the "longest"; or of the
            bucket that has the fewest tokens of such pieces so far ("equal_tokens": all buckets get the same, to within
            one longest row); or drawn with odds 1 / length ("seeded_random": the same in expectation, without order).
        leftovers: the end of a document, of fewer than `shortest` pairs, shares a row of `shortest` with others by
            best-fit-decreasing ("carry_to_packer"), has one by itself ("pad"; the padding is not stored), or is left
            out ("drop").
        seed: of "seeded_random", and of the order of rows that leftovers share.

    Returns:
        A plan with `buckets`. Its pieces are in the order of the documents, bucket by bucket. A document of one token
        has no target and is in no row; it counts as dropped.

    Raises:
        UserError: an argument is out of its range.
    """
    checked = checked_lengths(lengths)
    low, high = check_lengths(shortest, longest, MAX_CAPACITY)
    if overlong not in OVERLONG:
        raise UserError(f"unknown policy {overlong!r} for overlong documents; choose one of {', '.join(OVERLONG)}")
    if leftovers not in LEFTOVERS:
        raise UserError(f"unknown policy {leftovers!r} for leftovers; choose one of {', '.join(LEFTOVERS)}")
    pieces, item, start, split = _pieces(checked, low, high, OVERLONG.index(overlong), leftovers != "drop", seed)
    first, shared = int(pieces[0]), slice(pieces[0], pieces[0] + pieces[-1])
    stop = _stops(start, pieces, shortest)
    leftover_offsets = _share(checked, item[shared], start[shared], stop[shared], shortest, leftovers, seed)
    leftover_rows = len(leftover_offsets) - 1
    buckets = Buckets(
        shortest=shortest,
        overlong=overlong,
        leftovers=leftovers,
        rows=(first + leftover_rows, *pieces[1:-1].tolist()),
        leftover_rows=leftover_rows,
        leftover_tokens=_total(start[shared], stop[shared]),
    )
    row_offsets = np.arange(leftover_rows + len(item) - pieces[-1] + 1)  # a piece has a row for itself
    np.add(leftover_offsets, first, out=row_offsets[first : first + leftover_rows + 1])
    row_offsets[first + leftover_rows + 1 :] += pieces[-1] - leftover_rows
    return PackPlan(
        row_offsets=row_offsets,
        item=item,
        start=start,
        stop=stop,
        capacity=longest,
        overflow="split",
        seed=seed,
        buckets=buckets,
        algorithm="dataset-decomposition",
        split_documents=split,
        **_account(checked, shortest if leftovers == "drop" else 1),
    )


def kept_pairs(lengths: Int64s, buckets: Buckets) -> Int64s:
    """The pairs of every document that are in rows, int64[documents]: its tokens from the first one on."""
    pairs = np.maximum(lengths - 1, 0)
    return pairs & -buckets.shortest if buckets.leftovers == "drop" else pairs


def _account(lengths: Int64s, multiple: int) -> dict[str, int]:
    """The counters of a plan that keeps of every document's pairs a multiple of `multiple`, a power of two."""
    names = ("tokens", "dropped_tokens", "dropped_documents", "truncated_documents", "empty_documents")
    return {"documents": len(lengths), **dict(zip(names, _count(lengths, multiple), strict=True))}


@njit(cache=True, nogil=True)
def _count(lengths: Int64s, multiple: int) -> tuple[int, int, int, int, int]:
    """Tokens, dropped tokens, dropped documents, truncated documents, empty documents."""
    tokens = dropped = lost = cut = empty = 0
    for length in lengths:
        kept = max(length - 1, 0) & -multiple
        held = kept + (kept > 0)  # a document with pairs in rows has one token more in it, its last target
        tokens += kept
        dropped += length - held
        lost += length > 0 and kept == 0
        cut += 0 < held < length
        empty += length == 0
    return tokens, dropped, lost, cut, empty


def _share(lengths: Int64s, item: Int64s, start: Int64s, stop: Int64s, room: int, leftovers: str, seed: int) -> Int64s:
    """Put the leftovers, which begin at `start` of `item`, into the order of their rows, and write where they stop.

    Returns:
        The rows' bounds among them, int64[rows + 1].
    """
    _end(lengths, item, stop)
    if leftovers == "pad":
        return np.arange(len(item) + 1)
    shared = plan(stop - start, room, seed=seed)  # none is as long as a row, so each stays whole
    _reorder(shared.item, shared.stop, item.copy(), start.copy(), item, start, stop)
    return shared.row_offsets


@njit(cache=True, nogil=True)
def _end(lengths: Int64s, item: Int64s, stop: Int64s) -> None:
    """Leftovers end with the document's last pair."""
    for place in range(item.size):
        stop[place] = lengths[item[place]] - 1


@njit(cache=True, nogil=True)
def _reorder(
    order: Int64s, size: Int64s, old_item: Int64s, old_start: Int64s, item: Int64s, start: Int64s, stop: Int64s
) -> None:
    for place in range(order.size):
        item[place], start[place] = old_item[order[place]], old_start[order[place]]
        stop[place] = start[place] + size[place]


@njit(cache=True, nogil=True)
def _total(start: Int64s, stop: Int64s) -> int:
    """Tokens of all these pieces."""
    tokens = 0
    for place in range(start.size):
        tokens += stop[place] - start[place]
    return tokens


def _stops(start: Int64s, pieces: Int64s, shortest: int) -> Int64s:
    """Where the pieces of every bucket stop; the places of the leftovers, after bucket 0, are not set."""
    stop = np.empty_like(start)
    place = 0
    for number, count in enumerate(pieces[:-1].tolist()):
        np.add(start[place : place + count], shortest << number, out=stop[place : place + count])
        place += count + (int(pieces[-1]) if number == 0 else 0)
    return stop


def _pieces(
    lengths: Int64s, low: int, high: int, policy: int, keep_leftovers: bool, seed: int
) -> tuple[Int64s, Int64s, Int64s, int]:
    """Cut all documents.

    Returns:
        Pieces per bucket and, last, leftovers, int64[buckets + 1]; item and start of bucket 0, of the leftovers, and
        of the further buckets; the documents in more than one piece.
    """
    keys = round_keys("overlong", seed)
    pieces = np.zeros(high - low + 2, np.int64)
    none = np.empty(0, np.int64)
    split = _cut(lengths, low, high, policy, keep_leftovers, keys, pieces, none, none)
    cursor = np.cumsum(pieces) - pieces + pieces[-1]
    cursor[0], cursor[-1] = 0, pieces[0]
    item, start = np.empty(int(pieces.sum()), np.int64), np.empty(int(pieces.sum()), np.int64)
    _cut(lengths, low, high, policy, keep_leftovers, keys, cursor, item, start)
    return pieces, item, start, split


@njit(cache=True, nogil=True)
def _cut(
    lengths: Int64s,
    low: int,
    high: int,
    policy: int,
    keep_leftovers: bool,
    keys: npt.NDArray[np.uint64],
    cursor: Int64s,
    item: Int64s,
    start: Int64s,
) -> int:
    """Move `cursor` of each bucket along by its pieces, and write them there unless `item` is empty.

    Returns:
        Documents in more than one piece, leftovers included.
    """
    given = np.zeros(high - low + 1, np.int64)  # tokens of overlong documents, per bucket
    split = 0
    for index in range(lengths.size):
        left, place, pieces = lengths[index] - 1, np.int64(0), 0
        while left > 0:
            if left >> (high + 1):
                exponent = _overlong(low, high, policy, given, keys, index, place)
                given[exponent - low] += np.int64(1) << exponent
            else:  # the highest binary digit that is left
                exponent = _highest(left, high)
            bucket, size = (exponent - low, np.int64(1) << exponent) if exponent >= low else (high - low + 1, left)
            if exponent < low and not keep_leftovers:
                break
            if item.size:
                item[cursor[bucket]] = index
                start[cursor[bucket]] = place
            cursor[bucket] += 1
            pieces += 1
            place += size
            left -= size
        split += pieces > 1
    return split


@njit(cache=True, nogil=True)
def _highest(value: int, most: int) -> int:
    """The highest binary digit of a positive value below 2^(most + 1)."""
    while not value >> most:
        most -= 1
    return most


@njit(cache=True, nogil=True)
def _overlong(
    low: int, high: int, policy: int, given: Int64s, keys: npt.NDArray[np.uint64], index: int, place: int
) -> int:
    """The exponent of the next piece of a document that has at least two longest pieces left."""
    if policy == _LONGEST:
        return high
    exponent = high
    if policy == _EQUAL_TOKENS:
        for other in range(high - 1, low - 1, -1):
            if given[other - low] < given[exponent - low]:
                exponent = other
        return exponent
    # 2^m - 1 equally likely numbers from 1 for m buckets: one of them is 1 digit long, two are 2, four are 3, ...
    numbers = (np.int64(1) << (high - low + 1)) - 1
    drawn = keyed_number(index, place, keys) % numbers + 1
    return high - _highest(drawn, high - low)
