"""The log of a training run: `log.jsonl`, one JSON object per update, each update once."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from seqmill.storage import atomic_path

LOG = "log.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One line of the log."""

    step: int  # counted from 1
    loss: float  # nats per target token of this update, weighted as the normalisation says
    tokens: int  # targets of all updates up to this one
    seconds: float  # since this process began training
    lr: float  # of this update
    grad_norm: float  # global, before clipping


@dataclass(frozen=True)
class RepeatStepRecord(StepRecord):
    """One line of the log of a run on rows with a column is_repeat.

    loss * (targets_repeat + targets_unique) == loss_repeat * targets_repeat + loss_unique * targets_unique, but for
    rounding, where the normalisation is token-mean; `loss` is then the mean over both.
    """

    loss_repeat: float | None  # nats per target in repeated documents; None where the update has none
    loss_unique: float | None  # nats per target in all others
    targets_repeat: int  # of this update
    targets_unique: int


def format_record(record: StepRecord) -> bytes:
    """`record` as a line of the log."""
    return json.dumps(asdict(record)).encode() + b"\n"


class RunLog:
    """The log of a run, open for further lines; nothing is written where there is no folder."""

    def __init__(self, out: Path | None) -> None:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        self._file = None if out is None else (out / LOG).open("ab")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, record: StepRecord) -> None:
        """Append a line, for others to read."""
        if self._file is not None:
            self._file.write(format_record(record))
            self._file.flush()

    def sync(self) -> None:
        """Have all lines on disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())


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
