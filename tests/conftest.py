import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from seqmill.cli import main

# The first example compiles kernels, and other work on the machine takes time from any: no test is timed.
hypothesis.settings.register_profile("seqmill", deadline=None)
hypothesis.settings.load_profile("seqmill")

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "examples" / "corpus"

# A run of everything in seconds: real text in four formats, several units per stage, a model that trains a little.
SMALL_RUN = f"""
out = "run"
[ingest]
inputs = ["{CORPUS}/jargon.jsonl", "{CORPUS}/code.arrow", "{CORPUS}/udhr", "{CORPUS}/sotu.jsonl.gz"]
unit_bytes = 250000
[normalise]
unicode = "nfc"
[tokenizer]
vocab_size = 1024
[pack]
seq_len = 256
shard_tokens = 262144
[train]
model = "tiny"
steps = 12
batch_tokens = 512
checkpoint_every = 3
device = "cpu"
[generate]
prompts = ["The hacker", "import"]
max_new_tokens = 8
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one of several workers: what they compile and set up is then done once."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


@pytest.fixture(scope="session")
def small_config() -> str:
    return SMALL_RUN


@pytest.fixture
def small_run(tmp_path: Path, small_config: str) -> Path:
    """The configuration file of a small run of everything; its output goes to `run` in the working directory."""
    path = tmp_path / "small.toml"
    path.write_text(small_config)
    return path


@dataclass(frozen=True)
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


Seqmill = Callable[..., Done]


@pytest.fixture(scope="session")
def seqmill() -> Seqmill:
    """Run the command line in a folder; fails on an unexpected exit code.

    In this process: a fresh one takes seconds to import what it needs. The README's commands are run as a user would.
    """

    def call(*arguments: object, cwd: Path, code: int = 0) -> Done:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(cwd))
            stack.enter_context(contextlib.redirect_stdout(stdout))
            stack.enter_context(contextlib.redirect_stderr(stderr))
            patched = stack.enter_context(pytest.MonkeyPatch.context())
            patched.setattr(sys, "argv", ["seqmill", *map(str, arguments)])
            patched.setattr(logging.getLogger(), "handlers", [])  # the command line adds its own
            found: object = 0
            try:
                main()
            except SystemExit as ended:
                found = ended.code or 0
            finally:
                if ray := sys.modules.get("ray"):
                    ray.shutdown()  # as the end of a process of its own would
        done = Done(stdout.getvalue(), stderr.getvalue())
        assert found == code, f"{arguments} exited with {found}\n{done.stdout}\n{done.stderr}"
        return done

    return call


def files_of(run: Path) -> dict[str, bytes]:
    """Every output file of a run by name, without bookkeeping and clocks."""
    found: dict[str, bytes] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or "/.state/" in f"/{name}" or path.name == ".lock":
            continue
        found[name] = without_clock(path)
    return found


def without_clock(path: Path) -> bytes:
    """The file's bytes; reports and training logs without the fields that tell the time or the machine."""
    clocks = {"seconds", "machine", "resumed_from", "tokens_per_second", "mfu", "loader_wait", "peak_memory"}
    if path.name == "report.json":
        report = json.loads(path.read_text())
        report["train"] = {key: value for key, value in report.get("train", {}).items() if key not in clocks}
        return json.dumps({key: value for key, value in report.items() if key not in clocks}, sort_keys=True).encode()
    if path.name in ("log.jsonl", "eval.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([{k: v for k, v in line.items() if k not in clocks} for line in lines]).encode()
    return path.read_bytes()


@pytest.fixture(scope="session")
def files() -> Callable[[Path], dict[str, bytes]]:
    return files_of
