"""What a run tells while it trains: its logs, TensorBoard, and whoever watches. The first rank tells for all."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from seqmill.models.training.runlog import Record, RunLog
from seqmill.models.training.tensorboard import TensorBoard

Listener = Callable[[Record], None]


class Journal:
    """Takes every record of a run."""

    def __init__(self, out: Path, step: int, tensorboard: bool, listener: Listener | None) -> None:
        """Go on behind `step` updates.

        Args:
            listener: is told every record, once the update that it belongs to is all done.

        Raises:
            UserError: TensorBoard is asked for and not installed.
        """
        self._open = contextlib.ExitStack()
        self._log = self._open.enter_context(RunLog(out, step))
        self._board = self._open.enter_context(TensorBoard(out, step)) if tensorboard else None
        self._listener = listener
        self._untold: list[Record] = []

    def write(self, record: Record) -> None:
        """Keep it."""
        self._log.write(record)
        if self._board is not None:
            self._board.write(record)
        self._untold.append(record)

    def tell(self) -> None:
        """Tell whoever watches what was written since the last time."""
        told, self._untold = self._untold, []
        if self._listener is not None:
            for record in told:
                self._listener(record)

    def sync(self) -> None:
        """Have all lines on disk: a checkpoint's updates are in the logs, whatever happens next."""
        self._log.sync()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()


class Silence(Journal):
    """For ranks that leave it to the first one."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()

    def write(self, record: Record) -> None:
        """Tell nobody."""

    def tell(self) -> None:
        """Nothing was written."""

    def sync(self) -> None:
        """Nothing is to be written."""
