"""What the mix and split stages can be told."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from seqmill.errors import UserError

UNITS = ("documents", "bytes", "tokens")
LEAST_MEMORY_MB = 1


@dataclass(frozen=True)
class MixConfig:
    """`[mix]`: how often each source is seen, and in which order. Give weights or epochs; neither: a plain shuffle."""

    weights: Mapping[str, float] = field(default_factory=dict)  # source -> part of the output; need not sum to 1
    epochs: Mapping[str, float] = field(default_factory=dict)  # source -> times it is seen, 0.5 or 2.3; unnamed: 1
    target: int | None = None  # size of the output, in `unit`; None: as much as max_epochs allows. Needs weights
    unit: str | None = (
        None  # of target and weights: "documents", "bytes", "tokens"; None: tokens if there are, or bytes
    )
    max_epochs: float | None = None  # no source is seen more often; None: no limit with a target, 1 without one
    seed: int = 0  # of the choice of documents and of their order
    shuffle: bool = True  # False: input order, one pass after the other where documents are repeated
    memory_mb: int = 1024  # MiB that one worker may take
    parameters: int | None = None  # of the model to train: warns where repetition harms it

    def __post_init__(self) -> None:
        if self.weights and self.epochs:
            raise UserError("mix.weights and mix.epochs exclude each other: keep the one you mean")
        for name in ("weights", "epochs"):
            for source, value in getattr(self, name).items():
                if not (math.isfinite(value) and value >= 0):
                    raise UserError(f"mix.{name}: {source} = {value}: a finite number of at least 0 is needed")
        if self.weights and not any(self.weights.values()):
            raise UserError("mix.weights are all 0: nothing would be left; give one source a weight")
        if not self.weights and (self.target, self.unit, self.max_epochs) != (None, None, None):
            raise UserError("mix.target, mix.unit and mix.max_epochs work with mix.weights only; give weights")
        if self.target is not None and self.target < 1:
            raise UserError(f"mix.target = {self.target}: at least 1 is needed")
        if self.unit is not None and self.unit not in UNITS:
            raise UserError(f"mix.unit = {self.unit!r}: choose one of {', '.join(UNITS)}")
        if self.max_epochs is not None and not (math.isfinite(self.max_epochs) and self.max_epochs > 0):
            raise UserError(f"mix.max_epochs = {self.max_epochs}: a finite number above 0 is needed")
        _check_memory("mix", self.memory_mb)
        if self.parameters is not None and self.parameters < 1:
            raise UserError(f"mix.parameters = {self.parameters}: the size of a model, at least 1, is needed")


@dataclass(frozen=True)
class SplitConfig:
    """How much to hold out: a fraction or a number of documents."""

    fraction: float | None = None  # of the documents, above 0 and below 1
    documents: int | None = None  # exact number
    seed: int = 0
    memory_mb: int = 1024  # MiB that one worker may take

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.documents is None):
            raise UserError("split needs either a fraction or a number of documents to hold out")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise UserError(f"split.fraction = {self.fraction}: a fraction above 0 and below 1 is needed")
        if self.documents is not None and self.documents < 1:
            raise UserError(f"split.documents = {self.documents}: at least 1 is needed")
        _check_memory("split", self.memory_mb)


def _check_memory(stage: str, megabytes: int) -> None:
    if megabytes < LEAST_MEMORY_MB:
        raise UserError(f"{stage}.memory_mb = {megabytes}: at least {LEAST_MEMORY_MB} is needed")
