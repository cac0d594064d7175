"""Run a command and tell what it cost: wall and CPU seconds, and the most memory its process tree held at once."""

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.05

# One core: libraries that would start a thread per core are told not to.
THREADS = ("OMP", "OPENBLAS", "MKL", "RAYON", "NUMBA")
ONE_CORE = {f"{library}_NUM_THREADS": "1" for library in THREADS}
NOTHING: Mapping[str, str] = {}
NO_NEIGHBOURS = "PYTHONSAFEPATH"  # a script that is run with it cannot import the files beside it, as drivers do


class ProcessError(Exception):
    """A command failed; the message is the last line it wrote."""


@dataclass(frozen=True)
class Cost:
    """What a finished command took."""

    cpu_seconds: float  # user and system, of the command and all it waited for
    peak_bytes: int | None  # largest sum of resident memory over the tree, looked at 20 times a second; None: no /proc


def run_on_one_core(command: Sequence[str]) -> Cost:
    """Run `command` with threads held to one; see `run_on_all_cores`."""
    return run_on_all_cores(command, ONE_CORE)


def run_on_all_cores(command: Sequence[str], environment: Mapping[str, str] = NOTHING) -> Cost:
    """Run `command` with as many threads as it starts by itself.

    Raises:
        ProcessError: it exited with another code than 0.
    """
    inherited = {name: value for name, value in os.environ.items() if name != NO_NEIGHBOURS}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env={**inherited, **environment}, stdout=output, stderr=subprocess.STDOUT)
        ended = threading.Event()
        peaks = [0]
        watch = threading.Thread(target=_watch, args=(process.pid, ended, peaks))
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        ended.set()
        watch.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise ProcessError(lines[-1].strip() if lines else f"exit code {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, peaks[0] or None)


def _watch(root: int, ended: threading.Event, peaks: list[int]) -> None:
    while not ended.wait(SECONDS_BETWEEN_LOOKS):
        peaks[0] = max(peaks[0], sum(_resident_bytes(pid) for pid in _tree(root)))


def _tree(pid: int) -> Iterator[int]:
    """`pid` and its descendants."""
    yield pid
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _tree(int(child))
    except OSError:  # it has ended meanwhile
        return


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
