"""How far a run is, on stderr: bars with rate and time left on a terminal, plain lines elsewhere, or nothing."""

import sys
import time

from seqmill.pipeline.execution import Progress

SECONDS_BETWEEN_LINES = 5.0


class Silent:
    """Shows nothing."""

    def start(self, stage: str, units: int) -> None:
        """See `Progress.start`."""

    def advance(self) -> None:
        """See `Progress.advance`."""

    def finish(self) -> None:
        """See `Progress.finish`."""


class Lines:
    """One line when a stage ends, and one every few seconds while it lasts: for logs and pipes."""

    def start(self, stage: str, units: int) -> None:
        """See `Progress.start`."""
        self._stage, self._units, self._done = stage, units, 0
        self._began = self._spoke = time.monotonic()

    def advance(self) -> None:
        """See `Progress.advance`."""
        self._done += 1
        if time.monotonic() - self._spoke >= SECONDS_BETWEEN_LINES:
            self._say()

    def finish(self) -> None:
        """See `Progress.finish`."""
        self._say()

    def _say(self) -> None:
        self._spoke = time.monotonic()
        elapsed = self._spoke - self._began
        left = elapsed / self._done * (self._units - self._done) if self._done else 0.0
        rest = f", {left:.0f} s left" if self._done < self._units else ""
        print(f"{self._stage}: {self._done}/{self._units} in {elapsed:.1f} s{rest}", file=sys.stderr, flush=True)


class Bars:
    """A rich progress bar per stage, with rate and time left."""

    def start(self, stage: str, units: int) -> None:
        """See `Progress.start`."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.progress import Task as RichTask
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: RichTask) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:.1f}/s" if speed else "", style="dim")

        name = TextColumn("{task.description:<16}")
        columns = (name, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(elapsed_when_finished=True))
        self._bars = RichProgress(*columns, console=Console(stderr=True))
        self._bars.start()
        self._task = self._bars.add_task(stage, total=units)

    def advance(self) -> None:
        """See `Progress.advance`."""
        self._bars.advance(self._task)

    def finish(self) -> None:
        """See `Progress.finish`."""
        self._bars.stop()


def make_progress(quiet: bool) -> Progress:
    """The display that suits stderr: bars on a terminal, lines elsewhere, nothing when `quiet`."""
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()
