"""The trainer: it learns, it resumes to the bit, and it refuses what it cannot do."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seqmill.errors import UserError
from seqmill.models import Model, StepRecord, TrainConfig, load, train
from seqmill.models.checkpoint import newest_checkpoint
from seqmill.models.memory import MemorySettings
from seqmill.models.training.runlog import without_clocks
from seqmill.packing import PackedDataset, load_schedule

SHAPE = {"dim": 48, "layers": 2, "heads": 3, "kv_heads": 1, "head_dim": 16, "ffn_dim": 96}
SMALL = TrainConfig(
    shape=SHAPE, steps=10, batch_tokens=256, micro_batch_rows=1, checkpoint_every=5, seed=3, learning_rate=6e-3
)
IDENTICAL = ("model.safetensors", "optimizer.safetensors", "state.json", "config.json")


class Stopped(Exception):  # noqa: N818 (it stands for a kill, not for an error)
    """Raised in place of a kill."""


def stop_after(step: int) -> Callable[[StepRecord], None]:
    def progress(record: StepRecord) -> None:
        if record.step == step:
            raise Stopped

    return progress


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """The same last checkpoint, to the byte, and the same log but for the clock."""
    first, second = newest_checkpoint(one), newest_checkpoint(other)
    assert first is not None
    assert second is not None
    assert first.name == second.name
    for name in IDENTICAL:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    logs = [[without_clocks(record) for record in log_of(out)] for out in (one, other)]
    assert logs[0] == logs[1]


def test_training_lowers_the_loss_and_logs_every_update_once(packed: Path, tmp_path: Path) -> None:
    seen: list[StepRecord] = []
    config = dataclasses.replace(SMALL, steps=40, keep_last=1)
    result = train(packed, tmp_path / "run", config, seen.append)
    log = log_of(tmp_path / "run")
    assert [record["step"] for record in log] == list(range(1, 41))
    assert [dataclasses.asdict(record) for record in seen] == log
    assert set(log[0]) == {field.name for field in dataclasses.fields(StepRecord)}
    assert result.loss_first == log[0]["loss"] == pytest.approx(np.log(100), abs=0.3)
    assert result.loss_last == pytest.approx(np.mean([record["loss"] for record in log[-10:]]))
    assert result.loss_last < 0.7 * result.loss_first
    assert log[3]["lr"] == 6e-3  # warm-up is a tenth of the steps
    assert result.tokens_seen == log[-1]["tokens"] > 40 * 100
    assert (result.steps, result.resumed_from, result.backend, result.device) == (40, 0, "sdpa", "cpu")
    model = load(tmp_path / "run")
    assert result.parameters == model.config.parameters
    assert model.config.vocab_size == 100
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000040"]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "schedule": "wsd"}], ids=["adamw", "muon"])
def test_five_updates_and_five_more_are_ten_to_the_bit(packed: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(SMALL, **changes)
    train(packed, tmp_path / "straight", config)
    with pytest.raises(Stopped):
        train(packed, tmp_path / "stopped", config, stop_after(5))
    result = train(packed, tmp_path / "stopped", config)
    assert result.resumed_from == 5
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_updates_after_the_last_checkpoint_are_done_again(packed: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "straight", SMALL)
    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        train(packed, out, SMALL, stop_after(3))
    with pytest.raises(Stopped):
        train(packed, out, SMALL, stop_after(8))
    assert [record["step"] for record in log_of(out)] == list(range(1, 9))
    with (out / "log.jsonl").open("ab") as log:
        log.write(b'{"step":9,"lo')  # a line that the kill cut short
    half_written = out / "checkpoints" / "step-00000010.77.tmp"
    shutil.copytree(out / "checkpoints" / "step-00000005", half_written)
    (out / "train.json.77.tmp").write_text("{")
    assert train(packed, out, SMALL).resumed_from == 5
    assert not list(out.rglob("*.tmp"))
    assert_same_run(tmp_path / "straight", out)


PROGRAM = """
import json, sys
from seqmill.models import TrainConfig, train
train(sys.argv[1], sys.argv[2], TrainConfig(**json.loads(sys.argv[3])), lambda record: print(record.step, flush=True))
"""


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_if_it_had_not_been_killed(packed: Path, tmp_path: Path, threads: int) -> None:
    settings = {"shape": SHAPE, "steps": 9, "batch_tokens": 256, "micro_batch_rows": 2, "checkpoint_every": 3}
    command = [sys.executable, "-c", PROGRAM, str(packed), str(tmp_path / "killed"), json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 6:  # the checkpoint of update 3 was on disk before that of 6 was begun
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result = train(packed, tmp_path / "killed", TrainConfig(**settings))  # type: ignore[arg-type]
        train(packed, tmp_path / "straight", TrainConfig(**settings))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    assert 3 <= result.resumed_from < 9
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_a_finished_run_returns_at_once_with_the_same_figures(packed: Path, tmp_path: Path) -> None:
    first = train(packed, tmp_path / "run", SMALL)
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    again = train(packed, tmp_path / "run", SMALL, stop_after(1))
    assert again.resumed_from == 10
    assert dataclasses.replace(again, seconds=first.seconds, resumed_from=0) == first
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_a_run_with_other_settings_is_not_resumed(packed: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "run", SMALL)
    for changes, message in (
        ({"steps": 20}, "steps was 10, now 20"),
        ({"learning_rate": 1e-3}, r"learning_rate was 0\.006, now 0\.001"),
        ({"batch_tokens": 512}, "rows per step was 4, now 8"),
        ({"dtype": "bfloat16"}, "dtype was float32, now bfloat16"),
    ):
        with pytest.raises(UserError, match=f"other settings.*{message}.*another --out"):
            train(packed, tmp_path / "run", dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]


def test_settings_that_change_no_result_may_change_on_resume(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(packed, tmp_path / "run", SMALL, stop_after(5))
    other = dataclasses.replace(SMALL, checkpoint_every=2, keep_last=3, micro_batch_rows=4, device="cpu")
    assert train(packed, tmp_path / "run", other).resumed_from == 5


def test_a_run_on_other_data_is_not_resumed(packed: Path, pack_folder: Callable[..., Path], tmp_path: Path) -> None:
    train(packed, tmp_path / "run", SMALL)
    other = pack_folder([[1, 2, 3]] * 40, vocab_size=120, name="other")
    with pytest.raises(UserError, match="model vocab_size was 100, now 120; packed data was"):
        train(other, tmp_path / "run", SMALL)


def test_a_damaged_checkpoint_is_not_resumed_but_the_one_before_it_is(packed: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "run", SMALL)
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    (newest / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"optimizer\.safetensors"):
        train(packed, tmp_path / "run", SMALL)
    shutil.rmtree(newest)
    assert train(packed, tmp_path / "run", SMALL).resumed_from == 5


def test_the_tokenizer_travels_with_the_run(packed: Path, tmp_path: Path) -> None:
    (packed / "tokenizer").mkdir()
    (packed / "tokenizer" / "tokenizer.json").write_text("{}")
    train(packed, tmp_path / "run", dataclasses.replace(SMALL, steps=1))
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "run" / "train.json").read_text())["runs"]["attention"] == "sdpa"


def test_more_rows_than_there_are_train_on_all_of_them(pack_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = pack_folder([[1, 2, 3, 4]] * 20)
    result = train(folder, tmp_path / "run", dataclasses.replace(SMALL, steps=3, batch_tokens=10**6))
    assert result.tokens_seen == 3 * 20 * 3


def test_rows_without_any_target_leave_the_loss_at_zero(pack_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = pack_folder([[1]] * 100)
    result = train(folder, tmp_path / "run", dataclasses.replace(SMALL, steps=2))
    assert (result.loss_first, result.loss_last, result.tokens_seen) == (0.0, 0.0, 0)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = Model.forward, []

    def broken(self: Model, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        hidden = forward(self, *arguments)
        return hidden * torch.nan if len(calls) > 26 else hidden  # 4 micro-batches per update: in update 7

    monkeypatch.setattr(Model, "forward", broken)
    with pytest.raises(UserError, match=r"update 7: the loss is nan.*rows have the ids \d+, \d+, \d+, \d+\."):
        train(packed, tmp_path / "run", SMALL)
    assert [record["step"] for record in log_of(tmp_path / "run")] == list(range(1, 7))
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())


def test_ids_outside_the_vocabulary_are_refused_by_their_row(packed: Path, tmp_path: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["pack"]["vocab_size"] = 50
    (packed / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"update 1: rows .* hold the id 99, but .* 50 ids"):
        train(packed, tmp_path / "run", SMALL)


def test_a_missing_or_foreign_packed_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder.*seqmill pack"):
        train(tmp_path / "missing", tmp_path / "run", SMALL)
    with pytest.raises(UserError, match="no manifest"):
        train(tmp_path, tmp_path / "run", SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_asking_for_cuda_where_there_is_none_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sees no CUDA device.*--device cpu"):
        train(packed, tmp_path / "run", dataclasses.replace(SMALL, device="cuda"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "9t"}, "'9t'.*tiny, 124m"),
        ({"steps": 0}, "steps = 0: must be positive"),
        ({"learning_rate": -1.0}, r"learning_rate = -1\.0: must be positive"),
        ({"betas": (0.9, 1.0)}, r"betas = \(0\.9, 1\.0\)"),
        ({"keep_last": 0}, "keep_last = 0.*resumes"),
        ({"device": "tpu"}, "device = tpu: must be auto, cpu or cuda"),
        ({"steps": 5, "warmup_steps": 6}, "warmup_steps = 6 is more than steps = 5"),
        ({"learning_rate": float("inf")}, "learning_rate = inf: must be positive and finite"),
        ({"seed": 1 << 63}, "seed = 9223372036854775808: must be 0 or more, and below"),
        ({"min_lr_ratio": 1.5}, r"min_lr_ratio = 1\.5"),
    ],
)
def test_an_impossible_setting_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**changes)


def test_a_run_begins_with_the_weights_of_another_where_asked(packed: Path, tmp_path: Path) -> None:
    first = train(packed, tmp_path / "first", dataclasses.replace(SMALL, steps=30))
    more = dataclasses.replace(SMALL, init=str(tmp_path / "first"), learning_rate=1e-5)
    assert train(packed, tmp_path / "second", more).loss_first < 0.9 * first.loss_first
    shutil.rmtree(tmp_path / "second" / "checkpoints" / "step-00000010")
    shutil.move(tmp_path / "first", tmp_path / "elsewhere")
    assert train(packed, tmp_path / "second", more).resumed_from == 5  # which needs the first run no more
    moved = dataclasses.replace(more, init=str(tmp_path / "elsewhere"))
    shutil.rmtree(tmp_path / "second" / "checkpoints" / "step-00000010")
    assert train(packed, tmp_path / "second", moved).resumed_from == 5
    shutil.move(tmp_path / "elsewhere", tmp_path / "first")
    train(packed, tmp_path / "other", SMALL)
    for init in (str(tmp_path / "other"), None):
        with pytest.raises(UserError, match=r"weights of init was [0-9a-f]{32}, now .*another --out"):
            train(packed, tmp_path / "second", dataclasses.replace(more, init=init))
    wider = dataclasses.replace(more, shape={**SHAPE, "ffn_dim": 128})
    with pytest.raises(
        UserError, match=r"init = .*first: its model has ffn_dim 96, not 128; choose the model and shape"
    ):
        train(packed, tmp_path / "third", wider)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"widht": 3}, "shape has 'widht', which no model has; it takes dim"),
        ({"vocab_size": 3}, "shape has 'vocab_size'"),
        ({"layers": "six"}, "shape layers = 'six' is of the wrong type: int is needed"),
        ({"layers": 2.0}, r"shape layers = 2\.0 is of the wrong type"),
        ({"layers": None}, "shape layers = None is of the wrong type"),
        ({"rope_scaling": 3}, "shape rope_scaling = 3 is of the wrong type"),
        ({"rope_scaling": {"kind": "linear", "factor": "a"}}, "rope_scaling factor = 'a': must be a number"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads must divide heads"),
        ({"experts": 4}, "experts = 4, experts_per_token = 0"),
    ],
)
def test_a_shape_that_no_model_has_is_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(shape=shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_parallel": 2}, "context_parallel = 2, and 1 ranks cannot be divided"),
        (
            {"memory": MemorySettings(stream_chunk=8), "shape": {**SHAPE, "window": 4}},
            "a streamed layer attends to all of a document",
        ),
        ({"memory": MemorySettings(checkpoint="layer", offload=True)}, "offload = true moves tensors from a GPU"),
        (
            {"memory": MemorySettings(mlp_tile=8), "shape": {**SHAPE, "experts": 4, "experts_per_token": 2}},
            "the balancing loss of experts has no gradient",
        ),
        ({"attention": "varlen"}, "varlen.*needs CUDA"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    packed: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(packed, tmp_path / "run", dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": MemorySettings(checkpoint="keep-attention", mlp_tile=16)},
        {"memory": MemorySettings(stream_chunk=20)},
        {"micro_batch_rows": 4},
    ],
    ids=["checkpoint", "stream", "one micro-batch"],
)
def test_ways_to_save_memory_and_micro_batches_make_the_same_updates(
    packed: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    for name, config in (("plain", SMALL), ("other", dataclasses.replace(SMALL, z_loss=1e-3, **changes))):
        train(packed, tmp_path / name, dataclasses.replace(config, z_loss=1e-3, steps=4))
    for line, expected in zip(*(log_of(tmp_path / name) for name in ("other", "plain")), strict=True):
        assert line["objective"] > line["loss"]
        for value in ("loss", "objective", "grad_norm"):
            assert line[value] == pytest.approx(expected[value], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_training_on_cuda_learns_with_the_ragged_kernel(packed: Path, tmp_path: Path) -> None:
    result = train(packed, tmp_path / "run", dataclasses.replace(SMALL, steps=40, device="cuda"))
    assert result.backend == "varlen"
    assert result.loss_last < 0.7 * result.loss_first


@pytest.fixture
def bucketed(pack_folder: Callable[..., Path]) -> Path:
    """Rows of 8, 16, 32 and 64 tokens, in steps of 256."""
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 100, length) for length in generator.integers(9, 150, 120)]
    return pack_folder(documents, step_tokens=256)


def test_every_update_of_a_schedule_has_rows_of_one_length(bucketed: Path, tmp_path: Path) -> None:
    schedule = load_schedule(bucketed / "schedule.arrow")
    config = dataclasses.replace(SMALL, steps=schedule.steps)
    result = train(bucketed, tmp_path / "run", config)
    dataset = PackedDataset(bucketed, seed=SMALL.seed, epochs=None, schedule=schedule)
    assert result.tokens_seen == sum(dataset.batch_at(step)["global_loss_tokens"] for step in range(schedule.steps))
    tokens = [record["tokens"] for record in log_of(tmp_path / "run")]
    assert np.diff([0, *tokens]).max() == 256  # no update has more room, and full ones have no target missing


def test_a_run_by_a_schedule_resumes_to_the_bit(bucketed: Path, tmp_path: Path) -> None:
    train(bucketed, tmp_path / "whole", SMALL)
    with pytest.raises(Stopped):
        train(bucketed, tmp_path / "resumed", SMALL, stop_after(7))
    assert train(bucketed, tmp_path / "resumed", SMALL).resumed_from == 5
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_updates_of_another_size_than_the_schedule_deals_out_are_refused(bucketed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_tokens = 512, but the schedule of .* deals out steps of 256 tokens"):
        train(bucketed, tmp_path / "run", dataclasses.replace(SMALL, batch_tokens=512))


def test_another_schedule_of_the_rate_is_another_run_also_with_buckets(bucketed: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(bucketed, tmp_path / "run", dataclasses.replace(SMALL, schedule="wsd"), stop_after(6))
    with pytest.raises(UserError, match="schedule was wsd, now cosine"):
        train(bucketed, tmp_path / "run", SMALL)
