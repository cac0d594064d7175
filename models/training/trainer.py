"""Training on packed rows: exact loss, a checkpoint now and then, and the same result however often it is killed.

    OUT/log.jsonl       one line per update (runlog); eval.jsonl and samples.jsonl, one per look at the model
    OUT/train.json      the resolved settings
    OUT/checkpoints/    the newest checkpoints (checkpoint)
    OUT/tokenizer/      a copy of PACKED/tokenizer, where there is one, so that OUT alone can generate from text

The loss of an update is the sum over all target tokens of its rows, divided once by their stored count: cutting the
update into micro-batches, or sharing it out among ranks, changes memory and speed, never the mathematics. The first
rank writes all files.
"""

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seqmill.errors import UserError
from seqmill.models.attention import Choice, choose_for_batch
from seqmill.models.checkpoint import (
    TOKENIZER,
    CheckpointWriter,
    TrainState,
    load,
    load_state,
    newest_checkpoint,
    remove_unfinished,
    restore,
    snapshot,
    tokenizer_of,
)
from seqmill.models.evaluation.traps import TrapTokens, token_parts
from seqmill.models.loss import PARTS
from seqmill.models.training.config import TrainConfig
from seqmill.models.training.flops import peak_flops, training_flops
from seqmill.models.training.gradients import UpdateLoss, accumulate_gradients, split_batch
from seqmill.models.training.job import Job, choose_device, resolve
from seqmill.models.training.journal import Journal, Listener, Silence
from seqmill.models.training.looks import Looks
from seqmill.models.training.meter import Meter
from seqmill.models.training.optim import Optimizer, learning_rate
from seqmill.models.training.packed_loss import LossSettings, PackedLoss
from seqmill.models.training.ranks import joined_ranks
from seqmill.models.training.runlog import PartStepRecord, StepRecord, looked_at
from seqmill.models.training.sharing import gathered, put
from seqmill.models.training.spread import Spread, spread
from seqmill.models.transformer import Model
from seqmill.storage import TEMPORARY_SUFFIX, write_json

LAST_LOSSES = 10  # TrainResult.loss_last is the mean of so many


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
class _Run:
    """What the updates of a run change."""

    job: Job
    model: Model
    loss: Spread  # of a PackedLoss of the model
    optimizer: Optimizer
    dataset: Any  # PackedDataset
    looks: Looks
    meter: Meter


def train(packed: Path | str, out: Path | str, config: TrainConfig, progress: Listener | None = None) -> TrainResult:
    """Train a model on the packed rows in `packed`, or go on where an earlier call with the same arguments stopped.

    Processes that torchrun or Ray Train has started call this alike, and train together. How many they are may be
    another number after a stop, except with a plan. A finished run is looked at where a look after its last update is
    asked for that was not yet taken.

    Args:
        packed: a folder that `seqmill pack` wrote. One with buckets is read by its schedule, a bucket an update.
        out: the run's folder; `load(out)` reads the result.
        progress: is told every record as it is logged, by the first rank.

    Raises:
        UserError: the data or the device is not there, `out` holds a run with other settings, or the loss is no longer
            a finite number.
    """
    packed, out, began = Path(packed), Path(out), time.perf_counter()
    with joined_ranks(choose_device(config.device)) as ranks:
        job = resolve(packed, config, ranks)
        if ranks.is_first:
            remove_unfinished(out)
        run, start = _begin(out, job)
        if ranks.is_first and start.step < config.steps:
            _copy_tokenizer(packed, out)
            settings = {"identity": job.identity, "asked": asdict(config), "runs": run.job.how_it_runs()}
            write_json(out / "train.json", settings)
        journal = Journal(out, start.step, config.tensorboard, progress) if ranks.is_first else Silence()
        with journal, CheckpointWriter(out, config.keep_last) as writer:
            if start.step == config.steps:
                _look_once_more(run, start, began, journal, out)
            end = _train_on(run, start, began, journal, writer)
    return TrainResult(
        steps=end.step,
        loss_first=end.loss_first,
        loss_last=math.fsum(end.recent_losses) / len(end.recent_losses),
        tokens_seen=end.tokens,
        seconds=time.perf_counter() - began,
        parameters=job.model.parameters,
        device=job.device.type,
        backend=run.job.backend,
        resumed_from=start.step,
    )


