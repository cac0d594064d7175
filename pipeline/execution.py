"""Work units: run what is missing, record what is done, publish a stage when it is whole.

A stage is a module-level function `work(payload, out) -> UnitResult` over a list of units. A unit is done when its
outputs and its record lie under their final names and the record's key equals the unit's: the key covers the stage,
its format version and everything the unit reads. So the same command run again redoes exactly what is missing or
out of date, on either executor, after a kill at any moment.

    out/part-00000.arrow          outputs of the units, written atomically
    out/manifest.json             written last, by the stage (seqmill.manifest)
    out/.state/part-00000.json    one record per unit
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from seqmill.manifest import MANIFEST, STATE_FOLDER, OutputFile
from seqmill.storage import (
    FORMAT_VERSION,
    LOCK,
    fingerprint,
    hash_file,
    only_writer,
    read_json,
    remove_temporary_files,
    write_json,
)

# Held while units run, besides the lock of the command on its whole output: a stage may also be called from Python, or
# its folder be a part of the output of another command.
UNITS_LOCK = f"{STATE_FOLDER}/{LOCK}"


@dataclass(frozen=True)
class Unit:
    """One piece of work, small enough to send to any worker: paths and settings, never documents."""

    name: str  # "part-00003": unique within the stage, and the stem of its output
    payload: Mapping[str, Any]  # JSON values; content hashes of what it reads are part of it


@dataclass(frozen=True)
class UnitResult:
    """What a unit's function returns: files already under their final names, and JSON statistics."""

    files: Mapping[str, int]  # name relative to the stage's folder -> rows
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """The proof that a unit is done, kept in `out/.state/UNIT.json`."""

    unit: str
    key: str
    files: tuple[OutputFile, ...]
    stats: Mapping[str, Any]


WorkFunction = Callable[[Mapping[str, Any], Path], UnitResult]


class Executor(Protocol):
    """Runs `call(argument)` for every argument, in any order and anywhere that sees the same files."""

    def run(self, call: Callable[[Any], Record], arguments: Sequence[Any]) -> Iterable[Record]:
        """Yield the results as they come; an exception of a call ends the iteration with that exception."""
        ...

    def close(self) -> None:
        """Let go of the memory of idle workers; `run` gets new ones."""
        ...


class Progress(Protocol):
    """Is told how far a stage is; the command line draws a bar from it."""

    def start(self, stage: str, units: int) -> None:
        """A stage begins with `units` units, those already done included."""
        ...

    def advance(self) -> None:
        """A unit is done, now or in an earlier run."""
        ...

    def skip(self, units: int) -> None:
        """So many units were done by an earlier run: they say nothing about the rate."""
        ...

    def tell(self, news: str) -> None:
        """What is known of the stage's results by now, in a few words; shown with the next unit."""
        ...

    def finish(self) -> None:
        """The stage is whole."""
        ...


@dataclass(frozen=True)
class Task:
    """A unit bound to its function and folder: what travels to a worker."""

    work: WorkFunction
    unit: Unit
    key: str
    out: str


def perform(task: Task) -> Record:
    """Run one unit and leave its record: the outputs first, the record last."""
    out = Path(task.out)
    result = task.work(task.unit.payload, out)
    record = Record(
        unit=task.unit.name,
        key=task.key,
        files=tuple(OutputFile.of(out, name, rows) for name, rows in sorted(result.files.items())),
        stats=dict(result.stats),
    )
    write_json(_record_path(out, task.unit.name), asdict(record))
    return record


def run_units(
    stage: str, work: WorkFunction, units: Sequence[Unit], out: Path, executor: Executor, progress: Progress
) -> list[Record]:
    """Make every unit of a stage done and return their records in the order of `units`.

    Args:
        stage: the name shown to the user and mixed into every unit's key.
        work: a module-level function (workers import it by name).
        out: the stage's folder.

    Raises:
        UserError: whatever a unit raised as such; units done so far stay done. Or another process runs units in `out`.
    """
    with only_writer(out, UNITS_LOCK):
        return _run_missing(stage, work, units, out, executor, progress)


def _run_missing(
    stage: str, work: WorkFunction, units: Sequence[Unit], out: Path, executor: Executor, progress: Progress
) -> list[Record]:
    progress.start(stage, len(units))
    published = _published_hashes(out)
    done: dict[str, Record] = {}
    missing: list[Task] = []
    for unit in units:
        key = _key(stage, unit)
        record = _finished(out, unit.name, key, published)
        if record:
            done[unit.name] = record
            progress.advance()
        else:
            missing.append(Task(work, unit, key, str(out)))
    if missing:
        (out / MANIFEST).unlink(missing_ok=True)  # the folder is not what it says any more
    try:
        for record in executor.run(perform, missing):
            done[record.unit] = record
            progress.advance()
    finally:
        progress.finish()
    return [done[unit.name] for unit in units]


def all_done(stage: str, units: Sequence[Unit], out: Path) -> bool:
    """Whether `run_units` would find nothing to do: then files that only these units read need not exist any more."""
    published = _published_hashes(out)
    return all(_finished(out, unit.name, _key(stage, unit), published) for unit in units)


def file_reference(folder: Path, file: OutputFile) -> dict[str, Any]:
    """How a payload names a file it reads: the path to open, and the hash that makes the unit's key depend on it."""
    return {"path": str(folder / file.name), "xxh3_128": file.xxh3_128}


def part_references(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Part name ("part-00003") -> reference, for every part that a folder's manifest lists."""
    return {Path(file["name"]).stem: file_reference(folder, OutputFile(**file)) for file in manifest["files"]}


def prepare_folder(out: Path) -> None:
    """Create a stage's folder and clear what a killed writer left in it.

    Raises:
        UserError: another process runs units in `out`, so that its temporary files are no leftovers.
    """
    with only_writer(out, UNITS_LOCK):
        remove_temporary_files(out)


def _key(stage: str, unit: Unit) -> str:
    return fingerprint([FORMAT_VERSION, stage, unit.name, unit.payload])


def _record_path(out: Path, unit: str) -> Path:
    return out / STATE_FOLDER / f"{unit}.json"


def _published_hashes(out: Path) -> dict[str, str]:
    """File name -> hash, as the folder's manifest lists them; empty while the stage is unfinished."""
    if not (out / MANIFEST).is_file():
        return {}
    return {file["name"]: file["xxh3_128"] for file in read_json(out / MANIFEST)["files"]}


def _finished(out: Path, unit: str, key: str, published: Mapping[str, str]) -> Record | None:
    """The unit's record if it has this key and its files are there as recorded.

    Files of a published stage are checked by size alone, so that a finished run of any size is recognised at once;
    those of an interrupted stage are read and hashed.
    """
    path = _record_path(out, unit)
    if not path.is_file():
        return None
    stored = read_json(path)
    if stored["key"] != key:
        return None
    files = tuple(OutputFile(**file) for file in stored["files"])
    for file in files:
        shard = out / file.name
        if not shard.is_file() or shard.stat().st_size != file.bytes:
            return None
        if published.get(file.name) != file.xxh3_128 and hash_file(shard) != file.xxh3_128:
            return None
    return Record(unit=unit, key=key, files=files, stats=stored["stats"])
