"""One vector for each sequence, from the hidden states that the head would turn into logits."""
# ruff: noqa: N806 (the axes of tensors are capital letters)

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.inference.passes import PASS_TOKENS, Pass, packed_passes
from seqmill.models.inference.ragged import Ragged
from seqmill.models.transformer import Model

Float32s = npt.NDArray[np.float32]


@torch.inference_mode()
def embed(
    model: Model,
    sequences: Sequence[Sequence[int]] | Sequence[np.ndarray],
    pooling: str = "mean",
    *,
    prefill_tokens: int = PASS_TOKENS,
) -> Float32s:
    """One vector for each sequence: float32[sequences, dim], not normalised.

    Args:
        pooling: "mean": of the last layer's hidden states, behind the last norm; "last": that of the last token, which
            alone has seen all of the sequence.
        prefill_tokens: most tokens of one forward pass; a longer sequence goes alone, in chunks of so many.

    Raises:
        UserError: there is no such pooling, or a sequence is empty or holds an id outside the vocabulary.
    """
    pool = find_pooling(pooling)
    ragged = Ragged.of(sequences)
    ragged.require_readable(model.config.vocab_size)
    found = [pool(done).cpu().numpy() for done in packed_passes(model, ragged, prefill_tokens)]
    return np.concatenate([np.empty((0, model.config.dim), np.float32), *found])


def find_pooling(name: str) -> Callable[[Pass], Tensor]:
    """What makes float32[sequences, D] of a pass.

    Raises:
        UserError: there is no such pooling.
    """
    if name not in POOLINGS:
        raise UserError(f"pooling = {name!r}: there is no such way to a vector; choose {' or '.join(POOLINGS)}")
    return POOLINGS[name]


def _mean(done: Pass) -> Tensor:
    lengths_N = torch.tensor(done.segments.lengths, device=done.hidden_TD.device)
    return torch.segment_reduce(done.hidden_TD.float(), "mean", lengths=lengths_N, axis=0)


def _last(done: Pass) -> Tensor:
    return done.hidden_TD[done.segments.cu_seqlens[1:].long() - 1].float()


POOLINGS: Mapping[str, Callable[[Pass], Tensor]] = MappingProxyType({"mean": _mean, "last": _last})
