"""How much of a layer is kept for its gradients: one frozen dataclass."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from seqmill.errors import UserError
from seqmill.models.attention import FULL, Pattern

CHECKPOINTS = ("none", "layer", "keep-attention")


@dataclass(frozen=True)
class MemorySettings:
    """Ways to trade time for memory; none of them changes a gradient by more than rounding.

    Raises:
        UserError: a value is impossible, or two of them contradict each other.
    """

    checkpoint: str = "none"  # "layer": keep a layer's input only; "keep-attention": and what attention found in it
    offload: bool = False  # what is kept of a layer goes to the host's memory until its gradients are taken; CUDA only
    mlp_tile: int | None = (
        None  # tokens that go through SwiGLU at a time; its input is kept, whatever `checkpoint` says
    )
    stream_chunk: int | None = None  # tokens of a chunk of StreamBP's layer, which takes the place of `checkpoint`

    def __post_init__(self) -> None:
        if self.checkpoint not in CHECKPOINTS:
            raise UserError(f"checkpoint = {self.checkpoint!r}: there is no such way; choose {', '.join(CHECKPOINTS)}")
        for name in ("mlp_tile", "stream_chunk"):
            tokens = getattr(self, name)
            if tokens is not None and tokens < 1:
                raise UserError(f"{name} = {tokens}: must be 1 token or more; leave it out for the whole row at once")
        if self.stream_chunk and self.checkpoint != "none":
            raise UserError(
                f"stream_chunk = {self.stream_chunk} and checkpoint = {self.checkpoint!r}: a streamed layer keeps its "
                "input alone already; leave one of them out"
            )
        if self.stream_chunk and self.mlp_tile:
            raise UserError(
                f"stream_chunk = {self.stream_chunk} and mlp_tile = {self.mlp_tile}: a streamed layer runs SwiGLU a "
                "chunk at a time already; leave one of them out"
            )
        if self.offload and self.checkpoint == "none" and not self.stream_chunk:
            raise UserError(
                "offload = true moves what checkpointed and streamed layers keep, and there are none; set "
                "checkpoint = 'layer', checkpoint = 'keep-attention' or stream_chunk as well"
            )

    def require_possible(self, device: torch.device, patterns: Collection[Pattern]) -> None:
        """Refuse what a device, or a model whose layers see `patterns`, cannot do.

        Raises:
            UserError: offload on a device whose memory is the host's, or a streamed layer with a window.
        """
        if self.offload and device.type != "cuda":
            raise UserError(
                f"offload = true moves tensors from a GPU to the host, and the model lies on {device.type}; train "
                "with --device cuda or leave offload out"
            )
        windows = [pattern.window for pattern in patterns if pattern != FULL]
        if self.stream_chunk and windows:
            raise UserError(
                f"stream_chunk = {self.stream_chunk}: a streamed layer attends to all of a document, and layers of "
                f"this model see {windows[0]} tokens of it; use checkpoint = 'layer' with mlp_tile instead"
            )


PLAIN = MemorySettings()
"""Keep everything: the fastest where it fits."""
