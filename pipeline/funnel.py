"""What came in, what went out and why the rest did not: counts that add up exactly, in documents and in bytes.

    documents_in = documents_out + sum of reasons[*].documents
    bytes_in     = bytes_out     + sum of reasons[*].bytes

A count is {"documents": int, "bytes": int}. An entry is one line of a manifest's "funnel": a stage, what entered, what
left, and a count per reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNITS = ("documents", "bytes")


def add_counts(total: dict[str, int], count: Mapping[str, int]) -> None:
    """Add `count` to `total` in place; an empty `total` stands for zero."""
    for unit in UNITS:
        total[unit] = total.get(unit, 0) + count[unit]


def funnel_entry(stage: str, entered: Mapping[str, int], reasons: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The entry of a stage which loses nothing but what `reasons` count."""
    left = {unit: entered[unit] - sum(count[unit] for count in reasons.values()) for unit in UNITS}
    return {
        "stage": stage,
        **{f"{unit}_in": entered[unit] for unit in UNITS},
        **{f"{unit}_out": left[unit] for unit in UNITS},
        "reasons": {reason: dict(reasons[reason]) for reason in sorted(reasons)},
    }


def check_funnel(entries: Sequence[Mapping[str, Any]]) -> None:
    """Assert that every entry adds up, loses no more than it has, and receives what the one before it let out."""
    for index, entry in enumerate(entries):
        for unit in UNITS:
            lost = sum(count[unit] for count in entry["reasons"].values())
            assert entry[f"{unit}_in"] == entry[f"{unit}_out"] + lost, entry
            assert entry[f"{unit}_out"] >= 0, entry
            assert index == 0 or entry[f"{unit}_in"] == entries[index - 1][f"{unit}_out"], entries[
                index - 1 : index + 1
            ]


def merge_entries(stage: str, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One entry for the units of a stage: the sum of theirs."""
    entered: dict[str, int] = dict.fromkeys(UNITS, 0)
    reasons: dict[str, dict[str, int]] = {}
    for entry in entries:
        add_counts(entered, {unit: entry[f"{unit}_in"] for unit in UNITS})
        for reason, count in entry["reasons"].items():
            add_counts(reasons.setdefault(reason, {}), count)
    return funnel_entry(stage, entered, reasons)


@dataclass
class Funnel:
    """Counts of a stage while it reads. What left is counted apart from what was lost, so that `entry` can compare."""

    stage: str  # "ingest", "normalise", ...
    entered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UNITS, 0))
    left: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UNITS, 0))
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)

    def enter(self, documents: int, bytes_: int) -> None:
        """Count what enters the stage."""
        add_counts(self.entered, {"documents": documents, "bytes": bytes_})

    def leave(self, documents: int, bytes_: int) -> None:
        """Count what leaves it for the next."""
        add_counts(self.left, {"documents": documents, "bytes": bytes_})

    def lose(self, reason: str, documents: int, bytes_: int) -> None:
        """Count what does not leave; nothing is recorded when both numbers are 0."""
        if documents or bytes_:
            add_counts(self.reasons.setdefault(reason, {}), {"documents": documents, "bytes": bytes_})

    def entry(self) -> dict[str, Any]:
        """The counts as an entry, after checking that they add up."""
        entry = funnel_entry(self.stage, self.entered, self.reasons)
        assert all(entry[f"{unit}_out"] == self.left[unit] for unit in UNITS), (entry, self.left)
        return entry
