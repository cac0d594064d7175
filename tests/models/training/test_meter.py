"""The stop-watch of training, against a clock of its own."""

import time

import pytest
import torch

from seqmill.models.training.meter import Meter

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds: what stands in the list."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_lap_counts_what_happened_since_the_one_before(clock: list[float]) -> None:
    meter = Meter(CPU, peak=1e12, devices=2)
    with meter.waiting():
        clock[0] += 0.5
    clock[0] += 1.5
    rates = meter.lap(tokens=3000, places=4000, flops=1e12)
    assert (rates.tokens_per_second, rates.mfu, rates.padding_share) == (1500.0, 0.25, 0.25)
    assert (rates.loader_wait, rates.peak_memory) == (0.5, None)
    clock[0] += 1.0
    rates = meter.lap(tokens=100, places=100, flops=1e12)
    assert (rates.tokens_per_second, rates.mfu, rates.padding_share, rates.loader_wait) == (100.0, 0.5, 0.0, 0.0)


def test_time_that_went_elsewhere_is_left_out(clock: list[float]) -> None:
    meter = Meter(CPU, peak=None)
    with meter.waiting():
        clock[0] += 2.0
    meter.skip()
    clock[0] += 4.0
    rates = meter.lap(tokens=8, places=8, flops=1.0)
    assert (rates.tokens_per_second, rates.mfu, rates.loader_wait) == (2.0, None, 0.0)


def test_waiting_ends_with_the_data(clock: list[float]) -> None:
    meter = Meter(CPU, peak=None)

    def fail() -> None:
        clock[0] += 3.0
        raise StopIteration

    with pytest.raises(StopIteration), meter.waiting():
        fail()
    clock[0] += 1.0
    assert meter.lap(0, 0, 0.0).loader_wait == 3.0
