"""This project's packers, driven as its peers are; the threads are those that NUMBA_NUM_THREADS allows."""

from collections.abc import Callable

import numpy as np
from sequences import main

from seqmill.packing import plan
from seqmill.packing.pack_plan import ALGORITHMS


def by(algorithm: str) -> Callable[[np.ndarray, int], Callable[[], int]]:
    """One of the algorithms, as a variant."""
    return lambda lengths, capacity: lambda: plan(lengths, capacity, algorithm=algorithm).rows


if __name__ == "__main__":
    main("seqmill", {algorithm: by(algorithm) for algorithm in ALGORITHMS})
