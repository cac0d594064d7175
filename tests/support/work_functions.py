"""Functions for work units in tests, in a module that worker processes can import by name."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.pipeline.execution import UnitResult
from seqmill.storage import atomic_path


def write_text(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write payload["text"] to a file, and leave a mark outside for every time it ran."""
    if payload.get("fail"):
        raise UserError("unit fails as asked")
    with (Path(payload["marks"]) / payload["name"]).open("a") as mark:
        mark.write(f"{os.getpid()}\n")
    with atomic_path(out / payload["name"]) as temporary:
        temporary.write_text(payload["text"])
    return UnitResult({payload["name"]: len(payload["text"])}, {"length": len(payload["text"])})


def die_once(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Kill the worker on the first try."""
    mark = Path(payload["marks"]) / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write_text(payload, out)


def wait_for_ever(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Say which process this is, and wait to be killed."""
    (Path(payload["marks"]) / payload["name"]).write_text(str(os.getpid()))
    time.sleep(600)
    return UnitResult({})
