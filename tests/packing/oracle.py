"""Packers as a textbook has them, on Python lists: what the plans are compared with."""

from dataclasses import dataclass, field
from itertools import pairwise

from seqmill.packing import PackPlan

Fragment = tuple[int, int, int]  # document, first token, one past the last


def fragments_of(lengths: list[int], capacity: int, overflow: str = "split", first: int = 0) -> list[Fragment]:
    """What the policy leaves of documents `first`, `first` + 1, ... in pieces of a row at most."""
    found = []
    for item, length in enumerate(lengths, first):
        kept = 0 if length > capacity and overflow == "drop" else min(length, capacity)
        kept = length if overflow == "split" else kept
        found += [(item, start, min(start + capacity, kept)) for start in range(0, kept, capacity)]
    return found


def rows_of(packed: PackPlan) -> list[list[Fragment]]:
    """The fragments of every row."""
    fragments = list(zip(packed.item.tolist(), packed.start.tolist(), packed.stop.tolist(), strict=True))
    return [fragments[a:b] for a, b in pairwise(packed.row_offsets.tolist())]


def tokens_in(row: list[Fragment]) -> int:
    return sum(stop - start for _, start, stop in row)


def first_fit(lengths: list[int], capacity: int, overflow: str) -> list[list[Fragment]]:
    rows: list[list[Fragment]] = []
    room: list[int] = []
    for fragment in fragments_of(lengths, capacity, overflow):
        length = fragment[2] - fragment[1]
        number = next((number for number, left in enumerate(room) if left >= length), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(capacity)
        rows[number].append(fragment)
        room[number] -= length
    return rows


def concatenation(lengths: list[int], capacity: int) -> list[list[Fragment]]:
    """Token by token."""
    tokens = [(item, place) for item, length in enumerate(lengths) for place in range(length)]
    rows = []
    for begin in range(0, len(tokens), capacity):
        row: list[Fragment] = []
        for item, place in tokens[begin : begin + capacity]:
            if row and row[-1][0] == item:
                row[-1] = (item, row[-1][1], place + 1)
            else:
                row.append((item, place, place + 1))
        rows.append(row)
    return rows


@dataclass
class Bin:
    room: int
    opened: int  # window
    touched: int = 0  # when it got its last fragment
    fragments: list[Fragment] = field(default_factory=list)


def windowed(lengths: list[int], capacity: int, overflow: str, window: int, open_room: int) -> list[list[Bin]]:
    """The bins that are closed after every window, and last those that the end finds open."""
    closed: list[list[Bin]] = []
    waiting: list[Bin] = []
    now = 0
    for number, first in enumerate(range(0, len(lengths), window)):
        bins, full = waiting, []
        fragments = fragments_of(lengths[first : first + window], capacity, overflow, first)
        for fragment in sorted(fragments, key=lambda one: one[1] - one[2]):
            length, now = fragment[2] - fragment[1], now + 1
            fitting = [one for one in bins if one.room >= length]
            if not fitting:
                fitting = [Bin(capacity, number)]
                bins = bins + fitting
            tightest = min(fitting, key=lambda one: (one.room, -one.touched))
            tightest.fragments.append(fragment)
            tightest.room, tightest.touched = tightest.room - length, now
            if not tightest.room:
                full.append(tightest)
                bins = [one for one in bins if one.room]
        waiting = [one for one in bins if one.opened == number and one.room >= open_room]
        closed.append([*full, *(one for one in bins if one.opened < number or one.room < open_room)])
    return [*closed, waiting]
