"""How the dedup stage runs its phases: the same units again and again, over parts or over ranges of keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqmill.pipeline.dedup.exchange import count_ranges
from seqmill.pipeline.dedup.index import Part
from seqmill.pipeline.execution import Executor, Progress, Record, Unit, WorkFunction, file_reference, run_units

References = list[dict[str, Any]]


@dataclass(frozen=True)
class Phases:
    """Where phases run and what they may use."""

    state: Path  # the stage's folder for what is not part of its output
    memory: int  # bytes that a unit may plan with
    executor: Executor
    progress: Progress

    def run(
        self, name: str, work: WorkFunction, payloads: Mapping[str, Any], folder: Path | None = None
    ) -> list[Record]:
        """Make the units done, unit name -> payload, and return their records in that order."""
        units = [Unit(unit, payload) for unit, payload in payloads.items()]
        return run_units(f"dedup {name}", work, units, folder or self.state, self.executor, self.progress)

    def over_parts(
        self,
        name: str,
        work: WorkFunction,
        parts: Sequence[Part],
        folder: Path,
        shared: Mapping[str, Any],
        own: Sequence[Mapping[str, Any]] = (),
    ) -> list[Record]:
        """One unit a part; `own` adds what each part's unit alone is told."""
        each = own or [{}] * len(parts)
        told = {part.name: {**part.payload, **shared, **more} for part, more in zip(parts, each, strict=True)}
        return self.run(name, work, told, folder)

    def over_ranges(
        self, name: str, work: WorkFunction, files: References, row_bytes: int, shared: Mapping[str, Any]
    ) -> list[Record]:
        """One unit a range of keys, as many ranges as keep one within the memory."""
        ranges = count_ranges(sum(file["rows"] for file in files), row_bytes, self.memory)
        units = {f"{name}-{k:05d}": {"range": k, "ranges": ranges, "files": files, **shared} for k in range(ranges)}
        return self.run(name, work, {unit: {"name": unit, **payload} for unit, payload in units.items()})


def files_of(records: Sequence[Record], folder: Path) -> References:
    """References to all files of the records, in order."""
    return [{**file_reference(folder, file), "rows": file.rows} for record in records for file in record.files]
