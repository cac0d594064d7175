"""Checkpointing: the first pass through a layer keeps its input, the way back computes the rest again.

Plain checkpointing (Chen et al. 2016, arXiv 1604.06174) runs the whole layer twice. Attention is the one part whose
work grows with the square of a document while its output does not, so keeping that output (LightSeq, Li et al. 2023,
arXiv 2310.03294, section 3.3) saves the most time for a row of memory per layer.

Tensor names end in their axes: T tokens, D model width.
"""
# ruff: noqa: N803 (the axes are capital letters)

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# By name, as some are there on some machines only. Each gives what it found and the log-sum-exp of its scores, which is
# all that its backward needs beside q, k and v: those are cheap to compute again. What is not here (such as the dense
# formula that torch falls back to for odd shapes) is computed again, which is slower and no less right.
ATTENTION_KERNELS = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_flash_attention_forward",
        "aten::_efficient_attention_forward",
        "aten::_cudnn_attention_forward",
        "torch_attn::_varlen_attn",
        "flex_attention",
    }
)

Recompute = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def keep_all(function: Callable[[Tensor], Tensor], x_TD: Tensor) -> Tensor:
    """`function(x_TD)`, and autograd keeps what it wants."""
    return function(x_TD)


def keep_input(function: Callable[[Tensor], Tensor], x_TD: Tensor) -> Tensor:
    """`function(x_TD)`, of which only `x_TD` is kept; nothing in it may be drawn at random."""
    found: Tensor = checkpoint(function, x_TD, use_reentrant=False, preserve_rng_state=False)
    return found


def keep_attention(function: Callable[[Tensor], Tensor], x_TD: Tensor) -> Tensor:
    """`function(x_TD)`, of which only `x_TD` and what `ATTENTION_KERNELS` return are kept."""
    contexts = partial(create_selective_checkpoint_contexts, _keep_kernels)
    found: Tensor = checkpoint(function, x_TD, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return found


def _keep_kernels(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    known = operation.name() in ATTENTION_KERNELS
    return CheckpointPolicy.MUST_SAVE if known else CheckpointPolicy.PREFER_RECOMPUTE


RECOMPUTES: Mapping[str, Recompute] = MappingProxyType(
    {"none": keep_all, "layer": keep_input, "keep-attention": keep_attention}
)
