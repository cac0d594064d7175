"""A bound on entropies that leads to patches of a wanted mean length, from a histogram over a sample.

Bounds lie on the grid of the stored entropies, 2^-13 nats, and histograms count how many scores lie between two grid
points: so the counts of parts add up exactly, and the bound is the same however the sample was divided.
"""

import numba
import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError
from seqmill.tokenizers_ext.patching.boundaries import Int64s
from seqmill.tokenizers_ext.patching.config import HIGHEST_GIVEN, PatchConfig
from seqmill.tokenizers_ext.patching.scorer import STEPS_PER_NAT
from seqmill.tokenizers_ext.patching.scores import Piece

BINS = int(2 * HIGHEST_GIVEN * STEPS_PER_NAT)  # scores from -8 to 8 nats
_ZERO = BINS // 2


def empty_histogram() -> Int64s:
    """int64[BINS]; bin b counts scores that are above grid point b - 1 and at most grid point b."""
    return np.zeros(BINS, np.int64)


def add_scores(histogram: Int64s, config: PatchConfig, offsets: Int64s, piece: Piece) -> int:
    """Count what `config.rule` compares with the bound that is wanted, for all bytes of a piece that it decides about:
    those from a document's third byte on.

    Returns:
        How many bytes it decides about; those that theta_add rules out are in no bin.
    """
    least = config.theta_add if config.rule == "both" and config.theta_add is not None else -np.inf
    return int(_add(histogram, config.rule == "monotonic", offsets, *piece, least))


@numba.njit(nogil=True, cache=True)
def _add(
    histogram: Int64s,
    is_rise: bool,
    offsets: Int64s,
    first: int,
    start: int,
    stop: int,
    entropy: npt.NDArray[np.float32],
    least_rise: float,
) -> int:
    decided = 0
    d = np.searchsorted(offsets, start, side="right") - 1
    while d < len(offsets) - 1 and offsets[d] < stop:
        for j in range(max(offsets[d] + 2, start), min(offsets[d + 1], stop)):
            h = np.float64(entropy[j - first])
            rise = h - np.float64(entropy[j - 1 - first])
            decided += 1
            if rise > least_rise:
                step = np.ceil((rise if is_rise else h) * STEPS_PER_NAT)
                histogram[np.int64(min(max(step + _ZERO, 0.0), BINS - 1.0))] += 1
        d += 1
    return decided


def choose_bound(histogram: Int64s, decided: int, config: PatchConfig) -> float:
    """The lowest bound on the grid above which at most one in `config.target_bytes` of the scores lies: their
    (1 - 1 / target) quantile. A theta is 0 at least.

    Raises:
        UserError: no byte was scored, or theta_add alone leaves longer patches than wanted.
    """
    assert config.target_bytes is not None
    if not decided:
        raise UserError(
            "there is no document of three bytes or more to choose theta from: all were filtered out, or "
            "patching.ngram.sample_bytes is too small"
        )
    wanted = decided / config.target_bytes
    above = np.cumsum(histogram[::-1])[::-1] - histogram  # scores above each grid point
    if above[0] + histogram[0] < wanted:
        raise UserError(
            f"patching.theta_add = {config.theta_add}: the entropy rises by more at one in "
            f"{decided / max(1, int(histogram.sum())):.1f} bytes, so that no theta leads to patches of "
            f"{config.target_bytes} bytes; lower theta_add, or ask for longer patches"
        )
    lowest = 0 if config.rule == "monotonic" else _ZERO
    return (max(lowest, int(np.argmax(above <= wanted))) - _ZERO) / STEPS_PER_NAT
