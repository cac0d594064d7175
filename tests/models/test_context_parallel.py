"""Rows split over 2 and 4 gloo ranks against one rank, which attends by the definition of attention."""

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import context_ranks
from context_ranks import BALANCE, EXPERTS, HEADS, LENGTHS, MODEL, random_batch, random_qkvw, run_on_ranks
from seqmill.errors import UserError
from seqmill.models import Model
from seqmill.models.attention import Segments
from seqmill.models.context_parallel import KINDS, ContextSplit, blocks, shard_batch
from seqmill.models.loss import cross_entropy_parts, cross_entropy_sum
from seqmill.models.moe import balance_loss, count_choices, record_routing

Results = list[dict[Any, Any]]
RANKS = (2, 4)


@pytest.fixture(scope="session", params=RANKS)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank found in all checks."""
    return run_on_ranks(context_ranks.everything, request.param, tmp_path_factory.mktemp("ranks"))


def by_definition(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Causal attention of one document, one head after the other."""
    group = q.shape[1] // k.shape[1]
    documents = []
    for q_d, k_d, v_d in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        later = torch.ones(len(q_d), len(q_d), dtype=torch.bool).triu(1)
        heads = []
        for head in range(q.shape[1]):
            scores = q_d[:, head] @ k_d[:, head // group].T / math.sqrt(q.shape[2])
            heads.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v_d[:, head // group])
        documents.append(torch.stack(heads, dim=1))
    return torch.cat(documents)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to a part of the largest number; queries and keys of single tokens have no gradient."""
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * (expected.abs().max().item() or 1.0)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_one_rank(results: Results, kind: str, lengths: str) -> None:
    split = ContextSplit(LENGTHS[lengths], len(results), kind)
    cases = [(heads, "float64", 1e-13) for heads in HEADS]
    cases += [("grouped", "float32", 1e-6), ("grouped", "bfloat16", 0.015)]
    for heads, dtype, tolerance in cases:
        given = random_qkvw(split.lengths, HEADS[heads], getattr(torch, dtype))
        *qkv, weights = (x.detach().double().requires_grad_() for x in given)
        out = by_definition(*qkv, split.lengths)
        expected = [out, *torch.autograd.grad((out * weights).sum(), qkv)]
        assert min(x.abs().max() for x in expected) > 1e-2 or max(split.lengths) == 1
        of_ranks = [[torch.from_numpy(x) for x in result[kind, lengths, heads, dtype]] for result in results]
        for parts, whole in zip(zip(*of_ranks, strict=True), expected, strict=True):
            assert_close(split.join(parts).double(), whole, tolerance)


@pytest.mark.parametrize("case", ["model", "recomputed model"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_of_a_model_are_those_of_one_rank(results: Results, kind: str, case: str) -> None:
    model, batch = Model(MODEL, seed=1), random_batch()
    lengths = batch["cu_seqlens"].diff()
    one_rank = partial(by_definition, lengths=tuple(lengths.tolist()))
    hidden = model.hidden(batch["input_ids"], batch["position_ids"], lambda _, *qkv: one_rank(*qkv))
    weights = batch["loss_weights"].repeat_interleave(lengths)
    arguments = (hidden, model.head_weight, batch["targets"], MODEL.vocab_size, None)
    expected = cross_entropy_parts(*arguments, weights_T=weights)[0] / batch["global_loss_weight"]
    expected.backward()  # type: ignore[no-untyped-call]
    loss, grads, _ = results[0][kind, case]
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert_close(torch.from_numpy(grads[name]), parameter.grad, 2e-6)
    assert sum(tokens for *_, tokens in (result[kind, case] for result in results)) == len(batch["targets"])


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_balanced_over_the_tokens_of_all_ranks(results: Results, kind: str) -> None:
    model, batch = Model(EXPERTS, seed=1), random_batch()
    segments = Segments.of(batch["cu_seqlens"].diff().tolist())
    with record_routing(model) as routings:
        hidden = model(batch["input_ids"], batch["position_ids"], segments)
    summed = cross_entropy_sum(hidden, model.head_weight, batch["targets"], EXPERTS.vocab_size)
    balance = balance_loss(routings, count_choices(routings))
    expected = summed / batch["global_loss_tokens"] + BALANCE * balance
    expected.backward()  # type: ignore[no-untyped-call]
    loss, grads = results[0][kind, "experts"]
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert_close(torch.from_numpy(grads[name]), parameter.grad, 3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_another_document_changes_no_bit_wherever_its_tokens_lie(results: Results, kind: str) -> None:
    split = ContextSplit(LENGTHS["many"], len(results), kind)

    def whole(*key: Any) -> Tensor:
        return split.join([torch.from_numpy(result[kind, *key]) for result in results])

    before = whole("undisturbed")
    assert not before.isnan().any()
    for document, (start, stop) in enumerate(itertools.pairwise(split.bounds)):
        after = whole("disturbed", document)
        assert after[start:stop].isnan().all()
        assert torch.equal(after[:start], before[:start])
        assert torch.equal(after[stop:], before[stop:])


def test_the_ring_sends_only_what_other_ranks_need(results: Results) -> None:
    for result in results:
        assert result["messages of uncut documents"] == 0
        assert result["messages of a cut document"] > len(results)


def test_heads_that_ranks_cannot_share_a_window_on_a_ring_and_another_group_are_refused(results: Results) -> None:
    ranks = len(results)
    for result in results:
        assert result["ranks"].startswith(f"context_parallel: a batch split for 3 ranks met a process group of {ranks}")
        assert "the ring shows tokens all of their document; use context_parallel = 'ulysses'" in result["window"]
        if ranks == 4:
            assert "6 query heads cannot give every rank the same number" in result["heads"]
            assert "'ring'" in result["heads"]
        else:
            assert result["heads"] == "accepted"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 7, 8, 63, 64, 100])
def test_every_token_is_on_one_rank_and_ranks_hold_alike(kind: str, tokens: int) -> None:
    for ranks in (1, 2, 3, 4):
        split = ContextSplit((tokens,), ranks, kind)
        x = torch.arange(tokens) * 10
        parts = [split.take(x, rank) for rank in range(ranks)]
        assert [len(part) for part in parts] == split.sizes()
        assert max(split.sizes()) - min(split.sizes()) <= 2
        assert torch.equal(split.join(parts), x)


def test_head_and_tail_together_are_the_same_work_for_all_ranks() -> None:
    keys = torch.arange(1, 4097)  # that each token of one document looks at
    ring, straight = (
        [int(split.take(keys, rank).sum()) for rank in range(8)]
        for split in (ContextSplit((4096,), 8, kind) for kind in ("ring", "ulysses"))
    )
    assert max(ring) == min(ring)
    assert max(straight) > 1.8 * sum(straight) / 8


def test_a_shard_tells_of_each_token_what_the_batch_tells_of_its_document() -> None:
    batch = random_batch()
    shards, splits = zip(*(shard_batch(batch, "ring", rank, 3) for rank in range(3)), strict=True)
    lengths = batch["cu_seqlens"].diff()
    for name in ("is_repeat", "loss_weights"):
        whole = splits[0].join([shard[name] for shard in shards])
        assert torch.equal(whole, batch[name].repeat_interleave(lengths))
    assert all(shard["global_loss_tokens"] == batch["global_loss_tokens"] for shard in shards)
    del batch["is_repeat"], batch["loss_weights"], batch["global_loss_weight"]
    assert set(shard_batch(batch, "ring", 0, 3)[0]) == {"input_ids", "position_ids", "targets", "global_loss_tokens"}


def test_unknown_kinds_are_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(UserError, match=r"'tree': there is no such kind; choose ulysses or ring"):
        ContextSplit((4,), 2, "tree")
    with pytest.raises(UserError, match="ranks = 0"):
        ContextSplit((4,), 0, "ring")


NEEDS_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
KERNELS = [
    pytest.param("cpu", torch.float32, blocks.FLASH_CPU, id="flash on a processor"),
    pytest.param("cpu", torch.float32, blocks.PLAIN, id="plain"),
    pytest.param("cuda", torch.bfloat16, blocks.FLASH_CUDA, id="flash on CUDA", marks=NEEDS_CUDA),
]


@pytest.mark.parametrize(("device", "dtype", "kernel"), KERNELS)
def test_every_kernel_gives_the_parts_of_attention(
    device: str, dtype: torch.dtype, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_kernel", lambda _q: kernel)
    monkeypatch.setattr(blocks, "_SCORES", 300)  # several tiles
    given = [x.detach().to(device) for x in random_qkvw((40,), (4, 2), dtype)]
    *qkv, weights = (x.cpu().double().requires_grad_() for x in given)
    expected = by_definition(*qkv, (40,))
    expected_grads = torch.autograd.grad((expected * weights).sum(), qkv)
    q, k, v, grad = given
    causal = blocks.attend_block(q[24:], k[24:], v[24:], causal=True)
    merged = blocks.merge(causal, blocks.attend_block(q[24:], k[:24], v[:24], causal=False))
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    assert_close(merged.out_QHE.cpu().double(), expected[24:].detach(), tolerance)
    merged = merged._replace(out_QHE=merged.out_QHE.to(dtype))
    of_q = sum(
        blocks.attend_block_backward(grad[24:], q[24:], k[keys], v[keys], merged, causal)[0].double().cpu()
        for keys, causal in ((slice(24), False), (slice(24, None), True))
    )
    assert isinstance(of_q, Tensor)
    assert_close(of_q, expected_grads[0][24:], tolerance)
    _, of_k, of_v = blocks.attend_block_backward(grad[24:], q[24:], k[24:], v[24:], merged, causal=True)
    assert_close(of_k.double().cpu(), expected_grads[1][24:], tolerance)
    assert_close(of_v.double().cpu(), expected_grads[2][24:], tolerance)