def _begin(out: Path, job: Job) -> tuple[_Run, TrainState]:
    """The model, optimizer and data of a run as its newest checkpoint has them, or as a new run begins."""
    from seqmill.packing import PackedDataset  # here, so that generating needs no reader of packed rows

    config = job.config
    dataset = PackedDataset(
        job.packed,
        batch_rows=None if job.plan else job.rows,
        seed=config.seed,
        rank=job.ranks.rank // config.context_parallel,
        world_size=job.ranks.size // config.context_parallel,
        epochs=None,
        schedule=job.schedule,
        plan=job.plan,
        normalisation=config.normalisation,
    )
    checkpoint = newest_checkpoint(out)
    start = TrainState(0, 0, math.nan, (), dataset.state_dict(), job.identity)
    if checkpoint is not None:
        start = load_state(checkpoint)
        _check_same_run(start.identity, job, checkpoint)
    dataset.load_state_dict(dict(start.loader))
    job = _choose_attention(job, dataset, start.step)
    model = (_first_weights(job) if checkpoint is None else Model(job.model, seed=None)).to(job.device)
    loss = spread(PackedLoss(model, _loss_settings(job)), config.parallel, job.ranks)
    optimizer = Optimizer(model, config.optimizer, config.betas, config.weight_decay)
    if checkpoint is not None:
        restore(checkpoint, model, optimizer, start.step, put)
    meter = Meter(job.device, peak_flops(job.device, job.dtype), job.ranks.size)
    return _Run(job, model, loss, optimizer, dataset, Looks.of(job), meter), start


def _choose_attention(job: Job, dataset: Any, step: int) -> Job:
    """For "auto" the backend that is the fastest on the first micro-batch; the first rank's choice, for all."""
    if job.config.attention != "auto" or job.device.type != "cuda":
        return job
    first = next(split_batch(dataset.batch_at(step), job.micro_batch_tokens, job.device), None)
    choice = Choice(job.backend)  # of a rank without rows
    if first is not None:
        is_even = job.schedule is not None
        choice = choose_for_batch("auto", job.model, first.segments, job.dtype, always_even=is_even)
    return replace(job, backend=job.ranks.agree(choice.backend), timings=choice.timings)


def _loss_settings(job: Job) -> LossSettings:
    config = job.config
    shared = config.context_parallel > 1
    return LossSettings(
        z_loss=config.z_loss,
        balance=config.balance,
        router_z=config.router_z,
        dtype=job.dtype,
        backend=job.backend,
        memory=config.memory,
        context_kind=config.context_kind,
        context_group=job.ranks.neighbours(config.context_parallel, job.device.type) if shared else None,
        sharers=job.ranks.groups(job.sharers, job.device),
        compiler=job.compiler,
    )


def _first_weights(job: Job) -> Model:
    """Random weights, or those that the run is to begin with.

    Raises:
        UserError: these are of a model of another shape, or learned other tokens.
    """
    if job.config.init is None:
        return Model(job.model, job.config.seed)
    model = load(job.config.init)
    _check_tokenizer(job, job.config.init)
    if model.config != job.model:
        asked, found = job.model.to_json(), model.config.to_json()
        other = [f"{name} {found.get(name)}, not {asked.get(name)}" for name in asked if asked[name] != found.get(name)]
        raise UserError(
            f"init = {job.config.init}: its model has {', '.join(other)}; choose the model and shape that it has, or "
            "data with its vocabulary"
        )
    return model.float().train().requires_grad_(True)


def _check_tokenizer(job: Job, init: str) -> None:
    """Whether the ids of the rows mean what they meant to the model that the run begins with, as far as that is known.

    Raises:
        UserError: they do not.
    """
    folder = tokenizer_of(init)
    if folder is None or job.tokenizer is None:
        return
    from seqmill.tokenizers_ext import load as load_tokenizer  # here: training alone needs no tokenizer

    found = load_tokenizer(folder).fingerprint
    if found != job.tokenizer:
        raise UserError(
            f"init = {init}: the tokenizer of its model ({found[:16]}) is not the one of the training data "
            f"({job.tokenizer[:16]}), so ids mean other texts; tokenize the data with {folder}"
        )


def _check_same_run(was: Mapping[str, Any], job: Job, checkpoint: Path) -> None:
    """Whether a checkpoint is of this very run. Weights to begin with that are no longer there are not compared: a run
    that goes on needs them no more.

    Raises:
        UserError: it is not.
    """
    asked = job.identity
    if job.config.init is not None and job.init is None:
        asked["weights of init"] = was.get("weights of init")
    changed = [
        f"{name} was {was.get(name)}, now {asked.get(name)}"
        for name in sorted(set(asked) | set(was))
        if asked.get(name) != was.get(name)
    ]
    if changed:
        raise UserError(
            f"{checkpoint} belongs to a run with other settings ({'; '.join(changed)}), and going on from it would "
            "give neither run's result (the schedule of the rate depends on steps); run with the old settings or "
            "choose another --out"
        )


