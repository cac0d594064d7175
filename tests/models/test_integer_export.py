import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from seqmill.compress.integer_transformer import IntegerTransformer
from seqmill.compress.integer_weights import read_weights
from seqmill.errors import UserError
from seqmill.models import PRESETS, Model, ModelConfig, score
from seqmill.models.integer_export import integer_weights

START = 256
BYTES = ModelConfig(vocab_size=258, dim=48, layers=2, heads=4, kv_heads=2, head_dim=12, ffn_dim=80, tied_head=False)


def lively(config: ModelConfig) -> Model:
    """A model with logits far from uniform, norms that are no ones, and ids that are no bytes made impossible."""
    model = Model(config, seed=2).eval().requires_grad_(False)
    model.embedding.weight.mul_(15)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    if model.head is not None:
        model.head.weight.mul_(15)
        model.head.weight[256:] = 0
    return model


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 4}, {"kv_heads": 1, "rope_theta": 500.0}])
def test_integers_predict_what_the_floats_predict(changes: dict[str, int]) -> None:
    model = lively(dataclasses.replace(BYTES, **changes))  # type: ignore[arg-type]
    text = np.random.default_rng(0).integers(0, 256, 31).tolist()
    integers = IntegerTransformer(integer_weights(model, 32), precision=16)
    found = integers.frequencies([bytes(text[:size]) for size in range(31)]) / 2**16
    every = [[START, *text[:size], byte] for size in range(0, 31, 6) for byte in range(256)]
    exact = np.exp([scores[-1] for scores in score(model, every)]).reshape(-1, 256)
    exact /= exact.sum(axis=1, keepdims=True)
    divergence = (exact * np.log2(exact / found[::6])).sum(axis=1)
    entropy = -(exact * np.log2(exact)).sum(axis=1)
    assert divergence.max() < 0.02
    assert entropy.min() > 0.2
    assert entropy.mean() < 7


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True},
        {"window": 8},
        {"nope_every": 2},
        {"vocab_size": 256},
        {"ffn_dim": 1041},
        {"dim": 1056, "heads": 1, "kv_heads": 1},
    ],
)
def test_a_model_without_an_exact_integer_form_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"no integer form|only 1040 are exact"):
        integer_weights(Model(dataclasses.replace(BYTES, **changes)), 32)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "millions"), [("bytes-0.2m", 0.2), ("bytes-0.8m", 0.8), ("bytes-3m", 3.2)])
def test_the_presets_of_bytes_have_the_size_in_their_name_and_an_integer_form(
    name: str, millions: float, tmp_path: Path
) -> None:
    config = dataclasses.replace(PRESETS[name].model, vocab_size=258)
    assert config.parameters == pytest.approx(millions * 1e6, rel=0.1)
    weights = integer_weights(Model(config), 64)
    assert weights.shape.positions == 64
    assert IntegerTransformer(weights, cache_bytes=0).frequencies([b"ab"]).sum() == 2**14


def test_the_checked_in_model_is_of_the_shape_that_its_script_trains() -> None:
    tiny = read_weights(Path(__file__).parents[1] / "compress" / "data" / "tiny-transformer.arrow")
    assert (tiny.shape.positions, tiny.shape.heads, tiny.shape.kv_heads) == (32, 4, 2)
