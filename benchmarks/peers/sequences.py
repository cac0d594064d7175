"""What every driver of a packer does: read lengths, pack them a few times, say how long it took and how many rows.

    python plan_PEER.py describe OUT                            version, names of its variants
    python plan_PEER.py plan OUT LENGTHS CAPACITY [VARIANT]     seconds and rows, of all variants or of one

LENGTHS is a .npy file of int64. A sequence is at most as long as a row: longer ones were cut before. Only the packing
is timed: what a peer is given, in types of its own, is there before. Drivers run in the peer's own environment, so
this file uses numpy and the standard library only.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from protocol import answer

Variant = Callable[[np.ndarray, int], Callable[[], int]]

REPEATS, SECONDS = 9, 5.0  # the best of so many, or of as many as there is time for


def main(package: str, variants: dict[str, Variant]) -> None:
    """Do the task that the command line names; a variant makes of lengths and capacity what packs and counts rows."""

    def task(_out: Path, lengths: str, capacity: str, *chosen: str) -> dict[str, Any]:
        given = np.load(lengths)
        return {"variants": {name: measured(variants[name], given, int(capacity)) for name in chosen or variants}}

    answer(package, {"plan": task}, variants=list(variants))


def measured(make: Variant, lengths: np.ndarray, capacity: int) -> dict[str, Any]:
    """Seconds of the best call, and the rows that it gave."""
    make(lengths[:1000], capacity)()  # loads code
    pack, times = make(lengths, capacity), list[float]()
    while len(times) < REPEATS and sum(times) < SECONDS:
        began = time.perf_counter()
        rows = pack()
        times.append(time.perf_counter() - began)
    return {"seconds": min(times), "rows": rows}
