"""Records that cannot be read: counted exactly by reason, and a sample of them kept for a human to look at.

out/quarantine/part-00003.jsonl    one JSON object a line:
    file    name of the source, as in the manifest
    row     index of the record in its file, from 0: the low 40 bits of the doc_id it would have had
    line    row + 1: the line number of a JSON Lines file
    offset  first byte of the record in its (decompressed) file; left out where it is not known
    reason  one of a few fixed texts
    detail  further particulars; left out where there are none
    sample  the first 200 characters, undecodable bytes as backslash escapes
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from seqmill.storage import atomic_path

FOLDER = "quarantine"
SAMPLE_CHARACTERS = 200
_LONGEST_CHARACTER = 4  # bytes of UTF-8


class Quarantine:
    """Collects the bad records of one unit, in the order in which they are read."""

    def __init__(self, limit: int) -> None:
        """`limit`: how many records are kept; the counts cover all of them."""
        self.limit = limit
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.blank_lines = 0  # no records, so never bad; reported because they take part in numbering
        self.damaged: list[dict[str, str]] = []  # sources of which an unknown amount is lost
        self._first: dict[str, dict[str, Any]] = {}
        self._kept: list[bytes] = []

    def add(
        self, file: str, row: int, reason: str, raw: bytes, *, offset: int | None = None, detail: str | None = None
    ) -> None:
        """Count the record `raw` of `file` as bad, and keep a sample while there is room."""
        self.documents[reason] += 1
        self.bytes[reason] += len(raw)
        if reason not in self._first:
            self._first[reason] = {"file": file, "line": row + 1}
        if len(self._kept) >= self.limit:
            return
        sample = raw[: SAMPLE_CHARACTERS * _LONGEST_CHARACTER].decode("utf-8", "backslashreplace")
        entry = {"file": file, "row": row, "line": row + 1, "offset": offset, "reason": reason, "detail": detail}
        known = {key: value for key, value in entry.items() if value is not None}
        self._kept.append(orjson.dumps({**known, "sample": sample[:SAMPLE_CHARACTERS]}))

    def add_damage(
        self, file: str, row: int, reason: str, raw: bytes, *, offset: int | None = None, detail: str
    ) -> None:
        """Count damage to a whole source as one bad record: how many records it cost cannot be known."""
        self.add(file, row, reason, raw, offset=offset, detail=detail)
        self.damaged.append({"file": file, "reason": reason, "detail": detail})

    def stats(self) -> dict[str, Any]:
        """The counts as JSON; see `merge_stats`."""
        reasons = {
            reason: {"documents": count, "bytes": self.bytes[reason], "first": self._first[reason]}
            for reason, count in sorted(self.documents.items())
        }
        return {
            "documents": self.documents.total(),
            "bytes": self.bytes.total(),
            "reasons": reasons,
            "blank_lines": self.blank_lines,
            "damaged_files": self.damaged,
        }

    def write(self, out: Path, unit: str) -> dict[str, int]:
        """Write the kept records, if any; returns {name relative to `out`: lines}, as `UnitResult.files` wants it."""
        if not self._kept:
            return {}
        name = f"{FOLDER}/{unit}.jsonl"
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in self._kept))
        return {name: len(self._kept)}


def merge_stats(units: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of several `Quarantine.stats`, in the order of their units."""
    reasons: dict[str, dict[str, Any]] = {}
    total: dict[str, Any] = {"documents": 0, "bytes": 0, "blank_lines": 0, "damaged_files": []}
    for unit in units:
        for key in total:
            total[key] += unit[key]
        for reason, count in unit["reasons"].items():
            known = reasons.setdefault(reason, {"documents": 0, "bytes": 0, "first": count["first"]})
            known["documents"] += count["documents"]
            known["bytes"] += count["bytes"]
    return {**total, "reasons": reasons}


def remove_stale(out: Path, keep: Iterable[str]) -> None:
    """Delete quarantine files of earlier runs: those not named in `keep` (relative to `out`)."""
    names = set(keep)
    for path in (out / FOLDER).glob("*.jsonl"):
        if f"{FOLDER}/{path.name}" not in names:
            path.unlink()
