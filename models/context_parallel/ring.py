"""Keys and values go round: ring attention (Liu et al. 2023, arXiv 2310.01889), for packed documents and without masks.

A batch is cut into chunks regardless of documents (ContextSplit), so of a chunk's documents only the first can have
begun in an earlier chunk, and only the last can go on in a later one:

    tokens      0 1 2 3 | 4 5 6 7 | 8 9 ..      chunks of 4, documents of 2, 5 and more tokens
    documents   a a b b | b b b c | c c ..      chunk 1: head 4 5 6 continues b, tail 7 goes on as c in chunk 2

The other documents attend as on one device. A head's queries look at themselves causally, and at the tails of earlier
chunks of the same document: at all keys of such a tail, since they all come before. So the ring carries tails alone,
every block is either plain causal or has no mask at all, a pair without a common document costs nothing, and where no
document is cut nothing is sent. Head outputs are merged by their normalisers in float32 (or float64).

Tensor names end in their axes: T tokens of this rank, Q queries in its heads, S keys in a rank's tails, H query heads,
K key-value heads, E numbers per head.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from seqmill.models.attention import Segments
from seqmill.models.context_parallel.blocks import Attended, attend_block, attend_block_backward, merge
from seqmill.models.context_parallel.split import ContextSplit
from seqmill.models.transformer import LayerAttention


def ring_attention(
    split: ContextSplit,
    group: dist.ProcessGroup,
    attention_within: Callable[[Segments], LayerAttention],
    device: torch.device,
) -> LayerAttention:
    """Documents that lie in one chunk attend as on one device; the parts of the others by the ring."""
    chunks = split.chunks(group.rank())
    heads, tails = [_head(split, chunk) for chunk in chunks], [_tail(split, chunk) for chunk in chunks]
    pieces = [size for chunk, head in zip(chunks, heads, strict=True) for size in (len(head), len(chunk) - len(head))]
    uncut = Segments.of(_uncut(split, chunks, heads), device)
    local = attention_within(uncut) if uncut.lengths else _of_no_tokens
    sent = [slice(stop - len(tail), stop) for stop, tail in zip(accumulate(map(len, chunks)), tails, strict=True)]
    ring = _Ring.of(split, group)

    def attention(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        if not any(ring.sizes):
            return local(layer, q_THE, k_TKE, v_TKE)
        in_pieces = [x.split(pieces) for x in (q_THE, k_TKE, v_TKE)]
        kv_2TKE = torch.stack((k_TKE, v_TKE))
        tails_2SKE = torch.cat([kv_2TKE[:, tail] for tail in sent], dim=1)
        heads_QHE = _RingAttention.apply(*(torch.cat(parts[0::2]) for parts in in_pieces), tails_2SKE, ring)
        rest_THE = local(layer, *(torch.cat(parts[1::2]) for parts in in_pieces))
        outs = (heads_QHE.split(pieces[0::2]), rest_THE.split(pieces[1::2]))
        return torch.cat([piece for chunk in zip(*outs, strict=True) for piece in chunk])

    return attention


def _of_no_tokens(_layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
    """Nothing, of which all three are parts: each weight has a gradient on every rank, or their sums would not meet."""
    return q_THE + 0 * (k_TKE.sum() + v_TKE.sum())


def _head(split: ContextSplit, chunk: range) -> range:
    """The tokens of a chunk whose document began in an earlier one."""
    begun = len(chunk) > 0 and split.document(chunk.start).start < chunk.start
    return range(chunk.start, min(chunk.stop, split.document(chunk.start).stop) if begun else chunk.start)


def _tail(split: ContextSplit, chunk: range) -> range:
    """The tokens of a chunk whose document goes on in a later one."""
    goes_on = len(chunk) > 0 and split.document(chunk.stop - 1).stop > chunk.stop
    return range(max(chunk.start, split.document(chunk.stop - 1).start) if goes_on else chunk.stop, chunk.stop)


def _uncut(split: ContextSplit, chunks: Sequence[range], heads: Sequence[range]) -> list[int]:
    """Tokens of each document or beginning of one that these chunks hold behind their heads."""
    lengths = []
    for chunk, head in zip(chunks, heads, strict=True):
        at = head.stop
        while at < chunk.stop:
            stop = min(chunk.stop, split.document(at).stop)
            lengths.append(stop - at)
            at = stop
    return lengths


@dataclass(frozen=True)
class _Ring:
    """What a rank needs to know to take part."""

    group: dist.ProcessGroup
    sizes: tuple[int, ...]  # tokens in the tails of each rank
    heads: tuple[slice, ...]  # the place of each head among the queries; none for a chunk without one
    seen: tuple[tuple[tuple[int, slice], ...], ...]  # per rank: heads here and the part of its tails that each sees

    @classmethod
    def of(cls, split: ContextSplit, group: dist.ProcessGroup) -> "_Ring":
        """What follows from the split, for this rank of the group."""
        heads = [head for chunk in split.chunks(group.rank()) if (head := _head(split, chunk))]
        tails = [[_tail(split, chunk) for chunk in split.chunks(rank)] for rank in range(split.ranks)]
        sizes = tuple(sum(map(len, of_rank)) for of_rank in tails)
        seen = tuple(
            tuple(
                (index, keys)
                for index, head in enumerate(heads)
                for tail, keys in zip(of_rank, _slices(of_rank), strict=True)
                if tail and split.document(head.start).start < tail.stop <= head.start
            )
            for of_rank in tails
        )
        return cls(group, sizes, tuple(_slices(heads)), seen)

    def source(self, step: int) -> int:
        """The rank whose tails are here after so many steps."""
        return (self.group.rank() - step) % len(self.sizes)

    def pass_on(self, tails_2SKE: Tensor, step: int) -> "_Arriving":
        """Send what is here after `step` steps to the next rank, and receive what comes after it."""
        rank, ranks = self.group.rank(), len(self.sizes)
        coming = tails_2SKE.new_empty(2, self.sizes[self.source(step + 1)], *tails_2SKE.shape[2:])
        messages = ((dist.isend, tails_2SKE, (rank + 1) % ranks), (dist.irecv, coming, (rank - 1) % ranks))
        posted = [
            dist.P2POp(operation, tensor, dist.get_global_rank(self.group, peer), self.group)
            for operation, tensor, peer in messages
            if tensor.numel()  # known to both sides from the split
        ]
        return _Arriving(coming, tails_2SKE, dist.batch_isend_irecv(posted) if posted else [])

    def visits(self, tails_2SKE: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(step, tails of rank `source(step)`), each while the next are on their way."""
        for step in range(len(self.sizes)):
            arriving = self.pass_on(tails_2SKE, step) if step + 1 < len(self.sizes) else None
            yield step, tails_2SKE
            if arriving is not None:
                tails_2SKE = arriving.wait()


