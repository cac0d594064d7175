"""The logs of a training run, one JSON object a line.

    log.jsonl       one line per update, each update once
    eval.jsonl      one line per look at a set of held-out documents
    samples.jsonl   one line per text that the model wrote

A run that goes on after a kill writes all lines behind its checkpoint again, the same ones but for `CLOCKS`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from seqmill.storage import atomic_path

if TYPE_CHECKING:
    from seqmill.models.evaluation.source_loss import Losses

LOG, EVALUATIONS, SAMPLES = "log.jsonl", "eval.jsonl", "samples.jsonl"

# Fields that depend on the machine, the moment and the number of ranks; all others are the same in every repetition.
CLOCKS = frozenset({"seconds", "tokens_per_second", "mfu", "padding_share", "loader_wait", "peak_memory"})


@dataclass(frozen=True)
class StepRecord:
    """One line of the log."""

    step: int  # counted from 1
    loss: float  # nats per target token of this update, all targets alike, whatever is minimised
    tokens: int  # targets of all updates up to this one
    seconds: float  # since this process began training
    lr: float  # of this update
    grad_norm: float  # global, before clipping
    objective: float | None = field(default=None, kw_only=True)  # what is minimised: weighted, with z-loss
    tokens_per_second: float | None = field(default=None, kw_only=True)  # this and the rest: see meter.Rates
    mfu: float | None = field(default=None, kw_only=True)
    padding_share: float | None = field(default=None, kw_only=True)
    loader_wait: float | None = field(default=None, kw_only=True)
    peak_memory: int | None = field(default=None, kw_only=True)
    expert_imbalance: float | None = field(default=None, kw_only=True)  # busiest expert's tokens / mean, worst layer


@dataclass(frozen=True)
class PartStepRecord(StepRecord):
    """One line of the log of a run on rows with a column is_repeat, or with known copies of traps.

    loss * (sum of targets_*) == sum of loss_* * targets_*, but for rounding: `loss` is the mean over all parts.
    """

    loss_unique: float | None  # nats per target outside repeats and traps; None where the update has none
    loss_repeat: float | None  # in repeated documents
    loss_trap: float | None  # in copies of traps
    targets_unique: int  # of this update
    targets_repeat: int
    targets_trap: int


@dataclass(frozen=True)
class EvaluationRecord:
    """One line of eval.jsonl."""

    step: int  # updates done
    set: str  # which documents: "holdout", "traps"
    tokens: int  # targets of all updates up to this one
    seconds: float  # since this process began training
    loss: float | None  # nats per target of all documents; None without targets
    bits_per_byte: float | None  # of all documents, each token charged (evaluation); None without bytes
    by_source: Mapping[str, Mapping[str, float | int | None]]  # the same two, and documents, targets and bytes

    @classmethod
    def of(cls, step: int, name: str, tokens: int, seconds: float, losses: "Losses") -> "EvaluationRecord":
        """The record of an evaluation; sources without documents are left out."""
        from seqmill.models.evaluation.source_loss import total

        by_source = {
            source: {
                "loss": found.loss,
                "bits_per_byte": found.bits_per_byte,
                "documents": found.documents,
                "targets": found.targets,
                "bytes": found.bytes,
            }
            for source, found in losses.items()
            if found.documents
        }
        overall = total(losses)
        return cls(step, name, tokens, seconds, overall.loss, overall.bits_per_byte, by_source)


@dataclass(frozen=True)
class SampleRecord:
    """One line of samples.jsonl."""

    step: int  # updates done
    prompt: str
    continuation: str


Record = StepRecord | EvaluationRecord | SampleRecord
_FILES: Mapping[type, str] = MappingProxyType({StepRecord: LOG, EvaluationRecord: EVALUATIONS, SampleRecord: SAMPLES})


class RunLog:
    """The logs of a run, open for its single writer. Evaluations and samples make their file when there are any."""

    def __init__(self, out: Path, step: int) -> None:
        """Go on behind `step` updates: later lines go, and with 0 all do, a look before the first update too."""
        self._out = out
        self._open: dict[str, BinaryIO] = {}
        out.mkdir(parents=True, exist_ok=True)
        for name in _FILES.values():
            cut_log(out / name, step or -1)

    def write(self, record: Record) -> None:
        """Append a record to its file, whole and at once, for those who follow it."""
        name = next(name for kind, name in _FILES.items() if isinstance(record, kind))
        if name not in self._open:
            self._open[name] = (self._out / name).open("ab")
        self._open[name].write(format_record(record))
        self._open[name].flush()

    def sync(self) -> None:
        """Put all lines on disk; call this before a checkpoint, so that it never knows of more than they do."""
        for file in self._open.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def looked_at(out: Path, step: int) -> set[str]:
    """What the logs of a run tell of a look at the model after `step` updates: sets of documents, and "samples"."""
    evaluations = {line["set"] for line in _lines(out / EVALUATIONS) if line["step"] == step}
    return evaluations | {"samples" for line in _lines(out / SAMPLES) if line["step"] == step}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def format_record(record: Record) -> bytes:
    """`record` as a line of its log."""
    return json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n"


def without_clocks(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a log without the fields that tell the time or the machine."""
    return {name: value for name, value in line.items() if name not in CLOCKS}


def cut_log(path: Path, step: int) -> None:
    """Keep the lines of updates 1 to `step`; a killed run's lines after its last checkpoint will be written again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except ValueError:  # a machine that lost power may leave rubbish behind the last checkpoint
            break
        kept.append(line)
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(kept))
