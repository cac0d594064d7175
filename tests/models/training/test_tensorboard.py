"""What TensorBoard shows, read back from its files."""

import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqmill.errors import UserError
from seqmill.models.evaluation.source_loss import SourceLoss
from seqmill.models.training.runlog import EvaluationRecord, SampleRecord, StepRecord
from seqmill.models.training.tensorboard import FOLDER, TensorBoard


def step(number: int, loss: float) -> StepRecord:
    return StepRecord(number, loss, 100 * number, 0.5, 1e-3, 0.1, tokens_per_second=1e5)


def shown(out: Path) -> EventAccumulator:
    found = EventAccumulator(str(out / FOLDER))
    found.Reload()
    return found


def points(board: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board.Scalars(tag)]


def text_of(board: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    events: list[Any] = board.Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def test_every_number_of_the_logs_is_shown(tmp_path: Path) -> None:
    losses = {"web": SourceLoss(1, 10, 9, 20, 4.5, 2.0), "books": SourceLoss(1, 2, 0, 0, 0.0, 2.0)}
    record = EvaluationRecord.of(2, "holdout", 200, 0.5, losses)
    with TensorBoard(tmp_path, 0) as board:
        board.write(step(1, 4.0))
        board.write(step(2, 3.0))
        board.write(record)
        board.write(SampleRecord(2, "the cat", " sat\non"))
        board.write(SampleRecord(2, "a", "b"))
        board.write(SampleRecord(4, "the cat", " ran"))
    found = shown(tmp_path)
    assert points(found, "train/loss") == [(1, 4.0), (2, 3.0)]
    assert points(found, "train/tokens_per_second") == [(1, 1e5), (2, 1e5)]
    tags = set(found.Tags()["scalars"])
    assert "train/mfu" not in tags  # it is not known
    assert {tag for tag in tags if tag.startswith("holdout")} == {
        "holdout/loss", "holdout/bits_per_byte", "holdout/loss/web", "holdout/bits_per_byte/web"
    }  # fmt: skip
    assert points(found, "holdout/bits_per_byte/web") == [(2, pytest.approx(record.by_source["web"]["bits_per_byte"]))]
    assert text_of(found, "samples/0") == [(2, "    the cat| sat\n    on"), (4, "    the cat| ran")]
    assert text_of(found, "samples/1") == [(2, "    a|b")]


def test_a_run_that_goes_on_shows_every_update_once(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, 0) as board:
        for number in range(1, 8):
            board.write(step(number, 10.0 + number))
    with TensorBoard(tmp_path, 4) as board:
        for number in range(5, 7):
            board.write(step(number, float(number)))
    assert points(shown(tmp_path), "train/loss") == [(1, 11.0), (2, 12.0), (3, 13.0), (4, 14.0), (5, 5.0), (6, 6.0)]


def test_a_run_that_begins_again_shows_nothing_of_the_first_attempt(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, 0) as board:
        board.write(step(1, 11.0))
        board.write(step(2, 12.0))
    with TensorBoard(tmp_path, 0) as board:
        board.write(step(1, 1.0))
    assert points(shown(tmp_path), "train/loss") == [(1, 1.0)]


def test_without_the_package_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"needs the package tensorboard.*seqmill\[tensorboard\]"):
        TensorBoard(tmp_path, 0)
