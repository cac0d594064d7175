"""Packed scoring: real tokens only, no padding.

Tensor names end in their axes: T tokens, D model width, C tokens of a chunk.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

from collections import deque
from collections.abc import Sequence, Sized
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from seqmill.models.attention import Segments, choose_backend, layer_patterns
from seqmill.models.inference.engine import PREFILL_TOKENS
from seqmill.models.inference.requests import check_ids
from seqmill.models.loss import CHUNK_LOGITS
from seqmill.models.transformer import Model

_Item = TypeVar("_Item", bound=Sized)  # what waits to be packed; its length is its tokens


@torch.inference_mode()
def score(
    model: Model, sequences: Sequence[Sequence[int]], *, prefill_tokens: int = PREFILL_TOKENS
) -> list[np.ndarray]:
    """How well the model foresees every token: for each sequence float32[len - 1].

    Number i is the natural logarithm of the probability of token i + 1 after tokens 0 .. i.

    Raises:
        UserError: a sequence is empty or holds an id outside the vocabulary.
    """
    for index, sequence in enumerate(sequences):
        check_ids(f"sequence {index}", sequence, model.config.vocab_size)
    backend = choose_backend("auto", model.device, model.head_weight.dtype, layer_patterns(model.config))
    waiting, scores = deque(sequences), []
    while packed := _take(waiting, len(waiting), prefill_tokens):
        ids_T, segments = _pack(packed, model.device)
        hidden_TD = model(ids_T, segments.positions().to(model.device), segments, backend)
        log_p_T = _next_log_probability(model, hidden_TD, ids_T).cpu().numpy()
        ends = np.cumsum(segments.lengths)
        scores += [log_p_T[end - length : end - 1] for end, length in zip(ends, segments.lengths, strict=True)]
    return scores


def _next_log_probability(model: Model, hidden_TD: Tensor, ids_T: Tensor) -> Tensor:
    """float32[T - 1]: the log-probability of the token that follows in `ids_T`, a chunk of logits at a time."""
    chunk = max(1, CHUNK_LOGITS[model.device.type] // model.config.padded_vocab)
    parts = [
        model.logits(hidden_CD).log_softmax(dim=-1).gather(1, next_C[:, None])[:, 0]
        for hidden_CD, next_C in zip(hidden_TD[:-1].split(chunk), ids_T[1:].split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _take(waiting: deque[_Item], most: int, tokens: int) -> list[_Item]:
    """Take from the front at most `most` items of at most `tokens` tokens together (or one longer item)."""
    taken: list[_Item] = []
    room = tokens
    while waiting and len(taken) < most and (not taken or len(waiting[0]) <= room):
        room -= len(waiting[0])
        taken.append(waiting.popleft())
    return taken


def _pack(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Segments]:
    """int64[T] of all sequences end to end, and where each lies."""
    ids = np.fromiter(chain.from_iterable(sequences), dtype=np.int64)
    return torch.from_numpy(ids).to(device), Segments.of([len(sequence) for sequence in sequences], device)
