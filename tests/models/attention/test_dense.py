"""How the dense backend lays documents out: nothing copied where it need not be, nothing quadratic behind a window."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attention_reference import HEAD_DIM, HEADS, KV_HEADS, random_qkv, softmax_attention
from seqmill.models.attention import FULL, Pattern, Segments, attend
from seqmill.models.attention import dense as dense_module
from seqmill.models.attention.dense import _grouped, prepare_dense


class LargestTensor(TorchDispatchMode):
    """Sees every operation: names of those that ran, numbers in the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


@pytest.mark.parametrize("lengths", [[64], [40] * 5, [1] * 9])
def test_documents_of_one_length_are_a_batch_without_copies_and_give_the_same_bits(lengths: list[int]) -> None:
    segments = Segments.of(lengths)
    q, k, v = random_qkv(sum(lengths), dtype=torch.float32)
    together = torch.cat((q, k, v), dim=1).split((HEADS, KV_HEADS, KV_HEADS), dim=1)  # views of one projection
    with LargestTensor() as seen:
        out = attend(*together, segments, "sdpa")
    assert not {"index_copy", "index_select", "cat", "clone", "new_zeros"} & set(seen.operations)
    assert torch.equal(out, _grouped(segments)(*together))


def test_a_long_document_with_a_window_takes_memory_for_tokens_times_the_window_at_most() -> None:
    tokens, window = 20_000, 100
    parts = random_qkv(tokens, dtype=torch.float32)
    with LargestTensor() as seen:
        out = attend(*parts, Segments.of([tokens]), "sdpa", Pattern(window, 4))
    assert seen.numbers < 4 * tokens * HEADS * HEAD_DIM  # a mask of the document would have 400 M
    tail = [x[-400:] for x in parts]
    expected = softmax_attention(*tail, [400], window)
    # what the last tokens see of the window, without sinks, is in the last 400 alone
    without = attend(*parts, Segments.of([tokens]), "sdpa", Pattern(window))
    torch.testing.assert_close(without[-300:].double(), expected[-300:], atol=1e-5, rtol=1e-5)
    assert not torch.equal(out[-300:], without[-300:])


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (64, 2048)])
@pytest.mark.parametrize("pattern", [Pattern(7), Pattern(7, 3), Pattern(1, 1), Pattern(30, 9)], ids=str)
def test_chunks_of_any_size_give_the_same(
    sizes: tuple[int, int], pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_module, "_CHUNKS", sizes)
    lengths = [1, 7, 8, 45, 30, 31]
    parts = random_qkv(sum(lengths))
    out = prepare_dense(Segments.of(lengths), pattern)(*parts)
    torch.testing.assert_close(out, softmax_attention(*parts, lengths, pattern.window, pattern.sinks))


def test_a_window_as_long_as_the_documents_changes_no_bit() -> None:
    lengths = [9, 30, 1]
    parts = random_qkv(sum(lengths))
    full, windowed = (attend(*parts, Segments.of(lengths), "sdpa", pattern) for pattern in (FULL, Pattern(30, 2)))
    assert torch.equal(full, windowed)
    assert np.array_equal(full.shape, windowed.shape)
