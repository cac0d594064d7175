"""Cutting text into the longest strings of a dictionary, one after the other: the parse of a window coder.

A trie is walked byte by byte, and every step waits for the one before it: for the memory, and for the branch that ends
a string, which no processor foresees. So four places of the text are walked at once, in steps without a branch. What
they find is exact, since a cut depends on nothing before it:

    a text is divided into pieces, and each is cut as if it began a document:   ... the | cat sat   |   sat on | the ...
    a piece's first strings may be wrong (here "sat" began in the piece before); from the first place where the true
    cut and the piece's cut meet (" on"), they are one and the same

What is wrong is cut once more, string by string, until both meet: a few strings a piece, and never more than the text.
"""

import numba
import numpy as np

from seqmill.compress.trie import BASE_MASK, BASE_SHIFT, BYTE_MASK, ID_BITS, ID_MASK, STRING_SHIFT, Trie, longest_string

PIECE = 1 << 14  # bytes of a document that are cut at a stretch
STRETCH = 1 << 20  # bytes of text whose cuts are kept before they are joined; 4 bytes of memory each
AT_A_TIME = 1 << 22  # bytes of text of one call of the kernel, but for longer documents
LANES = 4  # as written out in `_walk`
LEAST_STEPS = 16  # a piece's last bytes are cut string by string


def longest_matches(
    trie: Trie, data: np.ndarray, offsets: np.ndarray, id_type: type = np.uint32
) -> tuple[np.ndarray, np.ndarray]:
    """Cut every document into strings of a dictionary, from its first byte on, each the longest that is there.

    Args:
        data: uint8[...], the bytes of all documents.
        offsets: int64[documents + 1] into `data`.
        id_type: np.uint16 or np.uint32, wide enough for every id.

    Returns:
        ids of all documents, and their offsets int64[documents + 1] into them, from 0.
    """
    data, offsets = data.view(), np.ascontiguousarray(offsets, np.int64).view()
    data.flags.writeable = offsets.flags.writeable = False  # the kernel is compiled anew for arrays that can be written
    ids: list[np.ndarray] = [np.empty(0, id_type)]
    ends, first = [np.zeros(1, np.int64)], 0
    while first < len(offsets) - 1:  # some documents at a time: a byte a string is the worst there is, a fifth is usual
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + AT_A_TIME, "right")) - 1)
        some, some_ends = np.empty(offsets[last] - offsets[first], id_type), np.zeros(last - first + 1, np.int64)
        _longest_matches(trie.units, trie.values, trie.root, data, offsets[first : last + 1], some, some_ends)
        ids.append(some[: some_ends[-1]].copy())
        ends.append(some_ends[1:] + ends[-1][-1])
        first = last
    return np.concatenate(ids), np.concatenate(ends)


@numba.njit(nogil=True, cache=True)
def _longest_matches(
    units: np.ndarray,
    values: np.ndarray,
    root: int,
    data: np.ndarray,
    offsets: np.ndarray,
    ids: np.ndarray,
    ends: np.ndarray,
) -> None:
    slots = np.empty(STRETCH + 1, np.uint32)  # strings of a piece lie from its first byte's place on
    most = STRETCH // PIECE + min(STRETCH, len(offsets)) + 1
    starts, stops, limits = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    document, place, out = 0, offsets[0], np.int64(0)
    while document < len(offsets) - 1:
        origin, last = place, document
        pieces, start = 0, place
        while last < len(offsets) - 1 and start < origin + STRETCH:  # pieces of the next stretch of text
            stop = min(start + PIECE, offsets[last + 1], origin + STRETCH)
            if stop > start:
                starts[pieces], stops[pieces], limits[pieces] = start, stop, offsets[last + 1]
                pieces += 1
            start = stop
            if start == offsets[last + 1]:
                last += 1
        _cut_pieces(units, values, root, data, starts[:pieces], stops, limits, origin, slots)
        for piece in range(pieces):
            # empty documents end here too; so does one whose last piece lies within a string of the piece before
            while document < len(offsets) - 1 and place == offsets[document + 1]:
                document += 1
                ends[document] = out
            place, out = _join(
                units, values, root, data, starts[piece], stops[piece], limits[piece], origin, slots, place, ids, out
            )
        while document < len(offsets) - 1 and place == offsets[document + 1]:
            document += 1
            ends[document] = out


@numba.njit(nogil=True, cache=True)
def _join(
    units: np.ndarray,
    values: np.ndarray,
    root: int,
    data: np.ndarray,
    start: int,
    stop: int,
    limit: int,
    origin: int,
    slots: np.ndarray,
    place: int,
    ids: np.ndarray,
    out: int,
) -> tuple[np.int64, np.int64]:
    """Write the ids from `place` to the end of a piece; returns the place reached and the ids written so far."""
    true, found, end = np.uint64(place), np.uint64(start), np.uint64(stop)
    write, read = np.uint64(out), np.uint64(start - origin)
    while true < end:
        if found < true:
            found += np.uint64(values[slots[read]]) >> np.uint64(ID_BITS)
            read += np.uint64(1)
            continue
        if found == true:
            slot = np.uint64(slots[read])
        else:
            slot = longest_string(units, np.uint64(root), data, true, np.uint64(limit))
        value = np.uint64(values[slot])
        ids[write] = value & np.uint64(ID_MASK)
        write += np.uint64(1)
        true += value >> np.uint64(ID_BITS)
    return np.int64(true), np.int64(write)  # with `int` both would be unsigned, and the caller's places floats


