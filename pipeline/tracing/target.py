"""What is to be traced, and how documents are numbered."""

from dataclasses import dataclass
from typing import Any

from seqmill.errors import UserError
from seqmill.pipeline.records import ROW_BITS

_FORMS = "row:17 (a row), doc:3:17 (document 17 of file 3), doc:3298534883345 (a doc_id) or id:NAME (a user's id)"


@dataclass(frozen=True)
class Target:
    """What to trace: a row, or a document by its doc_id or by the id that its user gave it."""

    kind: str  # "row", "doc" or "id"
    value: int | str

    @classmethod
    def of(cls, text: str) -> "Target":
        """Read "row:17", "doc:3:17", "doc:3298534883345" or "id:NAME".

        Raises:
            UserError: `text` is none of these, or a number is out of range.
        """
        kind, colon, rest = text.partition(":")
        if colon and kind == "id":
            return cls("id", rest)
        numbers = rest.split(":")
        if kind == "row" and rest.isdecimal():
            return cls("row", int(rest))
        if kind == "doc" and len(numbers) <= 2 and all(number.isdecimal() for number in numbers):
            *file, row = map(int, numbers)
            if not file and row < 1 << 64:
                return cls("doc", row)
            if file and file[0] < 1 << (64 - ROW_BITS) and row < 1 << ROW_BITS:
                return cls("doc", (file[0] << ROW_BITS) | row)
        raise UserError(f"cannot trace {text!r}: write {_FORMS}")


def identity(doc_id: int) -> dict[str, Any]:
    """The id, and what it says: the ordinal of the source file and the row in it."""
    return {"doc_id": doc_id, "file": doc_id >> ROW_BITS, "file_row": doc_id & ((1 << ROW_BITS) - 1)}


def readable(doc_id: int) -> str:
    """FILE:ROW, as `Target.of` reads it."""
    return f"{doc_id >> ROW_BITS}:{doc_id & ((1 << ROW_BITS) - 1)}"