def _copy_tokenizer(packed: Path, out: Path) -> None:
    source, final = packed / TOKENIZER, out / TOKENIZER
    if not source.is_dir() or final.exists():
        return
    temporary = final.with_name(f"{final.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    shutil.copytree(source, temporary, dirs_exist_ok=True)
    os.replace(temporary, final)


def _look_once_more(run: _Run, end: TrainState, began: float, journal: Journal, out: Path) -> None:
    """The looks after the last update that a finished run is asked for only now."""
    ranks = run.job.ranks
    found = looked_at(out, end.step) if ranks.is_first else ()  # the one that has cut the logs
    taken = ranks.agree(" ".join(sorted(found))).split()
    for look in run.looks.after(end.step, run.model, end.tokens, began, taken):
        journal.write(look)
    journal.sync()
    journal.tell()


def _train_on(run: _Run, start: TrainState, began: float, journal: Journal, writer: CheckpointWriter) -> TrainState:
    """Do the updates after `start` and return the state after the last."""
    config, state = run.job.config, start
    for state, record in _updates(run, start, began):
        journal.write(record)
        for look in run.looks.after(state.step, run.model, state.tokens, began):
            journal.write(look)
        if state.step % config.checkpoint_every == 0 or state.step == config.steps:
            tensors = snapshot(run.model, run.optimizer, gathered)  # by all ranks: each may hold a part
            journal.sync()
            if run.job.ranks.is_first:
                writer.save(run.job.model, tensors, state)
        journal.tell()
        run.meter.skip()
    return state


def _updates(run: _Run, state: TrainState, began: float) -> Iterator[tuple[TrainState, StepRecord]]:
    """Make one update after the other; give the state after each and its line of the log."""
    config, model, batches = run.job.config, run.job.model, iter(run.dataset)
    while state.step < config.steps:
        step = state.step + 1
        with run.meter.waiting():
            batch = _with_parts(next(batches), run.looks.trap_tokens)
        rate = _rate_of(config, step)
        found, norm = _update(run, rate, batch, step)
        tokens = state.tokens + int(batch["global_loss_tokens"])
        state = TrainState(
            step=step,
            tokens=tokens,
            loss_first=found.mean if step == 1 else state.loss_first,
            recent_losses=(*state.recent_losses, found.mean)[-LAST_LOSSES:],
            loader=run.dataset.state_dict(),
            identity=state.identity,
        )
        rates = run.meter.lap(found.tokens, found.places, training_flops(model, found.tokens, found.squares))
        facts: dict[str, Any] = {
            "step": step,
            "loss": found.mean,
            "tokens": tokens,
            "seconds": time.perf_counter() - began,
            "lr": rate,
            "grad_norm": norm,
            "objective": found.objective,
            "expert_imbalance": max(found.imbalance, default=None),
            **vars(rates),
        }
        yield state, PartStepRecord(**facts, **_by_part(found)) if "parts" in batch else StepRecord(**facts)


def _rate_of(config: TrainConfig, step: int) -> float:
    shape = (config.min_lr_ratio, config.schedule, config.decay_share)
    return learning_rate(step, config.steps, config.warmup, config.peak_learning_rate, *shape)


def _update(run: _Run, rate: float, batch: Mapping[str, Any], step: int) -> tuple[UpdateLoss, float]:
    """One update of the weights.

    Returns:
        The loss over all ranks, and the gradient's norm before clipping.
    """
    job = run.job
    _check_ids(job, batch, step)
    found = accumulate_gradients(run.loss, batch, job.device, job.micro_batch_tokens)
    norm = float(gathered(torch.nn.utils.clip_grad_norm_(run.model.parameters(), job.config.grad_clip)))
    if not all(map(math.isfinite, (found.objective, norm))):
        raise UserError(
            f"update {step}: the loss is {found.objective} and the gradient's norm {norm}, which no further update can "
            f"repair; its rows{job.ranks.among} have the ids {_name_rows(batch)}. Look at these rows, or lower "
            "learning_rate or raise warmup_steps and train into another --out"
        )
    run.optimizer.step(rate)
    return found, norm


def _with_parts(batch: Mapping[str, Any], traps: TrapTokens | None) -> Mapping[str, Any]:
    """The batch with "parts", where something tells its tokens apart."""
    parts = token_parts(batch, traps)
    return batch if parts is None else {**batch, "parts": parts}


def _by_part(found: UpdateLoss) -> dict[str, Any]:
    """The fields that a PartStepRecord has besides those of a StepRecord."""
    entries: dict[str, Any] = {}
    for name, total, count in zip(PARTS, found.nats, found.targets, strict=True):
        entries |= {f"loss_{name}": total / count if count else None, f"targets_{name}": count}
    return entries


def _check_ids(job: Job, batch: Mapping[str, Any], step: int) -> None:
    largest = int(batch["input_ids"].max()) if len(batch["input_ids"]) else 0
    if largest >= job.model.vocab_size:
        raise UserError(
            f"update {step}: rows {_name_rows(batch)} hold the id {largest}, but the packed folder's vocabulary has "
            f"{job.model.vocab_size} ids; pack again with the tokenizer that made these ids"
        )


def _name_rows(batch: Mapping[str, Any]) -> str:
    rows = batch["row_ids"].tolist()
    return ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
