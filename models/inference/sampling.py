"""From logits to the next token of every request.

Tensor names end in their axes: B requests, V vocabulary.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqmill.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Raises:
        UserError: a value is impossible.
    """

    temperature: float = 0.0  # 0: always the likeliest token
    top_k: int | None = None  # draw among so many likeliest tokens
    top_p: float | None = None  # draw among the fewest likeliest tokens that have this much probability together
    min_p: float | None = None  # draw among tokens that have this part of the likeliest one's probability or more

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature = {self.temperature}: must be 0 (the likeliest token) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k = {self.top_k}: must be 1 or more; leave it out to draw among all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(
                f"top_p = {self.top_p}: must be above 0 and at most 1; leave it out to draw among all tokens"
            )
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p = {self.min_p}: must be between 0 and 1; leave it out to draw among all tokens")


GREEDY = Sampling()
_DRAWN = 64  # numbers at a time, at least


class Draws:
    """The random numbers in [0, 1) of one request (of one of its samples), whatever else is generated beside it; one
    for each token that may come, and drawn when it comes near."""

    def __init__(self, seed: int, request: int, sample: int = 0) -> None:
        self._generator = np.random.default_rng([seed, request, *([sample] if sample else [])])
        self._drawn = np.empty(0)

    def at(self, places: np.ndarray) -> np.ndarray:
        """float64[n]: those of the tokens at these places, integers[n] that are 0 or more."""
        missing = int(places.max(initial=-1)) + 1 - len(self._drawn)
        if missing > 0:
            self._drawn = np.append(self._drawn, self._generator.random(max(missing, _DRAWN, len(self._drawn))))
        return self._drawn[places]


def pick_tokens(logits_BV: Tensor, draws_B: Tensor, sampling: Sampling) -> Tensor:
    """int64[B]: the next token of every request.

    Args:
        draws_B: float64 in [0, 1): where each request's draw falls in its cumulated probabilities, likeliest first.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    most = min(sampling.top_k or logits_BV.shape[1], logits_BV.shape[1])
    ordered_BV, ids_BV = logits_BV.double().topk(most, dim=-1)  # likeliest first
    p_BV = (ordered_BV / sampling.temperature).softmax(dim=-1)
    if sampling.top_p is not None:
        p_BV = p_BV.where(p_BV.cumsum(dim=-1) - p_BV < sampling.top_p, 0.0)
    if sampling.min_p is not None:
        p_BV = p_BV.where(p_BV >= sampling.min_p * p_BV[:, :1], 0.0)
    cumulated_BV = p_BV.cumsum(dim=-1)
    place_B1 = torch.searchsorted(cumulated_BV, draws_B[:, None] * cumulated_BV[:, -1:], right=True)
    return ids_BV.gather(1, place_B1.clamp(max=most - 1))[:, 0]
