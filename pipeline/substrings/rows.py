"""Rows of integers that grow inside kernels."""

import numba
import numpy as np


@numba.njit(nogil=True, cache=True, inline="always")
def with_room(rows: np.ndarray, count: int) -> np.ndarray:
    """`rows`, or a copy of twice the length if all `count` of them are taken."""
    if count < len(rows):
        return rows
    larger = np.empty((2 * len(rows), rows.shape[1]), np.int64)
    larger[:count] = rows
    return larger
