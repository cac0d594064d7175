"""Operations counted by hand, and devices by their names."""

import pytest
import torch

from seqmill.models import Model, ModelConfig
from seqmill.models.config import preset_config
from seqmill.models.training.flops import flops_per_token, matmul_weights, peak_flops, peak_of, training_flops
from seqmill.packing.costs import Architecture, architecture_costs


def test_gpt2_of_124m_costs_855_million_operations_a_token() -> None:
    """llm.c's GPT-2 at T = 1024 has 0.855 GFLOP a token. Its feed-forward part of 2 x 768 x 3072 weights is a SwiGLU of
    3 x 768 x 2048; by hand: 12 (4 * 768^2 + 3 * 768 * 2048) + 768 * 50257 = 123,532,032 weights."""
    model = ModelConfig(50_257, dim=768, layers=12, heads=12, kv_heads=12, head_dim=64, ffn_dim=2048)
    assert matmul_weights(model) == 123_532_032
    assert flops_per_token(model, 1024) == 6 * 123_532_032 + 12 * 12 * 768 * 1024 == 854_438_400
    assert flops_per_token(model, 1024) / 1e9 == pytest.approx(0.855, abs=6e-4)


@pytest.mark.parametrize("name", ["tiny", "bytes-0.8m"])
def test_the_weights_are_those_of_the_model_but_for_norms_and_the_embedding(name: str) -> None:
    config = preset_config(name, 64 * 3)
    model = Model(config, seed=None)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    assert matmul_weights(config) == matrices  # the tied table once, as the head


def test_an_untied_head_costs_what_a_tied_one_does() -> None:
    sizes = {"vocab_size": 100, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_dim": 48}
    tied, untied = (ModelConfig(**sizes, tied_head=is_tied) for is_tied in (True, False))  # type: ignore[arg-type]
    assert flops_per_token(tied, 64) == flops_per_token(untied, 64)
    qkv, out, ffn, head = 32 * (4 + 2 + 2) * 8, 4 * 8 * 32, 3 * 32 * 48, 32 * 100
    assert matmul_weights(tied) == 2 * (qkv + out + ffn) + head


def test_documents_cost_what_a_plan_of_packed_rows_counts() -> None:
    config = preset_config("tiny", 4096)
    shape = Architecture(
        config.layers, config.dim, config.heads, config.kv_heads, config.head_dim, config.ffn_dim, 4096
    )
    costs = architecture_costs(shape)
    lengths = [1, 7, 300, 2048]
    tokens, sum_sq = sum(lengths), sum(length**2 for length in lengths)
    assert training_flops(config, tokens, sum_sq) == costs.per_square * sum_sq + costs.per_token * tokens


def test_one_document_as_long_as_the_row_costs_half_of_the_convention_in_attention() -> None:
    config = preset_config("124m", 50_257)
    length = 4096
    weights = 6 * matmul_weights(config) * length
    attention = flops_per_token(config, length) * length - weights
    assert training_flops(config, length, length**2) - weights == pytest.approx(attention / 2, rel=1e-3)
    assert training_flops(config, length, 16 * (length // 16) ** 2) - weights < attention / 30


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_a_device_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_a_processor_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
    assert peak_flops(torch.device("cuda"), torch.float32) is None  # the table is of half precision
