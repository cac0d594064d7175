import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from seqmill.pipeline.traps.metrics import (
    auc,
    bootstrap_interval,
    delong_interval,
    separation,
    share_above,
    true_positives_at,
)

values = st.lists(st.integers(-5, 5) | st.floats(-10, 10), min_size=1, max_size=40).map(np.array)


@given(values, values)
def test_the_auc_is_the_mann_whitney_statistic_with_ties_counted_half(members: np.ndarray, others: np.ndarray) -> None:
    pairs = len(members) * len(others)
    differ = len({*members, *others}) > 1  # scipy divides by their spread
    statistic = mannwhitneyu(others, members, method="asymptotic").statistic if differ else pairs / 2
    assert auc(members, others) == pytest.approx(statistic / pairs)


@given(values, values)
def test_shares_are_those_of_a_comparison_of_every_pair(members: np.ndarray, others: np.ndarray) -> None:
    pairs = (others[None] > members[:, None]) + 0.5 * (others[None] == members[:, None])
    np.testing.assert_allclose(share_above(members, others), pairs.mean(axis=1))


def test_delongs_interval_is_that_of_the_row_and_column_means_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    members, others = random.normal(0, 1, 30), random.normal(0.7, 1, 50)
    pairs = (others[None] > members[:, None]).astype(float)
    variance = pairs.mean(axis=1).var(ddof=1) / 30 + pairs.mean(axis=0).var(ddof=1) / 50
    expected = pairs.mean() + np.array([-1, 1]) * 1.96 * np.sqrt(variance)
    np.testing.assert_allclose(delong_interval(members, others), expected, atol=1e-4)


def test_the_bootstrap_agrees_with_resampling_by_hand_and_roughly_with_delong() -> None:
    random = np.random.default_rng(1)
    members, others = random.normal(0, 1, 60).round(1), random.normal(0.5, 1, 80).round(1)
    found = bootstrap_interval(members, others, 1000, seed=7)
    slow = [auc(random.choice(members, 60), random.choice(others, 80)) for _ in range(1000)]
    np.testing.assert_allclose(found, np.quantile(slow, [0.025, 0.975]), atol=0.02)
    np.testing.assert_allclose(found, delong_interval(members, others), atol=0.02)
    assert found == bootstrap_interval(members, others, 1000, seed=7)
    assert found != bootstrap_interval(members, others, 1000, seed=8)


@pytest.mark.parametrize("count", [5, 99, 100, 700, 2900])
def test_true_positives_are_the_most_that_any_threshold_finds(count: int) -> None:
    random = np.random.default_rng(count)
    members, others = random.normal(0, 1, 50).round(1), random.normal(1.5, 1, count).round(1)
    thresholds = [t for t in [*members, *others, 100] if (others < t).sum() * 100 <= count]
    best = max((members < t).mean() for t in thresholds)
    assert true_positives_at(members, others, 0.01) == best


def test_values_that_are_all_equal_tell_nothing_apart() -> None:
    found = separation(np.zeros(8), np.zeros(9), 100, 0)
    assert (found.auc, found.auc_ci95, found.auc_ci95_delong, found.tpr_at_1pct_fpr) == (0.5, (0.5, 0.5), (0.5, 0.5), 0)


def test_values_that_do_not_overlap_are_told_apart_by_all_measures() -> None:
    found = separation(np.arange(8.0), np.arange(10.0, 19), 100, 0)
    assert (found.auc, found.auc_ci95, found.tpr_at_1pct_fpr) == (1, (1, 1), 1)


def test_a_single_pair_has_no_delong_interval() -> None:
    assert separation(np.zeros(1), np.ones(1), 10, 0).auc_ci95_delong is None
