"""The logs of a run as TensorBoard shows them: OUT/tensorboard, for `tensorboard --logdir OUT`.

    train/loss, train/lr, ...             of log.jsonl, each number that a line has
    SET/loss, SET/bits_per_byte           of eval.jsonl, all documents of a set
    SET/bits_per_byte/SOURCE              those of one source
    samples/0, samples/1, ...             of samples.jsonl, as text

The lines of the logs count: a run that goes on after a kill tells TensorBoard to forget what it had shown of later
updates, and shows them again.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.models.training.runlog import EvaluationRecord, Record, SampleRecord, StepRecord

FOLDER = "tensorboard"
SECONDS_UNSAVED = 30  # a kill loses at most so much of what is shown, and nothing of the logs


class TensorBoard:
    """Shows every record it is told; open for the single writer of a run."""

    def __init__(self, out: Path, step: int) -> None:
        """Go on behind `step` updates, 0 at the beginning.

        Raises:
            UserError: the package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"showing a run in TensorBoard needs the package tensorboard ({error}): pip install "
                "'seqmill[tensorboard]', or leave TensorBoard out; log.jsonl has the same numbers"
            ) from error
        again_from = step + 1 if step else 0  # with 0, a look before the first update comes again too
        self._writer: Any = SummaryWriter(out / FOLDER, flush_secs=SECONDS_UNSAVED, purge_step=again_from)
        self._sampled = (-1, 0)  # update, samples of it shown so far

    def write(self, record: Record) -> None:
        """Show one record of `runlog`."""
        if isinstance(record, SampleRecord):
            number = self._sampled[1] if self._sampled[0] == record.step else 0
            self._sampled = record.step, number + 1
            text = "\n".join(f"    {line}" for line in f"{record.prompt}|{record.continuation}".splitlines())
            self._writer.add_text(f"samples/{number}", text, record.step)
            return
        for tag, value in _scalars(record):
            self._writer.add_scalar(tag, value, record.step)

    def close(self) -> None:
        """Put everything on disk."""
        self._writer.close()

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _scalars(record: StepRecord | EvaluationRecord) -> Iterator[tuple[str, float]]:
    """(tag, value) of every number of a record."""
    if isinstance(record, StepRecord):
        named = {f"train/{name}": value for name, value in asdict(record).items() if name != "step"}
    else:
        named = {f"{record.set}/{name}": getattr(record, name) for name in ("loss", "bits_per_byte")}
        for source, found in record.by_source.items():
            named |= {f"{record.set}/{name}/{source}": found[name] for name in ("loss", "bits_per_byte")}
    for tag, value in named.items():
        if value is not None:
            yield tag, value
