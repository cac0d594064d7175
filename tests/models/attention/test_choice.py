"""The choice of a backend: asked for, or the fastest by a timer."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from attention_reference import random_qkv
from seqmill.errors import UserError
from seqmill.models.attention import FULL, Choice, Pattern, Segments, choose_by_time, choose_for_batch
from seqmill.models.attention import choice as choice_module
from seqmill.models.attention.choice import seconds_of
from seqmill.models.config import ModelConfig

CPU = torch.device("cpu")


class TimerOfNames:
    """Runs what it is given and takes its seconds from a table of backends."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = seconds
        self.timed: list[tuple[str, Pattern]] = []

    def __call__(self, call: Callable[[], None], device: torch.device) -> float:
        call()
        backend, pattern = call.args[-2:]  # type: ignore[attr-defined]
        self.timed.append((backend, pattern))
        return self.seconds[backend]


@pytest.mark.parametrize(("flex", "winner"), [(0.5, "flex"), (2.0, "sdpa")])
def test_the_fastest_backend_is_chosen_and_all_timings_told(flex: float, winner: str) -> None:
    lengths = [30, 1, 50]
    timer = TimerOfNames({"sdpa": 1.0, "flex": flex})
    found = choose_by_time(*random_qkv(sum(lengths)), Segments.of(lengths), ["sdpa", "flex"], timer=timer)
    assert found == Choice(winner, {"sdpa": 1.0, "flex": flex})


def test_a_pattern_is_timed_once_and_counts_as_often_as_layers_have_it() -> None:
    timer = TimerOfNames({"sdpa": 1.0, "flex": 2.0})
    patterns = [Pattern(4), Pattern(4), FULL, Pattern(4)]
    found = choose_by_time(*random_qkv(20), Segments.of([20]), ["sdpa", "flex"], patterns, timer)
    assert found.timings == {"sdpa": 4.0, "flex": 8.0}
    assert timer.timed == [("sdpa", Pattern(4)), ("sdpa", FULL), ("flex", Pattern(4)), ("flex", FULL)]


def test_a_backend_that_fails_is_left_out_and_its_error_told() -> None:
    q, k, v = random_qkv(1100, dtype=torch.float32)
    found = choose_by_time(q, k, v, Segments.of([600, 500]), ["flex", "sdpa"])
    assert found.backend == "sdpa"
    assert found.timings["sdpa"] > 0
    assert "1100" in found.failures["flex"]
    with pytest.raises(UserError, match=r"no attention backend runs on cpu.*1100"):
        choose_by_time(q, k, v, Segments.of([600, 500]), ["flex"])


def test_a_processor_times_nothing_and_a_name_is_taken_as_it_is(config: ModelConfig) -> None:
    def never(call: Callable[[], None], device: torch.device) -> float:
        raise AssertionError("timed")

    segments = Segments.of([10, 20])
    assert choose_for_batch("auto", config, segments, torch.float32, timer=never) == Choice("sdpa")
    assert choose_for_batch("flex", config, segments, torch.float32, timer=never) == Choice("flex")
    with pytest.raises(UserError, match="'varlen' needs CUDA"):
        choose_for_batch("varlen", config, segments, torch.float32, timer=never)


def test_several_candidates_are_timed_with_the_heads_of_the_model(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def timer(call: Callable[[], None], device: torch.device) -> float:
        q, k, v = call.args[:3]  # type: ignore[attr-defined]
        shapes.append((q.shape, k.shape, v.shape))
        return seconds_of(call, device)

    monkeypatch.setattr(choice_module, "candidates", lambda *_args, **_kwargs: ("flex", "sdpa"))
    mixed = replace(config, window=8, full_every=2)
    found = choose_for_batch("auto", mixed, Segments.of([100, 30]), torch.float32, timer=timer)
    assert set(found.timings) == {"flex", "sdpa"}
    assert found.backend == min(found.timings, key=lambda name: found.timings[name])
    assert set(shapes) == {((130, 4, 8), (130, 2, 8), (130, 2, 8))}
    assert len(shapes) == 4  # two backends, two patterns


def test_the_first_calls_are_not_timed_since_they_compile() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        if len(calls) <= 2:
            torch.randn(300, 300) @ torch.randn(300, 3000)

    assert seconds_of(call, CPU) < 1e-3
    assert len(calls) == 7