@numba.njit(nogil=True, cache=True)
def _cut_pieces(
    units: np.ndarray,
    values: np.ndarray,
    root: int,
    data: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    limits: np.ndarray,
    origin: int,
    slots: np.ndarray,
) -> None:
    """Cut every piece from its first byte on; its last string may reach beyond it, up to its document's end."""
    lanes = np.empty((LANES, 4), np.uint64)  # place, base, end of the longest string so far, where to write
    piece_of = np.full(LANES, -1)
    taken, steps = 0, 1
    while steps > 0:
        steps = STRETCH
        for lane in range(LANES):
            piece = piece_of[lane]
            while piece < 0 or stops[piece] - np.int64(lanes[lane, 0]) < LEAST_STEPS:
                if piece >= 0:
                    _finish(units, values, root, data, lanes[lane], stops[piece], limits[piece], slots)
                piece = taken if taken < len(starts) else -1
                piece_of[lane] = piece
                if piece < 0:
                    break
                lanes[lane, 0], lanes[lane, 1], lanes[lane, 2] = starts[piece], root, starts[piece]
                lanes[lane, 3] = starts[piece] - origin
                taken += 1
            # one step less than there are bytes, for a step writes one place too far
            steps = min(steps, stops[piece] - np.int64(lanes[lane, 0]) - 1) if piece >= 0 else 0
        if steps > 0:
            _walk(units, root, data, lanes, steps, slots)
    for lane in range(LANES):
        piece = piece_of[lane]
        if piece >= 0:
            _finish(units, values, root, data, lanes[lane], stops[piece], limits[piece], slots)


@numba.njit(nogil=True, cache=True)
def _finish(
    units: np.ndarray,
    values: np.ndarray,
    root: int,
    data: np.ndarray,
    lane: np.ndarray,
    stop: int,
    limit: int,
    slots: np.ndarray,
) -> None:
    """Cut the rest of a piece; the string that the lane is within is begun again."""
    place, write = lane[0], lane[3]
    if lane[1] != np.uint64(root):
        place = lane[2] - (np.uint64(values[slots[write]]) >> np.uint64(ID_BITS))
    while place < np.uint64(stop):
        slot = longest_string(units, np.uint64(root), data, place, np.uint64(limit))
        slots[write] = slot
        write += np.uint64(1)
        place += np.uint64(values[slot]) >> np.uint64(ID_BITS)


@numba.njit(nogil=True, inline="always")
def _step(
    units: np.ndarray,
    data: np.ndarray,
    slots: np.ndarray,
    root: np.uint64,
    place: np.uint64,
    base: np.uint64,
    best: np.uint64,
    write: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Follow one byte; where the trie ends, write the longest string and go back to its end. No branch.

    A slot that is no string is written one place too far, where the next one overwrites it.
    """
    byte = np.uint64(data[place])
    slot = base ^ byte
    unit = np.uint64(units[slot])
    one, none = np.uint64(1), np.uint64(0)
    hit = np.uint64(np.int64(((unit ^ byte) & np.uint64(BYTE_MASK)) - one) >> np.int64(63))  # all bits, or none
    string = unit >> np.uint64(STRING_SHIFT) & hit
    slots[write + (one - string)] = slot
    ahead = place + one
    best ^= (best ^ ahead) & (none - string)
    place = best ^ ((best ^ ahead) & hit)
    base = root ^ ((root ^ (unit >> np.uint64(BASE_SHIFT) & np.uint64(BASE_MASK))) & hit)
    return place, base, best, write + one + hit


@numba.njit(nogil=True, cache=True)
def _walk(units: np.ndarray, root: int, data: np.ndarray, lanes: np.ndarray, steps: int, slots: np.ndarray) -> None:
    """Take so many steps in each of the four lanes; their states stay in registers meanwhile."""
    start = np.uint64(root)
    place_a, base_a, best_a, write_a = lanes[0, 0], lanes[0, 1], lanes[0, 2], lanes[0, 3]
    place_b, base_b, best_b, write_b = lanes[1, 0], lanes[1, 1], lanes[1, 2], lanes[1, 3]
    place_c, base_c, best_c, write_c = lanes[2, 0], lanes[2, 1], lanes[2, 2], lanes[2, 3]
    place_d, base_d, best_d, write_d = lanes[3, 0], lanes[3, 1], lanes[3, 2], lanes[3, 3]
    for _ in range(steps):
        place_a, base_a, best_a, write_a = _step(units, data, slots, start, place_a, base_a, best_a, write_a)
        place_b, base_b, best_b, write_b = _step(units, data, slots, start, place_b, base_b, best_b, write_b)
        place_c, base_c, best_c, write_c = _step(units, data, slots, start, place_c, base_c, best_c, write_c)
        place_d, base_d, best_d, write_d = _step(units, data, slots, start, place_d, base_d, best_d, write_d)
    lanes[0, 0], lanes[0, 1], lanes[0, 2], lanes[0, 3] = place_a, base_a, best_a, write_a
    lanes[1, 0], lanes[1, 1], lanes[1, 2], lanes[1, 3] = place_b, base_b, best_b, write_b
    lanes[2, 0], lanes[2, 1], lanes[2, 2], lanes[2, 3] = place_c, base_c, best_c, write_c
    lanes[3, 0], lanes[3, 1], lanes[3, 2], lanes[3, 3] = place_d, base_d, best_d, write_d
