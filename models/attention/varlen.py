"""torch's own ragged kernel, on CUDA in half precision."""
# ruff: noqa: N803, N806 (the axes are capital letters)

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from seqmill.models.attention.dense import HALF_TYPES, Prepared
from seqmill.models.attention.pattern import Pattern
from seqmill.models.attention.segments import Segments


@cache
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's function, or None before torch 2.10; imported when it is asked for, since it brings the compiler along,
    which takes two seconds."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Callable[..., Any] = varlen_attn
    return found


def prepare_varlen(segments: Segments, pattern: Pattern) -> Prepared:
    """Attention over the documents as they lie."""
    kernel = varlen_kernel()
    assert kernel is not None  # or `varlen_obstacle` has told
    arguments, takes_groups = _causal_arguments(kernel, pattern.window)
    bounds, longest = segments.cu_seqlens, segments.max_seqlen

    def attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        if not takes_groups:
            k_TKE, v_TKE = (x.repeat_interleave(q_THE.shape[1] // x.shape[1], dim=1) for x in (k_TKE, v_TKE))
        out = kernel(q_THE, k_TKE, v_TKE, bounds, bounds, longest, longest, **arguments)
        assert isinstance(out, Tensor)  # a pair only where the log-sum-exp is asked for
        return out

    return attention


def varlen_obstacle(device: torch.device, dtype: torch.dtype, pattern: Pattern) -> str | None:
    """Why the kernel cannot run so; None where it can."""
    kernel = varlen_kernel() if device.type == "cuda" and dtype in HALF_TYPES else None
    if kernel is None:
        return (
            f"needs CUDA, bfloat16 or float16 and torch 2.10 or later; this is {device.type}, {dtype}, "
            f"torch {torch.__version__}"
        )
    if pattern.sinks:
        return "has windows but no sinks"
    if pattern.window is not None and "window_size" not in inspect.signature(kernel).parameters:
        return f"has windows from torch 2.11 on; this is torch {torch.__version__}"
    return None


@cache
def _causal_arguments(kernel: Callable[..., Any], window: int | None) -> tuple[Mapping[str, Any], bool]:
    """How this torch says "causal", and whether its kernel takes fewer key heads than query heads.

    2.10 has `is_causal`; from 2.11 it is a window that reaches back `window` - 1 tokens, or without end, and not
    forward; 2.12 added `enable_gqa`.
    """
    known = inspect.signature(kernel).parameters
    back = -1 if window is None else window - 1
    causal: dict[str, Any] = {"window_size": (back, 0)} if "window_size" in known else {"is_causal": True}
    takes_groups = "enable_gqa" in known
    return MappingProxyType(causal | ({"enable_gqa": True} if takes_groups else {})), takes_groups
