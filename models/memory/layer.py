"""The settings as a function that runs one layer of a decoder."""
# ruff: noqa: N803 (the axes are capital letters)

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor

from seqmill.models.attention import Segments
from seqmill.models.memory.offload import offloaded
from seqmill.models.memory.prefix_attention import chunks_of
from seqmill.models.memory.recompute import RECOMPUTES
from seqmill.models.memory.settings import PLAIN, MemorySettings
from seqmill.models.memory.streaming import streamed
from seqmill.models.memory.tiling import tiled

if TYPE_CHECKING:
    from seqmill.models.transformer import Block, LayerAttention

LayerMemory = Callable[["Block", Tensor, tuple[Tensor, Tensor], "LayerAttention"], Tensor]
"""(block, x_TD, rotary, attention) -> x_TD after the block, keeping less for the gradients than the plain layer."""


def layer_memory(
    settings: MemorySettings,
    segments: Segments,
    attention_within: Callable[[Segments], "LayerAttention"],
    plain: LayerMemory | None = None,
) -> LayerMemory | None:
    """How to run each layer of one row, or None for the plain layer.

    Args:
        segments: the documents of the row.
        attention_within: the model's attention for other documents than those, which a streamed layer needs.
        plain: what runs a layer that keeps everything, in place of the layer's own code: the same compiled. Layers in
            tiles and streamed ones run their own code.
    """
    if settings == PLAIN:
        return plain
    keeping = offloaded if settings.offload else nullcontext
    if settings.stream_chunk:
        return _streaming(settings.stream_chunk, segments, attention_within, keeping)
    return _recomputing(settings, keeping, plain or run_plain)


def _streaming(
    chunk_tokens: int,
    segments: Segments,
    attention_within: Callable[[Segments], "LayerAttention"],
    keeping: Callable[[], AbstractContextManager[None]],
) -> LayerMemory:
    chunks = list(chunks_of(segments, chunk_tokens, attention_within))

    def run(block: "Block", x_TD: Tensor, rotary: tuple[Tensor, Tensor], _attention: "LayerAttention") -> Tensor:
        with keeping():
            return streamed(block, x_TD, rotary, chunks)

    return run


def run_plain(block: "Block", x_TD: Tensor, rotary: tuple[Tensor, Tensor], attention: "LayerAttention") -> Tensor:
    """A layer that keeps everything."""
    return block.add_feed_forward(block.add_attention(x_TD, rotary, attention))


def _recomputing(
    settings: MemorySettings, keeping: Callable[[], AbstractContextManager[None]], plain: LayerMemory
) -> LayerMemory:
    """A tiled SwiGLU keeps its input and runs twice already, so it stays outside the checkpoint: inside, it would run
    three times."""
    recompute, tile = RECOMPUTES[settings.checkpoint], settings.mlp_tile

    def run(block: "Block", x_TD: Tensor, rotary: tuple[Tensor, Tensor], attention: "LayerAttention") -> Tensor:
        def first_half(x_TD: Tensor) -> Tensor:
            return block.add_attention(x_TD, rotary, attention)

        with keeping():
            if tile is None:
                return recompute(lambda x_TD: plain(block, x_TD, rotary, attention), x_TD)
            return tiled(block.add_feed_forward, recompute(first_half, x_TD), tuple(block.parameters()), tile)

    return run
