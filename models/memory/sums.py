"""Pieces of a row, each run again on the way back, and the sum of their weights' gradients."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def trained(weights: Iterable[Tensor]) -> list[Tensor]:
    """Those that gradients are wanted of.

    Raises:
        ValueError: a weight has a hook that would see, and could change, each piece's gradient and then their sum.
    """
    wanted = [weight for weight in weights if weight.requires_grad]
    if any(weight._backward_hooks for weight in wanted):
        raise ValueError(
            "a weight has a hook of Tensor.register_hook, which would run for every piece of a row and once more for "
            "their sum; use Tensor.register_post_accumulate_grad_hook, which runs once"
        )
    return wanted


class GradientSums:
    """Gradients of weights, summed over pieces of a row in float32 or finer: half precision would round each sum."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.sums: list[Tensor | None] = [None] * len(weights)

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of one piece, in the order of the weights; None where a weight has no part in it."""
        for place, gradient in enumerate(gradients):
            if gradient is None:
                continue
            summed = self.sums[place]
            if summed is None:
                self.sums[place] = gradient.to(sum_type(gradient.dtype), copy=True)
            else:
                summed += gradient

    def result(self) -> Iterator[Tensor | None]:
        """The sums in the types of the weights; None for weights that had no part in any piece."""
        for weight, summed in zip(self.weights, self.sums, strict=True):
            yield None if summed is None else summed.to(weight.dtype)


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """What values of `dtype` are summed in."""
    return torch.promote_types(dtype, torch.float32)


def pieces(tokens: int, most: int) -> Iterator[slice]:
    """Neighbouring tokens, `most` at a time; the last piece may be shorter."""
    return (slice(start, min(start + most, tokens)) for start in range(0, tokens, most))


def leaf(x: Tensor) -> Tensor:
    """The values of `x`, at the start of a graph of their own."""
    return x.detach().requires_grad_()


def autocast_as_now(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """What puts the way back under the autocast that the way there is under."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled)
