"""The ragged kernel is called as each version of torch wants it; a stand-in of each version checks what it is given."""

import pytest
import torch
from torch import Tensor

from attention_reference import HEADS, KV_HEADS, random_qkv, softmax_attention
from seqmill.errors import UserError
from seqmill.models.attention import FULL, Pattern, Segments, attend, choose_backend
from seqmill.models.attention import varlen as varlen_module


def kernel_of_2_10(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):  # type: ignore[no-untyped-def]
    assert is_causal
    return kernel_reference(q, k, v, cu_seq_q, max_q)


def kernel_of_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
    return kernel_reference(q, k, v, cu_seq_q, max_q, window_size)


def kernel_of_2_12(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
    assert enable_gqa
    assert k.shape[1] == KV_HEADS
    return kernel_reference(
        q, *(x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v)), cu_seq_q, max_q, window_size
    )


def kernel_reference(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, reach: tuple[int, int] = (-1, 0)
) -> Tensor:
    """A ragged kernel without grouped heads; `reach` back and forth, the token itself not counted."""
    assert q.shape == k.shape == v.shape
    lengths = bounds.diff().tolist()
    assert max(lengths) == longest
    back, forth = reach
    assert forth == 0
    return softmax_attention(q, k, v, lengths, None if back == -1 else back + 1)


KERNELS = [kernel_of_2_10, kernel_of_2_11, kernel_of_2_12]


@pytest.mark.parametrize(
    ("kernel", "pattern"),
    [
        *((kernel, FULL) for kernel in KERNELS),
        *((kernel, Pattern(window)) for kernel in KERNELS[1:] for window in (1, 4, 12)),
    ],
)
def test_the_ragged_kernel_is_called_as_its_version_wants(
    kernel: object, pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen_module, "varlen_kernel", lambda: kernel)
    lengths = [5, 1, 12]
    parts = random_qkv(sum(lengths))
    out = attend(*parts, Segments.of(lengths), "varlen", pattern)
    torch.testing.assert_close(out, softmax_attention(*parts, lengths, pattern.window))


def test_a_version_without_windows_is_not_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_module, "varlen_kernel", lambda: kernel_of_2_10)
    device = torch.device("cuda")
    assert choose_backend("auto", device, torch.bfloat16) == "varlen"
    assert choose_backend("auto", device, torch.bfloat16, [Pattern(4)]) == "sdpa"
    with pytest.raises(UserError, match=r"'varlen' has windows from torch 2\.11 on"):
        choose_backend("varlen", device, torch.bfloat16, [Pattern(4)])
