"""All backends against the definition on a CUDA device."""

import pytest
import torch

from attention_reference import gradients, random_qkv, softmax_attention
from seqmill.models import ModelConfig, check_isolation
from seqmill.models.attention import FULL, Pattern, Segments, attend, choose_for_batch
from seqmill.models.attention.flex import padded_length
from seqmill.models.transformer import Model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

LENGTHS = [5, 1, 130, 64, 700, 300]
PATTERNS = [FULL, Pattern(50), Pattern(50, 4)]
HEAD_DIM = 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "flex", "varlen"])
@pytest.mark.parametrize("lengths", [LENGTHS, [256] * 4], ids=["mixed", "even"])
def test_outputs_and_gradients_are_those_of_the_definition(
    backend: str, pattern: Pattern, dtype: torch.dtype, lengths: list[int]
) -> None:
    if backend == "varlen" and (dtype == torch.float32 or pattern.sinks):
        pytest.skip("the kernel cannot")
    parts = tuple(
        x.to("cuda", dtype).requires_grad_() for x in random_qkv(sum(lengths), dtype=torch.float32, head_dim=HEAD_DIM)
    )
    exact = tuple(x.detach().double().cpu().requires_grad_() for x in parts)
    out = attend(*parts, Segments.of(lengths, "cuda"), backend, pattern)
    expected = softmax_attention(*exact, lengths, pattern.window, pattern.sinks)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 2e-3  # float32 may be multiplied as TF32
    pairs = [(out, expected), *zip(gradients(out, parts), gradients(expected, exact), strict=True)]
    for found, wanted in pairs:
        error = (found.double().cpu() - wanted).norm() / wanted.norm()
        assert error < tolerance


@pytest.mark.parametrize("backend", ["sdpa", "flex", "varlen"])
def test_documents_keep_apart_to_the_last_bit(backend: str) -> None:
    config = ModelConfig(vocab_size=100, dim=128, layers=2, heads=2, kv_heads=1, head_dim=64, ffn_dim=128)
    for segments in (LENGTHS, [128] * 6):
        assert check_isolation(Model(config).cuda(), segments, backend=backend, dtype=torch.bfloat16).holds


@pytest.mark.parametrize("backend", ["sdpa", "flex", "varlen"])
def test_a_long_batch_takes_memory_for_its_tokens_alone(backend: str) -> None:
    """All scores of one head would take 2 GiB."""
    parts = [x.to("cuda", torch.bfloat16).requires_grad_() for x in random_qkv(32_768, head_dim=HEAD_DIM)]
    segments = Segments.of([30_000, 2_768], "cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(*parts, segments, backend).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2**29


def test_the_start_up_choice_times_the_kernels_that_are_there() -> None:
    config = ModelConfig(vocab_size=100, dim=128, layers=2, heads=4, kv_heads=2, head_dim=64, ffn_dim=128)
    segments = Segments.of(LENGTHS, "cuda")
    found = choose_for_batch("auto", config, segments, torch.bfloat16, always_even=True)
    assert set(found.timings) == {"varlen", "flex", "sdpa"}
    assert found.failures == {}
    assert found.timings[found.backend] == min(found.timings.values())


def test_lengths_that_differ_are_compiled_once_for_many() -> None:
    """64 shapes may be compiled; batches of many lengths need few of them, and one more would be an error."""
    parts = [x.to("cuda", torch.bfloat16) for x in random_qkv(4096, head_dim=HEAD_DIM)]
    lengths = range(1, 4097, 300)
    assert len({padded_length(length) for length in lengths}) < len(lengths)
    for length in lengths:
        out = attend(*(x[:length] for x in parts), Segments.of([length], "cuda"), "flex")
        expected = attend(*(x[:length] for x in parts), Segments.of([length], "cuda"), "sdpa")
        torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
