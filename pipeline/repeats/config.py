"""What the repeat sampler can be told."""

import math
from dataclasses import dataclass

from seqmill.errors import UserError

MODES = ("document", "sequence")
MOST_REPEATS = 1 << 20  # the paper went to 10,000


@dataclass(frozen=True)
class SampleConfig:
    """`tokens` tokens, of which a part `repeat_fraction` is `repeats` copies of a small random subset."""

    tokens: int  # of the output
    repeat_fraction: float  # 0 to 1; the paper's 3, 10, 20, 50 and 90 %; 0 makes the control without repeats
    repeats: int  # copies of each document of the subset, the first one included
    seed: int = 0  # of the choice and of the order
    mode: str = "document"  # what is chosen and repeated: "document", or "sequence": windows of seq_len tokens
    seq_len: int | None = None  # of mode "sequence"
    memory_mb: int = 1024  # MiB that one worker may take
    parameters: int | None = None  # of the model to train: where the paper found most damage

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"repeats.tokens = {self.tokens}: at least 1 is needed")
        if not (math.isfinite(self.repeat_fraction) and 0 <= self.repeat_fraction <= 1):
            raise UserError(f"repeats.repeat_fraction = {self.repeat_fraction}: a number from 0 to 1 is needed")
        if not 1 <= self.repeats <= MOST_REPEATS:
            raise UserError(f"repeats.repeats = {self.repeats}: a number from 1 to {MOST_REPEATS} is needed")
        if self.mode not in MODES:
            raise UserError(f"repeats.mode = {self.mode!r}: choose one of {', '.join(MODES)}")
        if (self.seq_len is not None) != (self.mode == "sequence"):
            raise UserError("repeats.seq_len is the length of the windows of mode 'sequence': give both or neither")
        if self.seq_len is not None and self.seq_len < 1:
            raise UserError(f"repeats.seq_len = {self.seq_len}: a window needs at least 1 token")
        if self.memory_mb < 1:
            raise UserError(f"repeats.memory_mb = {self.memory_mb}: at least 1 is needed")
        if self.parameters is not None and self.parameters < 1:
            raise UserError(f"repeats.parameters = {self.parameters}: the size of a model, at least 1, is needed")
