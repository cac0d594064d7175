"""How well a number tells members from non-members. Members are expected to have the lower values."""

import math
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054  # 97.5 % of a normal distribution lies below
FALSE_POSITIVES = 0.01


@dataclass(frozen=True)
class Separation:
    """A membership test's quality on one group of traps."""

    members: int  # traps
    non_members: int  # traps
    auc: float  # P(a member's value is below a non-member's) + P(they are equal) / 2
    auc_ci95: tuple[float, float]  # percentile bootstrap, members and non-members resampled apart
    auc_ci95_delong: tuple[float, float] | None  # normal approximation; None with fewer than 2 on either side
    tpr_at_1pct_fpr: float  # members found where at most 1 % of the non-members are taken for members


def separation(members: np.ndarray, others: np.ndarray, resamples: int, seed: int) -> Separation:
    """Compare float64[m] values of members with float64[n] values of non-members, m, n >= 1."""
    return Separation(
        len(members),
        len(others),
        auc(members, others),
        bootstrap_interval(members, others, resamples, seed),
        delong_interval(members, others) if min(len(members), len(others)) > 1 else None,
        true_positives_at(members, others, FALSE_POSITIVES),
    )


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Area under the curve: the Mann-Whitney U statistic of the pairs that are in order, over all m * n pairs."""
    return float(share_above(members, others).mean())


def share_above(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64[len(values)]: the share of `others` that lies above each value, equal ones counted half."""
    ordered = np.sort(others)
    below, up_to = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (len(others) - (below + up_to) / 2) / len(others)


def delong_interval(members: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """95 % interval from the variance of the placements (DeLong et al. 1988), cut to [0, 1]; m, n >= 2."""
    of_members, of_others = share_above(members, others), 1 - share_above(others, members)
    error = math.sqrt(of_members.var(ddof=1) / len(members) + of_others.var(ddof=1) / len(others))
    middle = float(of_members.mean())
    return max(0.0, middle - Z_95 * error), min(1.0, middle + Z_95 * error)


def bootstrap_interval(members: np.ndarray, others: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the AUC over resamples with replacement of both sides."""
    random = np.random.default_rng(seed)
    levels, place = np.unique(np.concatenate([members, others]), return_inverse=True)
    of_members, of_others = place[: len(members)], place[len(members) :]
    areas = np.empty(resamples)
    for number in range(resamples):
        drawn = np.bincount(random.choice(of_members, len(of_members)), minlength=len(levels))
        against = np.bincount(random.choice(of_others, len(of_others)), minlength=len(levels))
        areas[number] = drawn @ (len(of_others) - np.cumsum(against) + against / 2)
    low, high = np.quantile(areas / (len(members) * len(others)), [0.025, 0.975])
    return float(low), float(high)


def true_positives_at(members: np.ndarray, others: np.ndarray, false_positives: float) -> float:
    """The share of members below the threshold that lets at most a share `false_positives` of the others through."""
    allowed = math.floor(false_positives * len(others) + 1e-9)  # 0.01 * 2900 is a little less than 29
    threshold = np.sort(others)[allowed]  # at most so many others lie strictly below
    return float((members < threshold).mean())
