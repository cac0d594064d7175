"""A mixture of experts in place of SwiGLU, and the loss that keeps experts evenly used.

Routing is that of Mixtral and Qwen3-MoE (norm_topk_prob): softmax over all experts in float32, the largest few, their
probabilities divided by their sum. Every token reaches all of its experts: there is no capacity and none is dropped.

The balancing loss takes its shares f from the routing of the whole update, over all micro-batches and ranks (Qiu et
al. 2025, "Demons in the Detail", arXiv 2501.11873): a single document may then use few experts, as long as the corpus
uses all. With the counts frozen the loss is a sum over tokens, so its gradient is the same however tokens are split:

    counts = expert_counts(model, parts, forward, group)     # pass A, without gradients; None for one part on one rank
    for part in parts:                                       # pass B
        with record_routing(model) as routings:
            hidden = forward(part)
        if counts is None:
            counts = count_choices(routings)
        loss = summed_cross_entropy / targets + weight * balance_loss(routings, counts)
        loss.backward()                                      # gradients of ranks are added up, without a mean

Tensor names end in their axes: T tokens, L layers, N experts, C experts of one token, S = T C choices, D model width,
F width inside an expert.
"""
# ruff: noqa: N803, N806, N812, N815 (the axes are capital letters)

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from seqmill.errors import UserError
from seqmill.models.config import ModelConfig

_Part = TypeVar("_Part")


class Routing(NamedTuple):
    """Where one layer sends its tokens; all in float32 (float64 in a float64 model)."""

    logits_TN: Tensor
    probabilities_TN: Tensor  # softmax of the logits
    chosen_TC: Tensor  # int64, the most probable experts, the first one first
    weights_TC: Tensor  # their probabilities, divided by their sum


class Router(nn.Module):
    """Choose each token's experts."""

    def __init__(self, width: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.weight = nn.Parameter(torch.empty(experts, width))

    def forward(self, x_TD: Tensor) -> Routing:
        """In float32 whatever the input: a rounded probability would send tokens elsewhere."""
        exact = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TN = F.linear(x_TD.to(exact), self.weight.to(exact))
        probabilities_TN = logits_TN.softmax(-1)
        largest_TC, chosen_TC = probabilities_TN.topk(self.chosen, dim=-1)
        return Routing(logits_TN, probabilities_TN, chosen_TC, largest_TC / largest_TC.sum(-1, keepdim=True))


class ExpertLinear(nn.Module):
    """A matrix per expert; rows of the input come sorted by expert."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))

    def forward(self, x: Tensor, counts_N: Tensor) -> Tensor:
        """x[S, inputs], the first counts_N[0] rows for expert 0 and so on -> [S, outputs]."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        multiply = _grouped if _can_group(x, self.weight) else _one_by_one
        return multiply(x, self.weight, counts_N)


def _can_group(x: Tensor, weight: Tensor) -> bool:
    """Whether one kernel can serve all experts: from Hopper on, in bfloat16, rows of a multiple of 16 bytes."""
    return (
        hasattr(F, "grouped_mm")  # from torch 2.10
        and x.is_cuda
        and x.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x.device) >= (9, 0)
        and all(size % 8 == 0 for size in weight.shape[1:])
    )


def _grouped(x: Tensor, weight: Tensor, counts_N: Tensor) -> Tensor:
    return F.grouped_mm(x, weight.to(x.dtype).mT, offs=counts_N.cumsum(0).to(torch.int32))


def _one_by_one(x: Tensor, weight: Tensor, counts_N: Tensor) -> Tensor:
    rows = x.split(counts_N.tolist())
    return torch.cat([F.linear(part, matrix) for part, matrix in zip(rows, weight.to(x.dtype).unbind(), strict=True)])


