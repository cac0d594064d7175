"""Other projects, each in an environment of its own, made on demand from benchmarks/peers/NAME.txt.

Environments lie in the folder that SEQMILL_PEERS names, or in the user's cache folder. Nothing here pretends: a peer
that cannot be installed or run raises PeerError, and the benchmark says so in place of its rows.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .processes import Cost, ProcessError, run_on_all_cores, run_on_one_core

DRIVERS = Path(__file__).parents[1] / "peers"
FOLDER = "SEQMILL_PEERS"
INSTALLED = "installed"  # written last, so that a killed installation is made again

OURS = "seqmill"
PEERS = ("datatrove", "text-dedup", "datasketch", "rensa")
TOKENIZERS = ("gigatoken", "tokenizers", "tiktoken", "sentencepiece")
PACKERS = ("trl", "lightbinpack")
LOADERS = ("litdata", "mosaicml-streaming", "datasets")
DECODERS = ("transformers",)
TRAINERS = ("transformers",)
GENERATORS = ("transformers",)
OUR_OWN = (
    "gigatoken",
    "tokenizers",
    "python",
    "datasets",
    "transformers",
)  # what this project depends on runs in its environment


class PeerError(Exception):
    """A peer cannot be installed or run, and why."""


@dataclass(frozen=True)
class Answer:
    """What a driver said, what it cost, and where its other files lie."""

    result: dict[str, Any]
    cost: Cost
    folder: Path

    def clusters(self) -> dict[str, str]:
        """Document id -> cluster, after a `dedup` task; documents that are alone in theirs may be missing."""
        with (self.folder / "clusters.jsonl").open(encoding="utf-8") as lines:
            return dict(json.loads(line) for line in lines)


@dataclass(frozen=True)
class System:
    """One implementation behind benchmarks/peers/TASKS_NAME.py; the tasks are told by protocol.py, tokens.py,
    sequences.py, batches.py, steps.py, updates.py and prompts.py."""

    name: str
    python: Path
    tasks: str = (
        "run"  # of deduplication; "encode", "plan", "read", "step", "train", "prefill": of the kinds of systems above
    )
    one_core: bool = True  # whether threads are held to one

    def ask(self, folder: Path, task: str, *arguments: object) -> Answer:
        """Run one task in the new folder `folder`.

        Raises:
            PeerError: the driver failed.
        """
        folder.mkdir(parents=True)
        driver = DRIVERS / f"{self.tasks}_{self.name.replace('-', '')}.py"
        run = run_on_one_core if self.one_core else run_on_all_cores
        try:
            cost = run([str(self.python), str(driver), task, str(folder), *map(str, arguments)])
        except ProcessError as error:
            raise PeerError(f"{self.name} {task}: {error}") from error
        return Answer(json.loads((folder / "result.json").read_text()), cost, folder)

    def label(self, version: str, variant: str) -> str:
        """How rows call a way of it; this project has no version of its own there."""
        return self.name if self.name == OURS else f"{self.name} {version} {variant}".strip()


def ours() -> System:
    """This project, driven as its peers are."""
    return System(OURS, Path(sys.executable))


def system_of(name: str, tasks: str) -> System:
    """This project or a peer, for tasks of one kind.

    Raises:
        PeerError: it cannot be installed.
    """
    return replace(ours() if name == OURS else installed(name), tasks=tasks)


def described(
    names: Sequence[str], tasks: str, scratch: Path, notes: list[str]
) -> Iterator[tuple[System, dict[str, Any]]]:
    """Each system that is there, and what its driver says of itself; one that is not becomes a note."""
    for name in dict.fromkeys(names):
        try:
            system = system_of(name, tasks)
            told = system.ask(scratch / f"describe-{name}", "describe").result
        except PeerError as error:
            notes.append(str(error))
            continue
        yield system, told


def installed(name: str) -> System:
    """A peer, installed now if it is not yet.

    Raises:
        PeerError: pip or venv failed.
    """
    if name in OUR_OWN:
        return System(name, Path(sys.executable))
    requirements = DRIVERS / f"{name}.txt"
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = environments() / f"{name}-{key}"
    python = folder / "bin" / "python"
    if not (folder / INSTALLED).exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run(name, sys.executable, "-m", "venv", str(folder))
        _run(name, str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements))
        (folder / INSTALLED).touch()
    return System(name, python)


def environments() -> Path:
    """Where the environments of peers are kept between runs."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER]).absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "seqmill" / "peers"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqmill" / "peers"


def _run(name: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise PeerError(f"{name} cannot be installed: {lines[-1] if lines else f'exit code {done.returncode}'}")
