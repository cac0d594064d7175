"""Rotary positions (Su et al. 2021, arXiv 2104.09864), and their wavelengths for contexts longer than trained on.

Tensor names end in their axes: T tokens, E numbers per head.
"""
# ruff: noqa: N803 (the axes are capital letters)

import math

import torch
from torch import Tensor

from seqmill.models.config import RopeScaling


def rotary_table(
    position_ids_T: Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """The cosines and sines, each float32[T, 1, E], by which `rotate` turns a token's heads.

    Number i turns together with number i + E/2, by the angle position * theta ** (-2 i / E): the convention of the
    Llama checkpoints on the HF hub.
    """
    frequencies = rotary_frequencies(head_dim, theta, scaling, position_ids_T.device)
    angles = position_ids_T.float()[:, None, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotary_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """float32[head_dim / 2]: by how much each pair of numbers turns from one position to the next."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = theta**-exponents
    return frequencies if scaling is None else _scaled(frequencies, scaling)


def _scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Angles per position, after scaling; between its two bounds llama3 goes over from one to the other smoothly."""
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_positions * frequencies / (2 * math.pi)  # within the positions of the first training
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * slow + kept * frequencies


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn heads x[T, heads, E] by their rotary angles, in float32."""
    cosines, sines = table
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cosines + torch.cat((-second, first), dim=-1) * sines).to(x.dtype)
