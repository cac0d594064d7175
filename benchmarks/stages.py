"""What an executor costs before any work.

Every figure is the best of three, after one warm-up.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

REPEATS = 3

Row = dict[str, object]


def run() -> dict[str, list[Row]]:
    """Rows of all cases; each is one system on one case."""
    with tempfile.TemporaryDirectory() as scratch:
        return {"rows": _executor_start(Path(scratch))}


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _executor_start(scratch: Path) -> list[Row]:
    """Wall seconds of `seqmill ingest` on one short file: what an executor costs before any work."""
    short = scratch / "short.jsonl"
    short.write_text('{"text": "one"}\n')
    rows: list[Row] = []
    for executor, system in (("local", "seqmill"), ("ray", f"seqmill on ray {version('ray')}")):

        def work(executor: str = executor) -> None:
            out = tempfile.mkdtemp(dir=scratch)
            command = [sys.executable, "-m", "seqmill", "ingest", str(short), "--out", out, "--executor", executor]
            subprocess.run([*command, "--workers", "1", "--quiet"], check=True, capture_output=True)

        value = round(_best_seconds(work), 2)
        rows.append({"case": "start and one empty stage", "system": system, "value": value, "unit": "s"})
        rows[-1]["higher_is_better"] = False
    return rows
