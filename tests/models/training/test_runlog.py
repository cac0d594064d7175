"""The logs of a run: whole lines, each update once, and the same whenever the run is done again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqmill.models.evaluation.source_loss import SourceLoss
from seqmill.models.training.meter import Rates
from seqmill.models.training.runlog import (
    CLOCKS,
    EVALUATIONS,
    LOG,
    SAMPLES,
    EvaluationRecord,
    PartStepRecord,
    RunLog,
    SampleRecord,
    StepRecord,
    without_clocks,
)

LOSSES = {"a": SourceLoss(2, 20, 18, 40, 9.0, 3.0), "b": SourceLoss(), "é": SourceLoss(1, 1, 0, 5, 0.0, 4.0)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def step(number: int) -> StepRecord:
    return StepRecord(number, 2.0, 100 * number, 0.5 * number, 1e-3, 0.1)


def write_run(out: Path, first: int, last: int) -> None:
    """Updates with a look at held-out documents before the first and behind every second one."""
    with RunLog(out, first) as log:
        for number in range(first, last + 1):
            if number > first:
                log.write(step(number))
            if number % 2 == 0 and (number > first or number == 0):
                log.write(EvaluationRecord.of(number, "holdout", 100 * number, 0.5, LOSSES))
                log.write(SampleRecord(number, "Once upon\na time", " \u2028 there was\r\n"))
                log.write(SampleRecord(number, "two", ""))
        log.sync()


def test_every_record_is_a_line_of_its_file(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 3)
    assert [line["step"] for line in lines(tmp_path / LOG)] == [1, 2, 3]
    assert lines(tmp_path / LOG)[0]["loss"] == 2.0
    assert [line["step"] for line in lines(tmp_path / EVALUATIONS)] == [0, 2]
    samples = (tmp_path / SAMPLES).read_bytes().split(b"\n")
    assert len(samples) == 5
    assert json.loads(samples[0]) == {
        "step": 0, "prompt": "Once upon\na time", "continuation": " \u2028 there was\r\n"
    }  # fmt: skip


def test_an_evaluation_tells_every_source_that_has_documents() -> None:
    record = EvaluationRecord.of(4, "holdout", 400, 1.5, LOSSES)
    assert (record.step, record.set, record.tokens) == (4, "holdout", 400)
    assert record.loss == 9.0 / 18
    assert record.bits_per_byte == pytest.approx(16.0 / 0.6931471805599453 / 45)
    assert list(record.by_source) == ["a", "é"]
    assert record.by_source["a"]["loss"] == 0.5
    assert record.by_source["é"]["bits_per_byte"] == pytest.approx(4 / 0.6931471805599453 / 5)
    counted = {name: value for name, value in record.by_source["é"].items() if name != "bits_per_byte"}
    assert counted == {"loss": None, "documents": 1, "targets": 0, "bytes": 5}


@pytest.mark.parametrize("kept", [0, 2, 3, 5])
def test_a_run_that_goes_on_leaves_the_logs_of_one_that_was_not_killed(tmp_path: Path, kept: int) -> None:
    write_run(tmp_path / "straight", 0, 6)
    write_run(tmp_path / "killed", 0, 5)
    with (tmp_path / "killed" / EVALUATIONS).open("ab") as log:
        log.write(b'{"step": 5, "se')  # a line that the kill cut short
    write_run(tmp_path / "killed", kept, 6)
    for name in (LOG, EVALUATIONS, SAMPLES):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_rates_are_fields_of_the_log_and_depend_on_the_machine(tmp_path: Path) -> None:
    rates = Rates(1e5, 0.4, 0.25, 0.01, 2**30)
    with RunLog(tmp_path, 0) as log:
        log.write(replace(step(1), objective=2.5, **vars(rates)))
    (line,) = lines(tmp_path / LOG)
    assert set(vars(rates)) <= CLOCKS
    assert line.items() >= vars(rates).items()
    assert set(line) - set(without_clocks(line)) == CLOCKS
    assert (line["loss"], line["objective"], line["padding_share"]) == (2.0, 2.5, 0.25)


def test_a_record_with_more_fields_is_a_line_of_the_log(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write(
            PartStepRecord(
                **vars(step(1)),
                loss_repeat=1.0,
                loss_unique=3.0,
                loss_trap=None,
                targets_repeat=1,
                targets_unique=1,
                targets_trap=0,
            )
        )
    assert lines(tmp_path / LOG)[0]["loss_repeat"] == 1.0
    assert not (tmp_path / EVALUATIONS).exists()
