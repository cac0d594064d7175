"""Work of the ranks of a gloo group on one machine, each in a process of its own; see tests/models."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig
from seqmill.models.attention import Segments
from seqmill.models.context_parallel import KINDS, ContextSplit, context_attention, shard_batch
from seqmill.models.loss import cross_entropy_parts, cross_entropy_sum
from seqmill.models.moe import balance_loss, expert_counts, record_routing
from seqmill.models.transformer import LayerAttention, packed_attention

HEAD_DIM = 8
BALANCE = 0.5  # weight of the balancing loss, large enough to show in all gradients
LENGTHS = {  # of documents
    "many": (1, 5, 30, 1, 1, 17, 9),
    "one": (64,),
    "crossing several chunks": (3, 41, 1, 20),
    "fewer tokens than chunks": (1, 2),
    "fewer tokens than ranks": (1, 1),
    "uncut": (8, 8, 8, 8, 8, 8, 8, 8),  # chunks of 2 and of 4 ranks begin with a document
}
HEADS = {"grouped": (4, 2), "one key head": (4, 1), "not divided by four": (12, 6)}  # of queries, of keys
MODEL = ModelConfig(vocab_size=100, dim=32, layers=3, heads=4, kv_heads=2, head_dim=HEAD_DIM, ffn_dim=48)

EXPERTS = replace(MODEL, ffn_dim=24, experts=6, experts_per_token=2)


def run_on_ranks(work: Callable[[dist.ProcessGroup], Any], ranks: int, folder: Path) -> list[Any]:
    """What `work` returns on each rank of a gloo group; numpy arrays and the like, no tensors.

    The processes are forks of one that has imported torch and done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["seqmill.models.context_parallel"])
    store = folder / f"store-{ranks}"
    started = []
    for rank in range(ranks):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_one_rank, args=(work, rank, ranks, store, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, mine))
    try:
        return [mine.recv() for _, mine in started]  # EOFError where a rank failed; its traceback is on stderr
    finally:
        for process, _ in started:
            process.join(10)
            process.kill()


def _one_rank(work: Callable[[dist.ProcessGroup], Any], rank: int, ranks: int, store: Path, result: Connection) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=limit)
    assert dist.group.WORLD is not None
    result.send(work(dist.group.WORLD))
    dist.barrier()
    dist.destroy_process_group()


def attention_within(segments: Segments) -> LayerAttention:
    return packed_attention(segments, "sdpa")


def split_attention(group: dist.ProcessGroup, split: ContextSplit) -> LayerAttention:
    return context_attention(split, group, attention_within, "cpu", windowed=False)


