"""What the substrings stage can be told."""

from dataclasses import asdict, dataclass
from typing import Any

from seqmill.errors import UserError

ACTIONS = ("cut", "annotate")
SHORTEST, LONGEST = 8, 2**16 - 1  # of min_bytes: an inner character border must exist; distances are uint16


@dataclass(frozen=True)
class SubstringConfig:
    """`[substrings]`: which repeated spans are marked, and what becomes of them."""

    min_bytes: int = 200  # shortest repeated span; Lee et al. use 50 BPE tokens, about 200 bytes
    action: str = "cut"  # "cut": take marked bytes out of the text; "annotate": leave it, and count them in a column
    min_kept_bytes: int = 1  # a document cut to fewer is removed whole; above 1, what was left of it is lost
    memory_mb: int = 1024  # for one unit of work; does not change the output

    def __post_init__(self) -> None:
        if not SHORTEST <= self.min_bytes <= LONGEST:
            raise UserError(
                f"substrings.min_bytes = {self.min_bytes}: {SHORTEST} to {LONGEST} bytes can be compared; 200 is usual"
            )
        if self.action not in ACTIONS:
            raise UserError(f"substrings.action = {self.action!r}: choose one of {', '.join(ACTIONS)}")
        if self.min_kept_bytes < 1:
            raise UserError(
                f"substrings.min_kept_bytes = {self.min_kept_bytes}: at least 1 is needed, for a document without text "
                "is none"
            )
        if self.memory_mb < 1:
            raise UserError(f"substrings.memory_mb = {self.memory_mb}: at least 1 is needed; 1024 is usual")

    def shaping(self) -> dict[str, Any]:
        """The settings that shape the output, as JSON: all but the memory."""
        return {key: value for key, value in asdict(self).items() if key != "memory_mb"}
