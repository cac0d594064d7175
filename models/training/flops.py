"""Floating-point operations of training, and what part of a device's peak they are (MFU).

    per token, by convention   6 W + 12 L h T           every token attends to T others (Chowdhery et al. 2022, "PaLM",
                                                        appendix B; nanoGPT, torchtitan, llm-foundry)
    of real documents          6 W + 6 L h (s + 1)      a token of a document of s attends to (s + 1) / 2 on average

with L layers, h = heads * head_dim, and W the weights that a token is multiplied with: projections, feed-forward part
and output head, tied or not. Embeddings are looked up. A backward pass costs twice the forward pass; what is computed
again to save memory is not counted, so MFU tells useful work.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch

from seqmill.models.attention import HALF_TYPES
from seqmill.models.config import ModelConfig

# Dense bfloat16 with float32 sums, in operations a second, from the maker's data sheets; the first name found counts.
PEAKS: Mapping[str, float] = MappingProxyType(
    {
        "H200 NVL": 835e12,
        "H100 NVL": 835e12,
        "H100 PCIe": 756e12,
        "H100": 989e12,  # SXM, whose name is "NVIDIA H100 80GB HBM3"
        "H200": 989e12,
        "A100": 312e12,
    }
)


def matmul_weights(model: ModelConfig) -> int:
    """Weights that every token is multiplied with, padding rows of the vocabulary left out; of experts, those of a
    token's own and the router's."""
    attention = model.dim * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    feed_forward = 3 * model.dim * model.ffn_dim * max(1, model.experts_per_token) + model.dim * model.experts
    return model.layers * (attention + feed_forward) + model.dim * model.vocab_size


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Operations of training on one token by the convention in which others publish MFU: 6 W + 12 L h T.

    Args:
        seq_len: T, tokens of a row.
    """
    return 6.0 * matmul_weights(model) + 12.0 * model.layers * model.heads * model.head_dim * seq_len


def training_flops(model: ModelConfig, tokens: int, sum_sq: int) -> float:
    """Operations of training on documents that see only themselves, causally: what packing.architecture_costs counts.

    Args:
        tokens: of all of them.
        sum_sq: sum of their squared lengths, tokens squared.
    """
    attention = 6.0 * model.layers * model.heads * model.head_dim
    return 6.0 * matmul_weights(model) * tokens + attention * (sum_sq + tokens)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second that a device can do at best; None for a processor, and for what `PEAKS` does not list."""
    if device.type != "cuda" or dtype not in HALF_TYPES:
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """The entry of `PEAKS` for a device of this name, as torch.cuda.get_device_name gives it; None where there is none.

    A name counts as a whole: "NVIDIA GH200" is no H200.
    """
    for known, peak in PEAKS.items():
        if re.search(rf"(?<!\w){known}(?!\w)", name):
            return peak
    return None
