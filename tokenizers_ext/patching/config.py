"""How bytes are cut into patches, as a user writes it: `[tokenize.patching]`."""

import math
from dataclasses import dataclass, field

from seqmill.errors import UserError

SCHEMES = ("byte", "static", "space", "bpe", "entropy")
RULES = ("threshold", "monotonic", "both")
LONGEST_PATCH = 65_535  # bytes: the range of list<uint16>
HIGHEST_ENTROPY = math.log(256)  # nats: of the next byte, when nothing is known
HIGHEST_GIVEN = 8.0  # nats: other models may know more symbols than bytes
ORDERS = range(3, 7)
_BYTES_OF_SLOT = 8


@dataclass(frozen=True)
class NgramConfig:
    """The scorer that is trained for scheme "entropy" where none is given: a byte n-gram model with backoff."""

    order: int = 6  # a byte is predicted from up to order - 1 bytes before it
    min_count: int = 4  # a context is believed when it was seen this often; a shorter one is used otherwise
    sample_bytes: int = 64_000_000  # text to count and calibrate on at most; documents are drawn by a hash of their id
    table_bytes: int = 32 << 20  # of stored entropies; rarer contexts go when there are too many
    seed: int = 0  # of the sample

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UserError(
                f"patching.ngram.order = {self.order}: choose {ORDERS[0]} to {ORDERS[-1]}; longer n-grams of bytes do "
                "not fit the 64 bits that one is counted in"
            )
        if self.min_count < 1:
            raise UserError(f"patching.ngram.min_count = {self.min_count}: at least 1 is needed")
        if self.sample_bytes < 1:
            raise UserError(f"patching.ngram.sample_bytes = {self.sample_bytes}: at least 1 byte of text is needed")
        if self.table_bytes < 2 * _BYTES_OF_SLOT:
            raise UserError(
                f"patching.ngram.table_bytes = {self.table_bytes}: at least {2 * _BYTES_OF_SLOT} are needed; "
                "33554432 (32 MiB) is the default"
            )
        if self.seed < 0:
            raise UserError(f"patching.ngram.seed = {self.seed}: 0 or more is needed")

    @property
    def slots(self) -> int:
        """Slots that the table of entropies has at most: the power of two that fits `table_bytes`."""
        return 1 << (self.table_bytes // _BYTES_OF_SLOT).bit_length() - 1


@dataclass(frozen=True)
class PatchConfig:
    """Where patches begin; `seqmill.tokenizers_ext.patching` defines the schemes."""

    scheme: str = "space"  # "byte", "static", "space", "bpe" or "entropy"
    max_patch: int = 64  # bytes; what is longer is cut into patches of this size and a remainder
    size: int | None = None  # bytes of a patch, for scheme "static"
    tokenizer: str | None = None  # a tokenizer folder or tokenizer.json, for scheme "bpe"
    rule: str = "threshold"  # of scheme "entropy": "threshold", "monotonic" or "both"
    theta: float | None = None  # nats; a patch begins where the entropy is above it (threshold, both)
    theta_add: float | None = None  # nats; a patch begins where the entropy rises by more (monotonic, both)
    target_bytes: float | None = None  # wanted mean patch: chooses theta (threshold, both) or theta_add (monotonic)
    model: str | None = None  # folder of a trained scorer; default: train one on these documents
    entropies: str | None = None  # folder with another model's entropies, part by part, instead of a scorer
    ngram: NgramConfig = field(default_factory=NgramConfig)  # the scorer to train

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise UserError(f"patching.scheme = {self.scheme!r}: choose one of {', '.join(SCHEMES)}")
        if not 1 <= self.max_patch <= LONGEST_PATCH:
            raise UserError(
                f"patching.max_patch = {self.max_patch}: between 1 and {LONGEST_PATCH} bytes, the range of uint16; "
                "64 is the default"
            )
        self._refuse_what_other_schemes_have()
        if self.scheme == "static":
            self._check_static()
        if self.scheme == "bpe" and self.tokenizer is None:
            raise UserError("patching.scheme = 'bpe' needs patching.tokenizer: the tokenizer whose tokens are patches")
        if self.scheme == "entropy":
            self._check_entropy()

    def _refuse_what_other_schemes_have(self) -> None:
        owners = {"size": "static", "tokenizer": "bpe"}
        owners |= dict.fromkeys(("theta", "theta_add", "target_bytes", "model", "entropies"), "entropy")
        for name, owner in owners.items():
            if getattr(self, name) is not None and self.scheme != owner:
                raise UserError(
                    f"patching.{name} = {getattr(self, name)!r} is of scheme {owner!r}, not of {self.scheme!r}; leave "
                    f"it out, or set patching.scheme = {owner!r}"
                )

    def _check_static(self) -> None:
        if self.size is None:
            raise UserError("patching.scheme = 'static' needs patching.size: the bytes of a patch")
        if not 1 <= self.size <= self.max_patch:
            raise UserError(
                f"patching.size = {self.size}: between 1 byte and patching.max_patch = {self.max_patch}, or every "
                "patch would be cut"
            )

    def _check_entropy(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"patching.rule = {self.rule!r}: choose one of {', '.join(RULES)}")
        for name in ("theta", "theta_add", "target_bytes"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"patching.{name} = {value}: a finite number is needed")
        limit = HIGHEST_ENTROPY if self.entropies is None else HIGHEST_GIVEN
        if self.theta is not None and not 0 <= self.theta < limit:
            raise UserError(
                f"patching.theta = {self.theta}: from 0 to less than {limit:.4f} nats; no entropy of a byte exceeds "
                f"ln 256 = {HIGHEST_ENTROPY:.4f}, and no patch would begin"
            )
        if self.target_bytes is not None and not 1 < self.target_bytes <= self.max_patch:
            raise UserError(
                f"patching.target_bytes = {self.target_bytes}: more than 1 byte, and patching.max_patch = "
                f"{self.max_patch} at most"
            )
        if self.model is not None and self.entropies is not None:
            raise UserError(
                "patching.model and patching.entropies both say where entropies come from; leave one of them out"
            )
        self._check_bounds()

    def _check_bounds(self) -> None:
        """Exactly the bounds of the rule are given, one of them perhaps as the patch size that it leads to."""
        has = {name for name in ("theta", "theta_add", "target_bytes") if getattr(self, name) is not None}
        allowed = {
            "threshold": ({"theta"}, {"target_bytes"}),
            "monotonic": ({"theta_add"}, {"target_bytes"}),
            "both": ({"theta", "theta_add"}, {"target_bytes", "theta_add"}),
        }[self.rule]
        if has not in allowed:
            given = " and ".join(f"patching.{name}" for name in sorted(has)) or "none"
            wanted = ", or ".join(" and ".join(f"patching.{name}" for name in sorted(names)) for names in allowed)
            raise UserError(f"patching.rule = {self.rule!r} needs {wanted}; given: {given}")
