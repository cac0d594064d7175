"""A decoder and its loss on one micro-batch, as a module: what is spread over ranks is its forward pass.

Tensor names end in their axes: T tokens, D model width, L layers, N experts.
"""
# ruff: noqa: N803, N806, N812, N815 (the axes are capital letters)

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from seqmill.models.attention import HALF_TYPES, Segments
from seqmill.models.context_parallel import ContextSplit, context_attention
from seqmill.models.loss import PARTS, summed_loss
from seqmill.models.memory import PLAIN, LayerMemory, MemorySettings
from seqmill.models.moe import Routing, balance_loss, count_choices, record_routing, router_z_loss
from seqmill.models.training.compiled import compiled_code, compiling
from seqmill.models.transformer import LayerAttention, Model, packed_attention

Sharers = tuple[int, int]
"""The first of the ranks that share a row, and how many they are."""


@dataclass(frozen=True)
class MicroBatch:
    """Whole documents of a batch, on the model's device."""

    input_ids_T: Tensor  # int64
    position_ids_T: Tensor  # int64, the place of each token in its document
    targets_T: Tensor  # int64, loss.IGNORED where there is none
    segments: Segments
    part_T: Tensor | None  # int64, a number into loss.PARTS, where something tells tokens apart
    weights_T: Tensor | None  # float32, where tokens do not count alike
    pads: int = 0  # tokens at the end that stand in for none: a segment of their own, without targets
    sharers: Sharers | None = None  # the ranks that share these tokens, where not all micro-batches are shared alike

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each real document."""
        return self.segments.lengths[:-1] if self.pads else self.segments.lengths

    @property
    def is_real(self) -> bool:
        """Whether there is any document; a rank without rows passes a pad alone, to take part in what all do."""
        return bool(self.lengths)


@dataclass(frozen=True)
class LossSettings:
    """How the loss of a micro-batch is computed. All but the first three leave the mathematics as it is."""

    z_loss: float = 0.0  # coefficient of log(Z)^2
    balance: float = 0.0  # coefficient of the balancing loss of experts
    router_z: float = 0.0  # coefficient of their routers' z-loss
    dtype: torch.dtype = torch.float32  # of matrix products
    backend: str = "sdpa"  # of attention: a name in attention.BACKENDS
    memory: MemorySettings = PLAIN
    context_kind: str = "ring"  # how ranks share tokens, where they do
    context_group: dist.ProcessGroup | None = None  # the ranks that share this one's tokens, all of them
    sharers: Mapping[Sharers, dist.ProcessGroup] = field(default_factory=dict)  # or those of some micro-batches
    compiler: str | None = None  # of layers and loss: a backend of torch.compile; None runs them as they are


class PackedLossSums(NamedTuple):
    """Sums over the tokens of a micro-batch that this rank holds. Gradients flow through the first two."""

    total: Tensor  # nats with the tokens' weights, and their z-loss: to be divided by the targets of the whole update
    auxiliary: Tensor  # what keeps experts even, divided already
    plain: Tensor  # float32[1 + parts], nats without weights: of all targets, and of each part's
    counts_LN: Tensor | None  # int64, how often each expert is chosen in the whole update, where that is looked at


class PackedLoss(nn.Module):
    """The loss of documents that lie end to end."""

    def __init__(self, model: Model, settings: LossSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self._compiled = None if settings.compiler is None else compiled_code(settings.compiler)

    def forward(self, part: MicroBatch, counts_LN: Tensor | None = None) -> PackedLossSums:
        """The sums of one micro-batch.

        Args:
            counts_LN: how often each expert is chosen in the whole update (moe.expert_counts); None where this
                micro-batch is all of it.
        """
        compiled = self._compiled if part.is_real else None  # a single pad has no size of its own
        settings = compiling() if compiled else contextlib.nullcontext()
        with settings, self._computing(part), self._recording() as routings:
            hidden_TD, held = self._hidden(part, self.settings.memory, compiled and compiled.layer)
            sums = summed_loss(
                hidden_TD,
                self.model.head_weight,
                held.targets_T,
                self.model.config.vocab_size,
                held.part_T,
                weights_T=held.weights_T,
                z_coefficient=self.settings.z_loss,
                of_full_chunk=compiled and compiled.chunk_loss,
            )
        parts, nats = sums.parts, sums.cross_entropy
        if held.part_T is None:  # all are of the first part
            parts = F.pad(nats[None], (0, len(PARTS) - 1))
        elif held.weights_T is not None:
            nats = parts.sum()
        counts_LN = count_choices(routings) if routings and counts_LN is None else counts_LN
        auxiliary = self._auxiliary(routings, counts_LN) * part.is_real
        return PackedLossSums(sums.total, auxiliary, torch.cat([nats[None], parts]).detach(), counts_LN)

    def count_experts(self, part: MicroBatch) -> None:
        """A forward pass for those who record how experts are chosen; it keeps nothing for gradients."""
        with self._computing(part):
            self._hidden(part, PLAIN)

    def _hidden(
        self, part: MicroBatch, memory: MemorySettings, layer: LayerMemory | None = None
    ) -> tuple[Tensor, MicroBatch]:
        """hidden_TD of the tokens that this rank holds, and what the micro-batch says of these."""
        settings, attention, held, group = self.settings, None, part, self.group_of(part)
        if group is not None:
            ranks, rank = dist.get_world_size(group), dist.get_rank(group)
            split = ContextSplit(part.segments.lengths, ranks, settings.context_kind)
            held = _held(part, split, rank)
            windowed, device = self.model.config.window is not None, part.input_ids_T.device
            attention = context_attention(split, group, self._within, device, windowed=windowed)
        inputs = (held.input_ids_T, held.position_ids_T, part.segments, settings.backend, memory, attention, layer)
        return self.model(*inputs).to(settings.dtype), held

    def group_of(self, part: MicroBatch) -> dist.ProcessGroup | None:
        """The ranks that share a micro-batch; None for one of this rank alone."""
        return self.settings.context_group if part.sharers is None else self.settings.sharers[part.sharers]

    def _within(self, segments: Segments) -> LayerAttention:
        return packed_attention(segments, self.settings.backend, self.model.config)

    def _computing(self, part: MicroBatch) -> contextlib.AbstractContextManager[object]:
        halves = self.settings.dtype in HALF_TYPES
        device = part.input_ids_T.device.type
        return torch.autocast(device, self.settings.dtype) if halves else contextlib.nullcontext()

    @contextlib.contextmanager
    def _recording(self) -> Iterator[list[Routing]]:
        if self.is_balanced:
            with record_routing(self.model) as routings:
                yield routings
        else:
            yield []

    @property
    def is_balanced(self) -> bool:
        """Whether there are experts, and a loss that looks at their use."""
        return bool(self.model.config.experts and (self.settings.balance or self.settings.router_z))

    def _auxiliary(self, routings: list[Routing], counts_LN: Tensor | None) -> Tensor:
        if counts_LN is None:
            return torch.zeros((), device=self.model.device)
        balance, router_z = balance_loss(routings, counts_LN), router_z_loss(routings, counts_LN)
        return self.settings.balance * balance + self.settings.router_z * router_z


def _held(part: MicroBatch, split: ContextSplit, rank: int) -> MicroBatch:
    """The tokens of a micro-batch that one of the ranks that share it holds; `segments` stay those of all."""
    return replace(
        part,
        input_ids_T=split.take(part.input_ids_T, rank),
        position_ids_T=split.take(part.position_ids_T, rank),
        targets_T=split.take(part.targets_T, rank),
        part_T=None if part.part_T is None else split.take(part.part_T, rank),
        weights_T=None if part.weights_T is None else split.take(part.weights_T, rank),
    )
