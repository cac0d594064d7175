"""Packed scores against transformers, which reads one sequence at a time from the same weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.models import Model, score
from seqmill.models.attention import Segments

Alone = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
ALIKE: Any = {"atol": 1e-5, "rtol": 1e-5}


@torch.inference_mode()
def recomputed(model: Model, ids: np.ndarray) -> np.ndarray:
    segments = Segments.of([len(ids)])
    log_p = model.logits(model(torch.from_numpy(ids), segments.positions(), segments)).log_softmax(-1).numpy()
    return log_p[np.arange(len(ids) - 1), ids[1:]]


def test_scores_are_the_log_probabilities_that_transformers_finds_one_sequence_at_a_time(
    decoder: Model, sequences: list[np.ndarray], alone: Alone
) -> None:
    for found, ids in zip(score(decoder, sequences), sequences, strict=True):
        assert found.dtype == np.float32
        assert len(found) == len(ids) - 1
        np.testing.assert_allclose(found, alone(ids)[0], **ALIKE)
    assert np.concatenate(score(decoder, sequences)).std() > 0.1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), max_size=12), most=st.integers(1, 90), seed=st.integers(0, 9))
def test_scores_do_not_depend_on_how_sequences_are_packed_or_cut_into_chunks(
    decoder: Model, lengths: list[int], most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(100, size=length) for length in lengths]
    found = score(decoder, drawn, prefill_tokens=most)
    assert [len(each) for each in found] == [length - 1 for length in lengths]
    for each, ids in zip(found, drawn, strict=True):
        np.testing.assert_allclose(each, recomputed(decoder, ids), **ALIKE)


def test_a_sequence_longer_than_a_pass_is_scored_whole(decoder: Model, alone: Alone) -> None:
    ids = np.random.default_rng(1).integers(100, size=1000)
    expected = alone(ids)[0]
    for most in (999, 256, 7):
        np.testing.assert_allclose(score(decoder, [ids], prefill_tokens=most)[0], expected, **ALIKE)


@pytest.mark.parametrize(
    "variant", [{"window": 8, "sinks": 3}, {"window": 16, "full_every": 2}, {"nope_every": 1}], ids=str
)
def test_so_is_one_of_a_model_whose_layers_see_a_window(
    variant: dict[str, int], variant_of: Callable[..., Model], decoder: Model
) -> None:
    model, ids = variant_of(**variant), np.random.default_rng(1).integers(100, size=300)
    found = score(model, [ids], prefill_tokens=50)[0]
    np.testing.assert_allclose(found, recomputed(model, ids), **ALIKE)
    assert np.abs(found - score(decoder, [ids])[0]).max() > 0.1


def test_permuting_the_sequences_permutes_the_scores(decoder: Model, sequences: list[np.ndarray]) -> None:
    order = np.random.default_rng(3).permutation(len(sequences))
    straight = score(decoder, sequences, prefill_tokens=80)
    permuted = score(decoder, [sequences[place] for place in order], prefill_tokens=80)
    for place, found in zip(order, permuted, strict=True):
        np.testing.assert_allclose(found, straight[place], **ALIKE)


def test_the_contents_of_a_sequence_change_no_bit_of_the_others(decoder: Model, sequences: list[np.ndarray]) -> None:
    changed = [*sequences]
    changed[5] = (changed[5] + 1) % 100
    before, after = score(decoder, sequences), score(decoder, changed)
    assert [np.array_equal(*pair) for pair in zip(before, after, strict=True)] == [k != 5 for k in range(len(changed))]


def test_lists_and_narrow_arrays_are_scored_alike(decoder: Model, sequences: list[np.ndarray]) -> None:
    expected = score(decoder, sequences)
    for given_as in ([ids.tolist() for ids in sequences], [ids.astype(np.uint16) for ids in sequences]):
        assert all(map(np.array_equal, score(decoder, given_as), expected))


def test_nothing_gives_nothing_and_one_token_gives_no_score(decoder: Model) -> None:
    assert score(decoder, []) == []
    assert [len(each) for each in score(decoder, [[3], [4], [5]])] == [0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[1], []], "sequence 1 is empty"),
        ([[1], [2], [5, 100, 3]], r"sequence 2 holds the id 100, but the model's vocabulary is 0 \.\. 99"),
        ([[1, 2], [3, -1]], "sequence 1 holds the id -1"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_number(decoder: Model, wrong: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(decoder, wrong)


def test_a_pass_of_no_tokens_is_refused(decoder: Model) -> None:
    with pytest.raises(UserError, match="a forward pass of 0 tokens"):
        score(decoder, [[1, 2]], prefill_tokens=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_scores_on_cuda_are_those_on_the_processor(
    variant_of: Callable[..., Model], sequences: list[np.ndarray]
) -> None:
    expected = score(variant_of(), sequences)
    for found, each in zip(score(variant_of().cuda(), sequences, prefill_tokens=100), expected, strict=True):
        np.testing.assert_allclose(found, each, atol=1e-4, rtol=1e-4)
    for found, each in zip(score(variant_of().cuda().bfloat16(), sequences), expected, strict=True):
        np.testing.assert_allclose(found, each, atol=0.3)
