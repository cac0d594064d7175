"""How fast training goes: tokens a second, MFU, padding, waiting for data, memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rates:
    """What the updates since the last look came to. These are fields of `runlog.StepRecord`."""

    tokens_per_second: float  # real ones, pads left out, of all ranks
    mfu: float | None  # useful operations / what the devices could do at best; None where that is not known
    padding_share: float  # of the places that went through the model
    loader_wait: float  # seconds that this rank waited for rows
    peak_memory: int | None  # most bytes that tensors took on this rank's GPU since the start; None on a processor


class Meter:
    """A stop-watch of one rank.

        with meter.waiting():
            batch = next(batches)
        ...                        # the update
        rates = meter.lap(tokens, places, flops)

    A GPU works behind the host's back, so look only when the update's loss has come back from it.
    """

    def __init__(self, device: torch.device, peak: float | None, devices: int = 1) -> None:
        """Begin now.

        Args:
            peak: operations a second that one device can do at best (flops.peak_flops), or None.
            devices: that share the tokens told to `lap`.
        """
        self._device, self._peak = device, None if peak is None else peak * devices
        self._waited = 0.0
        self._began = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is time without data."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - began

    def skip(self) -> None:
        """Forget the time since the last lap: it went into an evaluation or a checkpoint."""
        self._waited, self._began = 0.0, time.perf_counter()

    def lap(self, tokens: int, places: int, flops: float) -> Rates:
        """The rates since the last lap, or since the beginning.

        Args:
            tokens: real ones that went through the model since then, on all devices.
            places: the same with pads.
            flops: useful operations on them (flops.training_flops).
        """
        seconds = max(time.perf_counter() - self._began, 1e-9)
        rates = Rates(
            tokens_per_second=tokens / seconds,
            mfu=None if self._peak is None else flops / (seconds * self._peak),
            padding_share=1 - tokens / places if places else 0.0,
            loader_wait=self._waited,
            peak_memory=torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None,
        )
        self.skip()
        return rates