def random_qkvw(lengths: tuple[int, ...], heads: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, and the weights of the outputs in what is differentiated; leaves."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), count, HEAD_DIM) for count in (heads[0], heads[1], heads[1], heads[0])]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def random_batch() -> dict[str, Any]:
    """A batch as a PackedDataset gives it, with weights per document."""
    lengths = LENGTHS["many"]
    generator = torch.Generator().manual_seed(0)
    segments = Segments.of(lengths)
    ids = torch.randint(MODEL.vocab_size, (sum(lengths),), generator=generator)
    targets = ids.roll(-1)
    targets[segments.cu_seqlens[1:].long() - 1] = -100
    return {
        "input_ids": ids,
        "position_ids": segments.positions(),
        "targets": targets,
        "cu_seqlens": segments.cu_seqlens,
        "is_repeat": torch.arange(len(lengths)) % 3 == 0,
        "loss_weights": 1.0 + torch.arange(len(lengths)),
        "global_loss_tokens": int((targets != -100).sum()),
        "global_loss_weight": 77.0,
    }


def everything(group: dist.ProcessGroup) -> dict[Any, Any]:
    """All checks of one number of ranks, since starting them takes longer than the checks."""
    found: dict[Any, Any] = {}
    for kind in KINDS:
        for lengths in LENGTHS:
            for heads in HEADS:
                found[kind, lengths, heads, "float64"] = _attention(group, kind, lengths, heads, torch.float64)
            for dtype in (torch.float32, torch.bfloat16):
                found[kind, lengths, "grouped", str(dtype)[6:]] = _attention(group, kind, lengths, "grouped", dtype)
        for document in range(len(LENGTHS["many"])):
            found[kind, "disturbed", document] = _disturbed(group, kind, document)
        found[kind, "undisturbed"] = _disturbed(group, kind, None)
        found[kind, "model"] = _model(group, kind)
        found[kind, "recomputed model"] = _model(group, kind, recompute=True)
        found[kind, "experts"] = _experts(group, kind)
    found["messages of uncut documents"] = _count_messages(group, "uncut")
    found["messages of a cut document"] = _count_messages(group, "one")
    found["heads"] = _refusal(lambda: _attention(group, "ulysses", "one", (6, 2), torch.float32))
    split = ContextSplit((8,), 3, "ring")
    rings = ContextSplit((8,), group.size(), "ring")
    found["window"] = _refusal(lambda: context_attention(rings, group, attention_within, "cpu", windowed=True))
    found["ranks"] = _refusal(lambda: split_attention(group, split))
    return found


def _attention(
    group: dist.ProcessGroup, kind: str, lengths: str, heads: str | tuple[int, int], dtype: torch.dtype
) -> list[Any]:
    """This rank's part of the output, and of the gradients of q, k and v; bfloat16 as float32."""
    split = ContextSplit(LENGTHS[lengths], group.size(), kind)
    whole = random_qkvw(LENGTHS[lengths], HEADS[heads] if isinstance(heads, str) else heads, dtype)
    *qkv, weights = (split.take(x.detach(), group.rank()).requires_grad_() for x in whole)
    out = split_attention(group, split)(0, *qkv)
    grads = torch.autograd.grad((out * weights).sum(), qkv, materialize_grads=True)  # a rank may have no tokens
    return [(x.float() if dtype == torch.bfloat16 else x).detach().numpy() for x in (out, *grads)]


def _disturbed(group: dist.ProcessGroup, kind: str, document: int | None) -> Any:
    """This rank's output where one document holds nothing but NaN."""
    split = ContextSplit(LENGTHS["many"], group.size(), kind)
    *qkv, _ = (x.detach() for x in random_qkvw(split.lengths, HEADS["grouped"], torch.float32))
    if document is not None:
        for x in qkv:
            x[split.bounds[document] : split.bounds[document + 1]] = torch.nan
    parts = (split.take(x, group.rank()) for x in qkv)
    return split_attention(group, split)(0, *parts).numpy()


def _model(group: dist.ProcessGroup, kind: str, recompute: bool = False) -> tuple[float, dict[str, Any], int]:
    """The loss and gradients of all ranks together, and the tokens of this one."""
    model = Model(MODEL, seed=1)
    for block in model.blocks if recompute else ():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    shard, split = shard_batch(random_batch(), kind, group.rank(), group.size())
    attention = split_attention(group, split)
    hidden = model.hidden(shard["input_ids"], shard["position_ids"], attention)
    arguments = (hidden, model.head_weight, shard["targets"], MODEL.vocab_size, shard["is_repeat"])
    summed, _ = cross_entropy_parts(*arguments, weights_T=shard["loss_weights"])
    loss = summed / shard["global_loss_weight"]
    loss.backward()
    return (*_summed(group, model, loss), len(shard["targets"]))


def _experts(group: dist.ProcessGroup, kind: str) -> tuple[float, dict[str, Any]]:
    """The loss of a model with experts and its gradients, with the routing of all ranks balanced as one."""
    model = Model(EXPERTS, seed=1)
    shard, split = shard_batch(random_batch(), kind, group.rank(), group.size())
    attention = split_attention(group, split)

    def forward(part: dict[str, Any]) -> Tensor:
        return model.hidden(part["input_ids"], part["position_ids"], attention)

    counts = expert_counts(model, [shard], forward, group)
    with record_routing(model) as routings:
        hidden = forward(shard)
    summed = cross_entropy_sum(hidden, model.head_weight, shard["targets"], EXPERTS.vocab_size)
    loss = summed / shard["global_loss_tokens"] + BALANCE * balance_loss(routings, counts)
    loss.backward()
    return _summed(group, model, loss)


def _summed(group: dist.ProcessGroup, model: Model, loss: Tensor) -> tuple[float, dict[str, Any]]:
    """The loss and gradients of all ranks together."""
    sums = {"": loss.detach(), **{name: x.grad for name, x in model.named_parameters() if x.grad is not None}}
    for x in sums.values():
        dist.all_reduce(x, group=group)
    return float(sums.pop("")), {name: x.numpy() for name, x in sums.items()}


def _count_messages(group: dist.ProcessGroup, lengths: str) -> int:
    sent, batch_isend_irecv = [], dist.batch_isend_irecv

    def counted(operations: list[dist.P2POp]) -> list[dist.Work]:
        sent.extend(operations)
        return batch_isend_irecv(operations)

    dist.batch_isend_irecv = counted
    try:
        _attention(group, "ring", lengths, "grouped", torch.float32)
    finally:
        dist.batch_isend_irecv = batch_isend_irecv
    return len(sent)


def _refusal(work: Callable[[], Any]) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return "accepted"