class MixtureOfExperts(nn.Module):
    """SwiGLU of a few experts per token, weighted by the router.

    A token's result depends on no other token, but to rounding alone: how many rows an expert gets decides how its
    matrix product is tiled.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config.dim, config.experts, config.experts_per_token)
        self.gate_up = ExpertLinear(config.experts, config.dim, 2 * config.ffn_dim)
        self.down = ExpertLinear(config.experts, config.ffn_dim, config.dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """What the layer adds to the residual stream."""
        routing: Routing = self.router(x_TD)
        tokens, chosen = routing.chosen_TC.shape
        expert_S = routing.chosen_TC.flatten()
        order_S = expert_S.argsort(stable=True)
        counts_N = expert_S.bincount(minlength=len(self.router.weight))
        gate_SF, up_SF = self.gate_up(x_TD[order_S // chosen], counts_N).chunk(2, dim=-1)
        out_SD = self.down(F.silu(gate_SF) * up_SF, counts_N)
        back_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
        out_TCD = out_SD[back_S].unflatten(0, (tokens, chosen))
        return (out_TCD * routing.weights_TC[..., None].to(out_TCD.dtype)).sum(1)


@contextmanager
def record_routing(model: nn.Module) -> Iterator[list[Routing]]:
    """The Routing of each layer in what `model` computes inside the block, in the order of the layers.

    A layer that works on some tokens at a time is recorded as one. What a backward pass computes again after the block
    is not recorded again.
    """
    found: list[Routing] = []
    places: dict[nn.Module, int] = {}

    def record(router: nn.Module, _inputs: object, routing: Routing) -> None:
        if router in places:
            before = found[places[router]]
            found[places[router]] = Routing(*(torch.cat(pair) for pair in zip(before, routing, strict=True)))
        else:
            places[router] = len(found)
            found.append(routing)

    handles = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, Router)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def count_choices(routings: Sequence[Routing]) -> Tensor:
    """int64[L, N]: how many tokens each layer sent to each expert."""
    return torch.stack([r.chosen_TC.flatten().bincount(minlength=r.logits_TN.shape[1]) for r in routings])


@torch.no_grad()
def expert_counts(
    model: nn.Module,
    parts: Iterable[_Part],
    forward: Callable[[_Part], object],
    group: dist.ProcessGroup | None = None,
    counted: Callable[[_Part], bool] = lambda _part: True,
) -> Tensor:
    """`count_choices` over a whole update: all micro-batches of all ranks.

    Args:
        parts: this rank's micro-batches, one or more.
        forward: runs `model` on one, as the pass with gradients will (the same autocast, the same attention).
        group: the ranks that work on this update; None for one. All must call.
        counted: whether a micro-batch has tokens at all, and is not there to take part in what ranks do together.
    """
    per_part = []
    for part in parts:
        with record_routing(model) as routings:
            forward(part)
        per_part.append(count_choices(routings) * counted(part))
    total = torch.stack(per_part).sum(0)
    if group is not None:
        dist.all_reduce(total, group=group)
    return total


def balance_loss(routings: Sequence[Routing], counts_LN: Tensor) -> Tensor:
    """A micro-batch's part of the update's balancing loss: summed over layers, N * sum of f_i p_i over experts i.

    f_i is expert i's share of all choices of the update and carries no gradient; p_i is the mean of its probability
    over all tokens of the update, of which this is the part of the tokens recorded here. The parts of all micro-batches
    and ranks add up to the loss; it is 1 per layer where experts are used alike (transformers' is C times as much).
    Tokens without a target count like any other.

    Args:
        counts_LN: of the whole update, as `expert_counts` (or, for one part on one rank, `count_choices`) gives it.

    Raises:
        UserError: the routing was recorded without gradients, as by a layer whose backward pass computes all again.
    """
    _require_gradient(routings)
    parts = [
        counts_N.numel()
        * (counts_N / counts_N.sum().clamp(min=1) * r.probabilities_TN.sum(0)).sum()
        / _tokens(r, counts_N)
        for r, counts_N in zip(routings, counts_LN, strict=True)
    ]
    return torch.stack(parts).sum()


def router_z_loss(routings: Sequence[Routing], counts_LN: Tensor) -> Tensor:
    """A micro-batch's part of the mean over the update's tokens of logsumexp(logits)^2, summed over layers: it keeps
    logits small (ST-MoE, arXiv 2202.08906, equation 5).

    Args and errors as of `balance_loss`.
    """
    _require_gradient(routings)
    parts = [
        r.logits_TN.logsumexp(-1).square().sum() / _tokens(r, counts_N)
        for r, counts_N in zip(routings, counts_LN, strict=True)
    ]
    return torch.stack(parts).sum()


def load_imbalance(counts_LN: Tensor) -> list[float]:
    """Per layer, the busiest expert's tokens over the mean: 1 where all are used alike, N where only one is."""
    counts_LN = counts_LN.double()
    ratios: list[float] = (counts_LN.amax(1) / counts_LN.mean(1).clamp(min=1e-9)).tolist()
    return ratios


def _shares(counts_N: Tensor) -> Tensor:
    """f_i; zeros where nothing was chosen."""
    return counts_N / counts_N.sum().clamp(min=1)


def _tokens(routing: Routing, counts_N: Tensor) -> Tensor:
    """Tokens of the whole update; 1 where there is none, so that nothing is divided by zero."""
    return (counts_N.sum() / routing.chosen_TC.shape[1]).clamp(min=1)


def _require_gradient(routings: Sequence[Routing]) -> None:
    if torch.is_grad_enabled() and not all(routing.logits_TN.requires_grad for routing in routings):
        raise UserError(
            "the routing to experts was recorded without gradients, so a loss on it would balance nothing: the layers "
            "ran in a forward pass that keeps no graph; use a way to save memory that keeps one, or no such loss"
        )
