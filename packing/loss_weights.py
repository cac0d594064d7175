"""How much every segment's loss counts: the ways to normalise the loss of packed rows, chosen when a model trains.

The loss of a training step is sum(weight * loss of a token) / total, with the sums over all ranks. A segment s has
n_s targets, and its document N_s in all its rows together.

    token-mean       weight 1, total = targets of the step. Every token counts alike, whatever row or rank it is in.
    sample-mean      weight 1 / N_s, total = sum of n_s / N_s. Every document counts alike, as if each stood in a row of
                     its own and the mean of its tokens were taken first (LongAlign, arXiv 2401.18058, section 3.2);
                     a document that was cut counts once in all its pieces.
    segment-mean     weight 1 / n_s, total = segments with targets. Every piece counts alike: the loss of rows that are
                     padded instead of packed (masked packing of LWM, arXiv 2402.08268, section 4.1).
    rank-token-mean  weight 1, total = ranks * targets of this rank: each rank takes its own mean, and the gradients are
                     averaged. The usual mistake, here to compare with: it changes with the number of ranks.
    sum              weight 1, total 1.

Hierarchical Balance Packing (arXiv 2503.07680, table 10) compares four of them; token-mean came out best.

    Two documents, of 3 and 1 targets with losses 1 1 1 and 5, in one step:
    token-mean (3 + 5) / 4 = 2, sample-mean (3 / 3 + 5 / 1) / 2 = 3
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError
from seqmill.packing.decomposition import kept_pairs
from seqmill.packing.pack_plan import PackPlan

Int64s = npt.NDArray[np.int64]

TOKEN_MEAN: Final = "token-mean"
NORMALISATIONS: Final = (TOKEN_MEAN, "sample-mean", "segment-mean", "rank-token-mean", "sum")


def check_normalisation(name: str) -> str:
    """`name`, if it is one of NORMALISATIONS.

    Raises:
        UserError: it is none.
    """
    if name not in NORMALISATIONS:
        raise UserError(f"unknown normalisation of the loss {name!r}; choose one of {', '.join(NORMALISATIONS)}")
    return name


def document_targets(plan: PackPlan, lengths: Int64s) -> Int64s:
    """The targets that documents of these lengths have in all rows of a plan, int64[len(lengths)].

    Every token but the first is the target of the one before it, if both are in the plan.
    """
    if plan.buckets:
        return kept_pairs(lengths, plan.buckets)
    kept = np.minimum(lengths, plan.capacity) if plan.overflow == "truncate" else lengths
    return np.maximum(kept - 1, 0)


def segment_weights(normalisation: str, segment_targets: Int64s, document_targets: Int64s) -> npt.NDArray[np.float64]:
    """What the loss of each token of a segment is multiplied with, float64[segments]; 0 for segments without targets.

    Args:
        normalisation: one of NORMALISATIONS.
        segment_targets: targets in each segment, int64[segments].
        document_targets: targets of each segment's document in all rows, int64[segments].
    """
    weights = np.zeros(len(segment_targets))
    has_targets = segment_targets > 0
    if normalisation == "sample-mean":
        weights[has_targets] = 1 / document_targets[has_targets]
    elif normalisation == "segment-mean":
        weights[has_targets] = 1 / segment_targets[has_targets]
    else:
        weights[has_targets] = 1
    return weights


def total_weight(
    normalisation: str, segment_targets: Int64s, document_targets: Int64s, rank_targets: int, ranks: int
) -> float:
    """What a step's weighted sum is divided by; 1 where that would be 0.

    Args:
        segment_targets, document_targets: of all segments of the step, those of the other ranks included.
        rank_targets: targets of this rank in the step.
    """
    if normalisation == "sum":
        return 1.0
    if normalisation == "rank-token-mean":
        return float(max(1, rank_targets) * ranks)
    weights = segment_weights(normalisation, segment_targets, document_targets)
    return float(weights @ segment_targets) or 1.0
