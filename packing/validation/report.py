"""What a validation found: violations, each named with its file and its first row."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Violation:
    """One invariant that does not hold in one file."""

    invariant: str  # "I1" to "I10", or a word: see `seqmill.packing.validation`
    file: str  # name of the shard, or of the manifest
    row: int | None  # number of the first such row in the whole dataset, where it is about rows
    count: int  # rows (I4, I5: segments) that violate it
    detail: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{self.invariant}: {where}: {self.detail} ({self.count} in this file)"


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` looked at and found."""

    folder: str
    files: int  # listed in the manifest
    rows: int  # checked
    tokens: int  # checked
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return not self.violations

    def __str__(self) -> str:
        head = f"{self.folder}: {self.files} files, {self.rows} rows, {self.tokens} tokens: "
        return head + ("valid" if self.ok else "\n".join(["INVALID", *map(str, self.violations)]))


class Findings:
    """Violations in the order in which they are met, at most one for each invariant and file."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Violation] = {}

    def add(self, violation: Violation) -> None:
        """Note a violation, or count it with an earlier one of the same invariant in the same file."""
        key = violation.invariant, violation.file
        earlier = self._found.get(key)
        self._found[key] = replace(earlier, count=earlier.count + violation.count) if earlier else violation

    def extend(self, violations: Iterable[Violation]) -> None:
        """Note violations one by one, also where some are of the same invariant and file."""
        for number, violation in enumerate(violations, len(self._found)):
            self._found[violation.invariant, f"{violation.file}:{number}"] = violation

    def rows(self, invariant: str, file: str, first_row: int, wrong: npt.NDArray[np.bool_], detail: str) -> None:
        """Note the rows where `wrong`, bool[rows] from row `first_row` on, is True; nothing where none is."""
        count = int(np.count_nonzero(wrong))
        if count:
            self.add(Violation(invariant, file, first_row + int(np.argmax(wrong)), count, detail))

    def has(self, invariant: str, file: str) -> bool:
        """Whether such a violation has been added."""
        return (invariant, file) in self._found

    @property
    def violations(self) -> tuple[Violation, ...]:
        """All of them."""
        return tuple(self._found.values())
