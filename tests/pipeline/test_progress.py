"""What is seen of a stage while it lasts, and of training what its updates came to."""

import io
import re
import time

import pytest
from rich.console import Console

from seqmill.models.evaluation.source_loss import SourceLoss
from seqmill.models.training.runlog import EvaluationRecord, SampleRecord, StepRecord
from seqmill.pipeline.model_steps import TrainingReporter
from seqmill.pipeline.progress import Bars, Lines, Silent, make_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds: what stands in the list."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_every_few_seconds_and_leave_the_past_out_of_the_rate(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    lines.start("train", 100)
    lines.skip(50)
    for _ in range(10):
        clock[0] += 1.0
        lines.tell("loss 3.000")
        lines.advance()
    lines.finish()
    assert capsys.readouterr().err.splitlines() == [
        "train: 55/100 in 5.0 s, 45 s left, loss 3.000",
        "train: 60/100 in 10.0 s, 40 s left, loss 3.000",
        "train: 60/100 in 10.0 s, 40 s left, loss 3.000",
    ]


def test_a_stage_without_news_is_told_as_it_was(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.start("pack", 2)
    lines.advance()
    lines.advance()
    lines.finish()
    lines.start("plan", 0)
    lines.finish()
    assert capsys.readouterr().err.splitlines() == ["pack: 2/2 in 0.0 s", "plan: 0/0 in 0.0 s"]


def test_bars_show_the_news_and_the_updates_of_an_earlier_run() -> None:
    shown = io.StringIO()
    bars = Bars(Console(file=shown, force_terminal=True, width=200, color_system=None))
    bars.start("train", 10)
    bars.skip(7)
    bars.tell("loss [3]")
    bars.advance()
    bars.finish()
    assert re.search(r"train .* 8/10 .*loss \[3\]", shown.getvalue())


def test_nothing_is_shown_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = make_progress(quiet=True)
    assert isinstance(quiet, Silent)
    quiet.start("train", 1)
    quiet.skip(0)
    quiet.tell("loss")
    quiet.advance()
    quiet.finish()
    assert capsys.readouterr().err == ""
    assert isinstance(make_progress(quiet=False), Lines)  # under pytest stderr is no terminal


def tell_run(clock: list[float], resumed_from: int, steps: int) -> None:
    """A run of updates of 3 seconds each that looks at held-out documents after update 3."""
    lines = Lines()
    lines.start("train", steps)
    reporter = TrainingReporter(lines)
    for step in range(resumed_from + 1, steps + 1):
        clock[0] += 3.0
        reporter.show(StepRecord(step, 5.0 - step, step, 1.0, 1e-3, 0.1, tokens_per_second=12345.6, mfu=0.4125))
        if step == 3:
            losses = {"web": SourceLoss(1, 9, 8, 10, 6.9314718)}
            reporter.show(EvaluationRecord.of(3, "holdout", 3, 1.0, losses))
            reporter.show(SampleRecord(3, "the", " cat"))
    reporter.skip_to(steps)
    lines.finish()


def test_training_is_told_with_loss_rate_and_the_last_evaluation(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    tell_run(clock, resumed_from=1, steps=5)
    rates = "12,346 tokens/s, 41.2% MFU"
    assert capsys.readouterr().err.splitlines() == [
        f"train: 3/5 in 6.0 s, 6 s left, loss 2.000, {rates}",
        f"train: 5/5 in 12.0 s, loss 0.000, {rates}, holdout 1.000 bits per byte at 3",
        f"train: 5/5 in 12.0 s, loss 0.000, {rates}, holdout 1.000 bits per byte at 3",
    ]


def test_a_run_that_was_finished_is_shown_as_whole(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    tell_run(clock, resumed_from=5, steps=5)
    assert capsys.readouterr().err.splitlines() == ["train: 5/5 in 0.0 s"]
