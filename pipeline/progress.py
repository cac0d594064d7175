"""How far a run is, on stderr: bars with rate and time left on a terminal, plain lines elsewhere, or nothing."""

import sys
import time
from typing import TYPE_CHECKING

from seqmill.pipeline.execution import Progress

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 5.0


class Silent:
    """Shows nothing."""

    def start(self, stage: str, units: int) -> None:
        """See `Progress.start`."""

    def advance(self) -> None:
        """See `Progress.advance`."""

    def skip(self, units: int) -> None:
        """See `Progress.skip`."""

    def tell(self, news: str) -> None:
        """See `Progress.tell`."""

    def finish(self) -> None:
        """See `Progress.finish`."""


class Lines:
    """One line when a stage ends, and one every few seconds while it lasts: for logs and pipes."""

    def start(self, stage: str, units: int) -> None:
        """See `Progress.start`."""
        self._stage, self._units, self._done, self._skipped, self._news = stage, units, 0, 0, ""
        self._began = self._spoke = time.monotonic()

    def advance(self) -> None:
        """See `Progress.advance`."""
        self._done += 1
        if time.monotonic() - self._spoke >= SECONDS_BETWEEN_LINES:
            self._say()

    def skip(self, units: int) -> None:
        """See `Progress.skip`."""
        self._done += units
        self._skipped += units

    def tell(self, news: str) -> None:
        """See `Progress.tell`."""
        self._news = f", {news}"

    def finish(self) -> None:
        """See `Progress.finish`."""
        self._say()

    def _say(self) -> None:
        self._spoke = time.monotonic()
        elapsed, own = self._spoke - self._began, self._done - self._skipped
        left = elapsed / own * (self._units - self._done) if own else 0.0
        rest = f", {left:.0f} s left" if self._done < self._units else ""
        line = f"{self._stage}: {self._done}/{self._units} in {elapsed:.1f} s{rest}{self._news}"
        print(line, file=sys.stderr, flush=True)


class Bars:
    """A rich progress bar per stage, with rate and time left, and the news behind it."""

    def __init__(self, console: "Console | None" = None) -> None:
        """Show on `console`; None: on stderr."""
        self._console = console

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

        name, news = TextColumn("{task.description:<16}"), TextColumn("{task.fields[news]}", markup=False)
        left = TimeRemainingColumn(elapsed_when_finished=True)
        columns = (name, BarColumn(), MofNCompleteColumn(), Rate(), left, news)
        self._bars = RichProgress(*columns, console=self._console or Console(stderr=True))
        self._bars.start()
        self._task = self._bars.add_task(stage, total=units, news="")

    def advance(self) -> None:
        """See `Progress.advance`."""
        self._bars.advance(self._task)

    def skip(self, units: int) -> None:
        """See `Progress.skip`."""
        done = self._bars.tasks[self._task].completed + units
        self._bars.reset(self._task, completed=int(done))  # which starts the clock of the rate

    def tell(self, news: str) -> None:
        """See `Progress.tell`."""
        self._bars.update(self._task, news=news)

    def finish(self) -> None:
        """See `Progress.finish`."""
        self._bars.stop()


def make_progress(quiet: bool) -> Progress:
    """The display that suits stderr: bars on a terminal, lines elsewhere, nothing when `quiet`."""
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()
