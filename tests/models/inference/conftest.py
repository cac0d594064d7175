"""Models whose logits are far from uniform, and the independent decoder that reads the same weights."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqmill.models import Model, ModelConfig
from seqmill.models.huggingface import export_huggingface

CONFIG = ModelConfig(vocab_size=100, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48)
LENGTHS = (7, 1, 30, 7, 2, 64, 1, 15, 128, 3)


def made(**variants: Any) -> Model:
    model = Model(replace(CONFIG, **variants), seed=1).eval().requires_grad_(False)
    model.embedding.weight.mul_(10.0)
    return model


@pytest.fixture(autouse=True, scope="package")
def _short_spans() -> Iterator[None]:
    """Let what short prompts share be attended to at once, as only long ones would."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("seqmill.models.inference.attention.spans.LEAST_SAVED", 1)
        yield


@pytest.fixture(scope="session")
def decoder() -> Model:
    return made()


@pytest.fixture(scope="session")
def variant_of() -> Callable[..., Model]:
    """variant_of(window=8): the same with other settings."""
    return made


@pytest.fixture(scope="session")
def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(100, size=length) for length in LENGTHS]


@pytest.fixture(scope="session")
def theirs(decoder: Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The decoder's weights as transformers runs them."""
    from transformers import AutoModelForCausalLM

    folder: Path = tmp_path_factory.mktemp("exported")
    export_huggingface(decoder, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def alone(theirs: Any) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """alone(ids): log-probabilities of all tokens but the first, and hidden states of all, of one unpadded sequence."""

    @torch.no_grad()
    def read(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output = theirs(torch.from_numpy(ids)[None], output_hidden_states=True)
        log_p = output.logits[0].log_softmax(-1).numpy()
        return log_p[np.arange(len(ids) - 1), ids[1:]], output.hidden_states[-1][0].numpy()

    return read
