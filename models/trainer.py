"""Training on packed rows: exact loss, a checkpoint now and then, and the same result however often it is killed.

    OUT/log.jsonl       one line per update (runlog)
    OUT/train.json      the resolved settings
    OUT/checkpoints/    the newest checkpoints (checkpoint)
    OUT/tokenizer/      a copy of PACKED/tokenizer, where there is one, so that OUT alone can generate from text

The loss of an update is the sum over all target tokens of its rows, divided once by their stored count: cutting the
update into micro-batches changes memory and speed, never the mathematics.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.models.attention import choose_backend
from seqmill.models.checkpoint import (
    DTYPES,
    TrainState,
    load_state,
    newest_checkpoint,
    remove_unfinished,
    require_device,
    restore,
    save_checkpoint,
)
from seqmill.models.config import ModelConfig, preset_config
from seqmill.models.gradients import RepeatLoss, accumulate_gradients
from seqmill.models.optim import Optimizer, learning_rate
from seqmill.models.runlog import LOG, RepeatStepRecord, StepRecord, cut_log, format_record
from seqmill.models.train_config import MAY_CHANGE_ON_RESUME, TrainConfig
from seqmill.models.transformer import Model
from seqmill.storage import TEMPORARY_SUFFIX, write_json

if TYPE_CHECKING:
    from seqmill.packing import BucketSchedule

LAST_LOSSES = 10  # TrainResult.loss_last is the mean of so many
_MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}  # on a processor, activations that stay in its cache


@dataclass(frozen=True)
class TrainResult:
    """What a finished run came to."""

    steps: int  # updates, earlier processes included
    loss_first: float  # nats per target of update 1
    loss_last: float  # mean over the last 10 updates
    tokens_seen: int  # targets, earlier processes included
    seconds: float  # of this process
    parameters: int  # of the model
    device: str  # "cpu" or "cuda"
    backend: str  # attention that ran
    resumed_from: int  # updates that earlier processes had done


@dataclass(frozen=True)
class _Job:
    """A run with every "auto" resolved."""

    config: TrainConfig
    model: ModelConfig
    device: torch.device
    dtype: torch.dtype  # of matrix products; weights and moments are float32
    backend: str
    rows: int  # per update, where no schedule tells
    schedule: "BucketSchedule | None"  # the bucket of every update, for a folder with buckets
    micro_batch_tokens: int  # most tokens of one forward pass
    fingerprint: str  # of the packed folder

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON: a checkpoint resumes only into an equal one."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in MAY_CHANGE_ON_RESUME}
        resolved = {
            "betas": list(self.config.betas),
            "learning_rate": self.config.peak_learning_rate,
            "warmup_steps": self.config.warmup,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rows per step": self.rows,
            "packed data": self.fingerprint,
        }
        if self.schedule is not None:
            resolved["bucket schedule"] = self.schedule.fingerprint
        shape = {f"model {name}": value for name, value in self.model.to_json().items()}
        return settings | resolved | shape


def train(
    packed: Path | str,
    out: Path | str,
    config: TrainConfig,
    progress: Callable[[StepRecord], None] | None = None,
) -> TrainResult:
    """Train a model on the packed rows in `packed`, or go on where an earlier call with the same arguments stopped.

    Args:
        packed: a folder that `seqmill pack` wrote. One with buckets is read by its schedule, a bucket an update.
        out: the run's folder; `load(out)` reads the result.
        progress: is told every update as it is logged.

    Raises:
        UserError: the data or the device is not there, `out` holds a run with other settings, or the loss is no longer
            a finite number.
    """
    from seqmill.packing import PackedDataset  # here, so that generating needs no reader of packed rows

    packed, out, began = Path(packed), Path(out), time.perf_counter()
    job = _resolve(packed, config)
    dataset = PackedDataset(
        packed,
        batch_rows=job.rows,
        seed=config.seed,
        epochs=None,
        schedule=job.schedule,
        normalisation=config.normalisation,
    )
    remove_unfinished(out)
    model = Model(job.model, config.seed).to(job.device)
    optimizer = Optimizer(model, config.optimizer, config.betas, config.weight_decay)
    start = _resume(out, job, model, optimizer)
    if start is None:
        start = TrainState(0, 0, math.nan, (), dataset.state_dict(), job.identity)
    dataset.load_state_dict(dict(start.loader))
    if start.step < config.steps:
        _copy_tokenizer(packed, out)
        write_json(out / "train.json", {"identity": job.identity, "asked": asdict(config), "runs": _how_it_runs(job)})
    cut_log(out / LOG, start.step)
    end = _train_on(out, job, model, optimizer, dataset, start, began, progress)
    return TrainResult(
        steps=end.step,
        loss_first=end.loss_first,
        loss_last=math.fsum(end.recent_losses) / len(end.recent_losses),
        tokens_seen=end.tokens,
        seconds=time.perf_counter() - began,
        parameters=job.model.parameters,
        device=job.device.type,
        backend=job.backend,
        resumed_from=start.step,
    )


def _resolve(packed: Path, config: TrainConfig) -> _Job:
    """Read the packed folder's manifest and decide every "auto"."""
    if not packed.is_dir():
        raise UserError(f"{packed} is no folder; name the --out of `seqmill pack`")
    manifest = open_manifest(packed, "packed")
    capacity, vocab_size = manifest["pack"]["capacity"], manifest["pack"]["vocab_size"]
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    device = require_device(chosen)
    auto_dtype = "bfloat16" if device.type == "cuda" else "float32"
    dtype = DTYPES[auto_dtype if config.dtype == "auto" else config.dtype]
    micro_rows = config.micro_batch_rows or max(1, _MICRO_BATCH_TOKENS[device.type] // capacity)
    return _Job(
        config=config,
        model=preset_config(config.model, vocab_size),
        device=device,
        dtype=dtype,
        backend=choose_backend(config.attention, device, dtype),
        rows=max(1, config.batch_tokens // capacity),
        schedule=_schedule(packed, manifest, config.batch_tokens),
        micro_batch_tokens=micro_rows * capacity,
        fingerprint=manifest["fingerprint"],
    )


def _schedule(packed: Path, manifest: Mapping[str, Any], batch_tokens: int) -> "BucketSchedule | None":
    """The schedule of a folder with buckets: its updates have room for as many tokens as are asked for."""
    if "schedule" not in manifest:
        return None
    from seqmill.packing import load_schedule

    schedule = load_schedule(packed / manifest["schedule"]["file"])
    if schedule.settings.step_tokens != batch_tokens:
        raise UserError(
            f"batch_tokens = {batch_tokens}, but the schedule of {packed} deals out steps of "
            f"{schedule.settings.step_tokens} tokens: train with batch_tokens = {schedule.settings.step_tokens}, or "
            f"pack again with --step-tokens {batch_tokens}"
        )
    return schedule


def _how_it_runs(job: _Job) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if job.device.type == "cuda" else "cpu",
        "attention": job.backend,
        "micro_batch_tokens": job.micro_batch_tokens,
        "parameters": job.model.parameters,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _resume(out: Path, job: _Job, model: Model, optimizer: Optimizer) -> TrainState | None:
    """Put the newest checkpoint into `model` and `optimizer`, if there is one and it is of this very run."""
    folder = newest_checkpoint(out)
    if folder is None:
        return None
    state, asked = load_state(folder), job.identity
    changed = [
        f"{name} was {state.identity.get(name)}, now {asked.get(name)}"
        for name in sorted(set(asked) | set(state.identity))
        if asked.get(name) != state.identity.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder} belongs to a run with other settings ({'; '.join(changed)}), and going on from it would give "
            "neither run's result (the schedule of the rate depends on steps); run with the old settings or choose "
            "another --out"
        )
    restore(folder, model, optimizer, state.step)
    return state


def _copy_tokenizer(packed: Path, out: Path) -> None:
    source, final = packed / "tokenizer", out / "tokenizer"
    if not source.is_dir() or final.exists():
        return
    temporary = final.with_name(f"{final.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    shutil.copytree(source, temporary, dirs_exist_ok=True)
    os.replace(temporary, final)


def _train_on(
    out: Path,
    job: _Job,
    model: Model,
    optimizer: Optimizer,
    dataset: Any,
    state: TrainState,
    began: float,
    progress: Callable[[StepRecord], None] | None,
) -> TrainState:
    """Do the updates after `state` and return the state after the last."""
    config = job.config
    out.mkdir(parents=True, exist_ok=True)
    batches = iter(dataset)
    with (out / LOG).open("ab") as log:
        while state.step < config.steps:
            step, batch = state.step + 1, next(batches)
            rate = _rate_of(config, step)
            loss, norm, repeats = _update(job, model, optimizer, rate, batch, step)
            tokens = state.tokens + int(batch["global_loss_tokens"])
            state = TrainState(
                step=step,
                tokens=tokens,
                loss_first=loss if step == 1 else state.loss_first,
                recent_losses=(*state.recent_losses, loss)[-LAST_LOSSES:],
                loader=dataset.state_dict(),
                identity=state.identity,
            )
            record = StepRecord(step, loss, tokens, time.perf_counter() - began, rate, norm)
            if repeats:
                record = RepeatStepRecord(**asdict(record), **_mean_losses(repeats))
            log.write(format_record(record))
            log.flush()
            if step % config.checkpoint_every == 0 or step == config.steps:
                _checkpoint(out, log, model, optimizer, state, config.keep_last)
            if progress:
                progress(record)
    return state


def _rate_of(config: TrainConfig, step: int) -> float:
    shape = (config.min_lr_ratio, config.schedule, config.decay_share)
    return learning_rate(step, config.steps, config.warmup, config.peak_learning_rate, *shape)


def _checkpoint(
    out: Path, log: BinaryIO, model: Model, optimizer: Optimizer, state: TrainState, keep_last: int
) -> None:
    os.fsync(log.fileno())  # a checkpoint's updates are in the log, whatever happens next
    save_checkpoint(out, model, optimizer, state, keep_last)


def _update(
    job: _Job, model: Model, optimizer: Optimizer, rate: float, batch: Mapping[str, Any], step: int
) -> tuple[float, float, RepeatLoss | None]:
    """One update of the weights.

    Returns:
        The loss in nats per target, the gradient's norm before clipping, and `accumulate_gradients`' loss of repeats.
    """
    _check_ids(job, batch, step)
    loss, repeats = accumulate_gradients(model, batch, job.device, job.dtype, job.backend, job.micro_batch_tokens)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), job.config.grad_clip)
    found = (loss.item(), norm.item())
    if not all(map(math.isfinite, found)):
        raise UserError(
            f"update {step}: the loss is {found[0]} and the gradient's norm {found[1]}, which no further update can "
            f"repair; its rows have the ids {_name_rows(batch)}. Look at these rows, or lower learning_rate or raise "
            "warmup_steps and train into another --out"
        )
    optimizer.step(rate)
    return *found, repeats


def _mean_losses(loss: RepeatLoss) -> dict[str, Any]:
    """The fields that a RepeatStepRecord has besides those of a StepRecord."""
    entries: dict[str, Any] = {}
    for name, total, count in zip(("unique", "repeat"), loss.sums.tolist(), loss.targets, strict=True):
        entries |= {f"loss_{name}": total / count if count else None, f"targets_{name}": count}
    return entries


def _check_ids(job: _Job, batch: Mapping[str, Any], step: int) -> None:
    largest = int(batch["input_ids"].max())
    if largest >= job.model.vocab_size:
        raise UserError(
            f"update {step}: rows {_name_rows(batch)} hold the id {largest}, but the packed folder's vocabulary has "
            f"{job.model.vocab_size} ids; pack again with the tokenizer that made these ids"
        )


def _name_rows(batch: Mapping[str, Any]) -> str:
    rows = batch["row_ids"].tolist()
    return ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
