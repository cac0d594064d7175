"""What an executor costs before any work.

Every figure is the best of three, after one warm-up.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from .support.rows import Row, row
from .support.timing import best_seconds


def run() -> dict[str, list[Row]]:
    """Rows of all cases; each is one system on one case."""
    with tempfile.TemporaryDirectory() as scratch:
        return {"rows": _executor_start(Path(scratch))}


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

        rows.append(row("start and one empty stage", system, round(best_seconds(work), 2), "s", False))
    return rows
