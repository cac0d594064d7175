"""Packed embeddings against the hidden states of transformers, which reads one sequence at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from seqmill.errors import UserError
from seqmill.models import Model, embed

Alone = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
ALIKE: Any = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("most", [16_384, 100, 5])
def test_embeddings_are_means_and_lasts_of_the_hidden_states_of_transformers(
    decoder: Model, sequences: list[np.ndarray], alone: Alone, most: int
) -> None:
    hidden = [alone(ids)[1] for ids in sequences]
    means, lasts = (embed(decoder, sequences, pooling, prefill_tokens=most) for pooling in ("mean", "last"))
    assert means.dtype == lasts.dtype == np.float32
    assert means.shape == lasts.shape == (len(sequences), decoder.config.dim)
    np.testing.assert_allclose(means, [each.mean(axis=0, dtype=np.float64) for each in hidden], **ALIKE)
    np.testing.assert_allclose(lasts, [each[-1] for each in hidden], **ALIKE)
    assert np.abs(means - lasts).max() > 0.1


def test_nothing_gives_no_vectors_and_one_token_its_own(decoder: Model) -> None:
    assert embed(decoder, []).shape == (0, decoder.config.dim)
    np.testing.assert_array_equal(embed(decoder, [[7]], "mean"), embed(decoder, [[7]], "last"))


def test_an_unknown_pooling_and_an_empty_sequence_are_refused(decoder: Model) -> None:
    with pytest.raises(UserError, match=r"pooling = 'max'.*choose mean or last"):
        embed(decoder, [[1]], "max")
    with pytest.raises(UserError, match="sequence 0 is empty"):
        embed(decoder, [[]])