def _slices(pieces: Sequence[range]) -> list[slice]:
    """The place of each piece where they are laid end to end."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(map(len, pieces), initial=0))]


@dataclass(frozen=True)
class _Arriving:
    """A message on its way, and the one sent meanwhile, which must stay alive."""

    coming: Tensor
    sent: Tensor
    works: list[dist.Work]

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.coming


class _RingAttention(torch.autograd.Function):
    """(q_QHE, k_QKE, v_QKE of the heads, tails_2SKE) -> out_QHE. The backward pass sends the tails round once more, and
    with them the sums of their gradients, which after the whole round are at home."""

    @staticmethod
    def forward(ctx: Any, q_QHE: Tensor, k_QKE: Tensor, v_QKE: Tensor, tails_2SKE: Tensor, ring: _Ring) -> Tensor:
        """Own keys first, then those that come round, merged by their log-sum-exp."""
        found = [attend_block(q_QHE[head], k_QKE[head], v_QKE[head], causal=True) for head in ring.heads]
        for step, (k_SKE, v_SKE) in ring.visits(tails_2SKE.contiguous()):
            for head, keys in ring.seen[ring.source(step)]:
                block = attend_block(q_QHE[ring.heads[head]], k_SKE[keys], v_SKE[keys], causal=False)
                found[head] = merge(found[head], block)
        out_QHE = torch.cat([q_QHE[:0], *(head.out_QHE.to(q_QHE.dtype) for head in found)])
        ctx.ring = ring
        ctx.save_for_backward(q_QHE, k_QKE, v_QKE, tails_2SKE, out_QHE, *(head.normaliser_HQ for head in found))
        return out_QHE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Of the five arguments of `forward`."""
        ring: _Ring = ctx.ring
        q_QHE, k_QKE, v_QKE, tails_2SKE, out_QHE, *normalisers = ctx.saved_tensors
        merged = [Attended(out_QHE[head], lse_HQ) for head, lse_HQ in zip(ring.heads, normalisers, strict=True)]

        def gradients(head: int, k_SKE: Tensor, v_SKE: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            place = ring.heads[head]
            return attend_block_backward(grad_outputs[0][place], q_QHE[place], k_SKE, v_SKE, merged[head], causal)

        exact = torch.promote_types(q_QHE.dtype, torch.float32)
        of_heads = [torch.empty_like(x, dtype=exact) for x in (q_QHE, k_QKE, v_QKE)]
        for head, place in enumerate(ring.heads):
            for total, part in zip(of_heads, gradients(head, k_QKE[place], v_QKE[place], True), strict=True):
                total[place] = part
        arriving = None
        for step, visiting_2SKE in ring.visits(tails_2SKE.contiguous()):
            of_tails_2SKE = torch.zeros_like(visiting_2SKE, dtype=exact)
            for head, keys in ring.seen[ring.source(step)]:
                of_q, of_k, of_v = gradients(head, visiting_2SKE[0, keys], visiting_2SKE[1, keys], False)
                of_heads[0][ring.heads[head]] += of_q
                of_tails_2SKE[0, keys] += of_k
                of_tails_2SKE[1, keys] += of_v
            if arriving is not None:
                of_tails_2SKE += arriving.wait()  # what the ranks before this one found
            arriving = ring.pass_on(of_tails_2SKE, step)
        assert arriving is not None
        of_q, of_k, of_v = (total.to(q_QHE.dtype) for total in of_heads)
        return of_q, of_k, of_v, arriving.wait().to(q_QHE.dtype), None
