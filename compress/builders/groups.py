"""Documents of similar bytes put together, so that each group can have a dictionary of its own.

Scripts differ in the bytes that begin their letters, languages in their letters, program text in its signs. So
documents are told apart by how often each byte occurs in them: k-means on the square roots of the shares (Hellinger
distance), every document weighted with its bytes. All numbers that matrices multiply and add are whole, and small
enough for floats to be exact whatever the order: groups do not depend on the number of threads.
"""

import math

import numba
import numpy as np

LOOKED_AT = 1 << 14  # bytes of a document
MOST_FITTED = 50_000  # documents that the centres are found with: every n-th of them
AT_A_TIME = 4096  # documents that are put into their groups together: 2 kB each
ROUNDS = 30  # at most
SCALE = 4096  # of points and centres, which are whole numbers from 0 to this


def group_documents(offsets: np.ndarray, data: np.ndarray, groups: int) -> np.ndarray:
    """The group of every document, int64[documents], from 0.

    The first centre is the mean of all; each further one begins at the document that most bytes are farthest from.

    Args:
        offsets: int64[documents + 1] into `data`.
        data: uint8[...], the bytes of all documents.
        groups: 1 or more. There may be documents of fewer groups only.
    """
    documents = len(offsets) - 1
    if groups == 1 or not documents:
        return np.zeros(documents, np.int64)
    step = -(-documents // MOST_FITTED)
    weights = np.minimum(np.diff(offsets)[::step], LOOKED_AT).astype(np.float64)
    points = _points(offsets, data, step)
    centres = _first_centres(points, weights, groups)
    nearest = np.full(len(points), -1)
    for _ in range(ROUNDS):
        former, nearest = nearest, np.argmax(points @ centres.T, axis=1)
        if (former == nearest).all():
            break
        for group in range(groups):
            total = weights[nearest == group] @ points[nearest == group]
            if total.any():
                centres[group] = _on_sphere(total)
    return np.concatenate(
        [
            np.argmax(_points(offsets[first : first + AT_A_TIME + 1], data, 1) @ centres.T, axis=1)
            for first in range(0, documents, AT_A_TIME)
        ]
    )


def _first_centres(points: np.ndarray, weights: np.ndarray, groups: int) -> np.ndarray:
    centres = np.tile(_on_sphere(weights @ points), (groups, 1))
    closeness = points @ centres[0]
    for group in range(1, groups):
        centres[group] = points[np.argmax(weights * (SCALE**2 - closeness))]
        closeness = np.maximum(closeness, points @ centres[group])
    return centres


def _on_sphere(total: np.ndarray) -> np.ndarray:
    length = math.isqrt(sum(int(share) ** 2 for share in total))
    return np.rint(total / max(length, 1) * SCALE)


@numba.njit(nogil=True, cache=True)
def _points(offsets: np.ndarray, data: np.ndarray, step: int) -> np.ndarray:
    """Square roots of the shares of each byte in every `step`-th document: float64[documents, 256], of length SCALE."""
    points = np.zeros((-(-(len(offsets) - 1) // step), 256))
    for row in range(len(points)):
        start = offsets[row * step]
        stop = min(offsets[row * step + 1], start + LOOKED_AT)
        for place in range(start, stop):
            points[row, data[place]] += 1
        for byte in range(256):
            points[row, byte] = np.rint(SCALE * np.sqrt(points[row, byte] / max(1, stop - start)))
    return points
