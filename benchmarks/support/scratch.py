"""What the cases of a benchmark share."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Scratch:
    """A scratch folder, and notes that say what is missing and why."""

    scratch: Path
    notes: list[str] = field(default_factory=list, kw_only=True)
    runs: int = field(default=0, kw_only=True)

    def folder(self) -> Path:
        """A new name in the scratch folder."""
        self.runs += 1
        return self.scratch / f"run-{self.runs}"
