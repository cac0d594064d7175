import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from seqmill.compress.information_capacity import (
    Architecture,
    TextScore,
    fit_bias,
    flops_per_token,
    information_capacity,
    text_score,
)
from seqmill.errors import UserError

SMALL = Architecture(vocab_size=100, dim=8, layers=3, heads=4, kv_heads=2, head_dim=2, ffn_dim=16)


def test_operations_worked_by_hand() -> None:
    # A layer: Q and O 8x8, K and V 8x4, three matrices 8x16, two operations a number; nothing to attend to yet.
    layer = 2 * (64 + 64 + 32 + 32 + 3 * 128)
    assert flops_per_token(SMALL, decoded=1) == 3 * layer + 2 * 8 * 100 == 5056
    # The second token attends to one: 4 heads of 2 for the score and for the sum, two operations each, in 3 layers.
    assert flops_per_token(SMALL, decoded=2) == 5056 + 3 * 32 / 2
    assert flops_per_token(SMALL, prompt=10, decoded=1) == 5056 + 3 * 32 * 10
    assert flops_per_token(SMALL) == 5056 + 3 * 32 * 1023 / 2


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"gated": False}, -3 * 2 * 128),
        ({"active_experts": 3}, 3 * 2 * 3 * 128 * 2),
        ({"gated": False, "active_experts": 2}, 3 * 2 * 128),
        ({"kv_heads": 4}, 3 * 2 * 2 * 32),
        ({"vocab_size": 200}, 1600),
    ],
)
def test_what_a_choice_adds(change: dict[str, Any], difference: int) -> None:
    assert flops_per_token(replace(SMALL, **change), decoded=1) - flops_per_token(SMALL, decoded=1) == difference


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_mean_over_decoded_tokens_is_the_sum_step_by_step(prompt: int, decoded: int) -> None:
    steps = [flops_per_token(SMALL, prompt + former, 1) for former in range(decoded)]
    assert flops_per_token(SMALL, prompt, decoded) == pytest.approx(sum(steps) / decoded)


def test_a_known_model_has_the_operations_of_its_matrices() -> None:
    """Llama 3.2 1B: 973 million numbers in its layers' matrices and 2,048 x 128,256 in the head."""
    llama = Architecture(128_256, 2048, 16, 32, 8, 64, 8192)
    assert flops_per_token(llama, decoded=1) == 2 * (16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)) + (
        2 * 2048 * 128_256
    )


def test_samples_weigh_the_same_in_text_size_and_by_their_tokens_in_likelihood() -> None:
    found = text_score(np.array([10, 300]), np.array([1, 99]), np.array([2.0, 98.0]) * math.log(2))
    assert found.text_size == pytest.approx((80 + 8 * 300 / 99) / 2)
    assert found.nll == pytest.approx(1.0)


def test_capacity_worked_by_hand() -> None:
    score = TextScore(text_size=36.0, nll=4.0)
    assert information_capacity(score, 2.0**32) == 1.0
    assert information_capacity(score, 2.0**32, bias=-24.0) == 0.25
    assert information_capacity(TextScore(30.0, 8.0), 2.0**20, bias=-24.0) == -0.1


def test_two_models_get_the_bias_that_makes_them_equal() -> None:
    scores, flops = [TextScore(36.0, 6.0), TextScore(36.0, 5.0)], [2.0**30, 2.0**35]
    bias = fit_bias(scores, flops)
    assert bias == pytest.approx(-24.0)  # (30 - 24) / 30 = (31 - 24) / 35
    assert [information_capacity(s, f, bias) for s, f in zip(scores, flops, strict=True)] == pytest.approx([0.2, 0.2])


@given(st.lists(st.tuples(st.floats(1, 30), st.floats(20, 45)), min_size=3, max_size=8), st.floats(-20, 20))
def test_no_other_bias_makes_a_series_flatter(series: list[tuple[float, float]], shift: float) -> None:
    scores, flops = [TextScore(40.0, nll) for nll, _ in series], [2**bits for _, bits in series]
    assume(max(flops) / min(flops) > 1.1)

    def variance(bias: float) -> float:
        return float(np.var([information_capacity(s, f, bias) for s, f in zip(scores, flops, strict=True)]))

    best = fit_bias(scores, flops)
    assert variance(best) <= variance(best + shift) + 1e-12


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers": 0}, "layers = 0"),
        ({"active_experts": 0}, "active_experts = 0"),
        ({"kv_heads": 3}, "kv_heads must divide heads"),
    ],
)
def test_impossible_architectures_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(SMALL, **change)


def test_what_has_no_capacity_is_refused() -> None:
    empty = np.array([], np.int64)
    with pytest.raises(UserError, match="two tokens or more"):
        text_score(empty, empty, np.array([]))
    with pytest.raises(UserError, match="two tokens or more"):
        text_score(np.array([5, 0]), np.array([2, 0]), np.array([1.0, 0.0]))
    with pytest.raises(UserError, match=r"flops = 1\.0"):
        information_capacity(TextScore(30.0, 4.0), 1.0)
    with pytest.raises(UserError, match="two sizes or more"):
        fit_bias([TextScore(30.0, 4.0)], [2.0**30])
    with pytest.raises(UserError, match="two sizes or more"):
        fit_bias([TextScore(30.0, 4.0), TextScore(30.0, 5.0)], [2.0**30, 2.0**30])
