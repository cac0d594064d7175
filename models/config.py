"""The shape of a decoder: one frozen dataclass, and the named presets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from seqmill.errors import UserError

VOCAB_MULTIPLE = 64  # rows of the embedding are padded to a multiple of this, for matrix kernels
# fields that a plain decoder leaves as they are
_VARIANTS = ("experts", "experts_per_token", "window", "sinks", "full_every", "nope_every")
REFERENCE_VOCAB = 50_257  # the vocabulary (GPT-2's) for which the presets have the size in their name


@dataclass(frozen=True)
class RopeScaling:
    """How the angles of a model are slowed down, so that it reads more positions than it was first trained on.

    Raises:
        UserError: a value is impossible.
    """

    kind: str  # "linear": all angles; "llama3": only those of long wavelengths
    factor: float  # angles are divided by it
    low_freq_factor: float = 1.0  # llama3: wavelengths over original_positions / this are slowed down in full
    high_freq_factor: float = 4.0  # llama3: wavelengths under original_positions / this stay as they are
    original_positions: int = 8192  # llama3: positions of the first training

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise UserError(f"rope_scaling kind {self.kind!r} is not known here; choose one of linear, llama3")
        if not 1 <= self.factor < math.inf:
            raise UserError(f"rope_scaling factor = {self.factor}: must be 1 or more")
        if not 0 < self.low_freq_factor < self.high_freq_factor or self.original_positions < 1:
            raise UserError(
                f"rope_scaling low_freq_factor = {self.low_freq_factor}, high_freq_factor = {self.high_freq_factor}, "
                f"original_positions = {self.original_positions}: the first must be positive and below the second"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RopeScaling":
        """The scaling whose fields are `values`.

        Raises:
            UserError: a field is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if not {"kind", "factor"} <= set(values) <= known:
            raise UserError(f"rope_scaling has fields {sorted(values)}; it takes {', '.join(sorted(known))}")
        for name, value in values.items():
            if name != "kind" and not isinstance(value, int | float):
                raise UserError(f"rope_scaling {name} = {value!r}: must be a number")
        return cls(**values)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder with RMSNorm, rotary positions, grouped-query attention and SwiGLU, one per layer or of experts.

    Raises:
        UserError: a value is impossible.
    """

    vocab_size: int  # ids 0 .. vocab_size - 1 exist
    dim: int  # width of the residual stream
    layers: int
    heads: int  # query heads
    kv_heads: int  # key and value heads; each serves heads / kv_heads query heads
    head_dim: int  # even, since rotary positions turn pairs
    ffn_dim: int  # width inside SwiGLU; of one expert where there are experts
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    tied_head: bool = True  # the output head is the embedding
    qk_norm: bool = False  # RMSNorm of every query and key head before the rotary turn
    rope_scaling: RopeScaling | None = None  # slower angles, for contexts longer than those of the first training
    experts: int = 0  # SwiGLUs per layer, of which a router chooses each token's; 0: one for all tokens
    experts_per_token: int = 0  # how many it chooses
    window: int | None = None  # tokens that each token sees back, itself included; None: all of its document
    sinks: int = 0  # first tokens of a document that tokens behind their window see besides
    full_every: int | None = None  # with a window: every so-manieth layer sees all
    nope_every: int | None = None  # every so-manieth layer turns no queries and keys, and knows the order alone (NoPE)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim", "rope_theta"):
            if getattr(self, name) <= 0:
                raise UserError(f"model {name} = {getattr(self, name)}: must be positive")
        if self.heads % self.kv_heads:
            raise UserError(
                f"model heads = {self.heads}, kv_heads = {self.kv_heads}: every key-value head serves the same number "
                "of query heads, so kv_heads must divide heads"
            )
        if self.head_dim % 2:
            raise UserError(f"model head_dim = {self.head_dim}: rotary positions turn pairs, so it must be even")
        if (self.experts, self.experts_per_token) != (0, 0) and not 2 <= self.experts_per_token <= self.experts:
            raise UserError(
                f"model experts = {self.experts}, experts_per_token = {self.experts_per_token}: a token has at least 2 "
                "of the experts (the weight of a single one is always 1, and its router would learn nothing); or set "
                "both to 0"
            )
        for name in ("window", "full_every", "nope_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"model {name} = {value}: must be positive; leave it out for none")
        if self.sinks < 0 or (self.window is None and (self.sinks or self.full_every is not None)):
            raise UserError(
                f"model sinks = {self.sinks}, full_every = {self.full_every}, window = {self.window}: without a window "
                "every layer sees all already, so give a window, or sinks = 0 and no full_every"
            )

    def is_full(self, layer: int) -> bool:
        """Whether the tokens of a layer (counted from 0) see all before them: layers 3, 7, ... with full_every = 4."""
        return self.window is None or (self.full_every is not None and (layer + 1) % self.full_every == 0)

    def has_rotary(self, layer: int) -> bool:
        """Whether a layer (counted from 0) turns queries and keys by position: not 3, 7, ... with nope_every = 4."""
        return self.nope_every is None or (layer + 1) % self.nope_every != 0

    @property
    def variants(self) -> dict[str, Any]:
        """The settings by which layers see or turn otherwise than in a plain decoder, by name."""
        plain = {field.name: field.default for field in fields(self) if field.name in _VARIANTS}
        return {name: getattr(self, name) for name, default in plain.items() if getattr(self, name) != default}

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to a multiple of `VOCAB_MULTIPLE`."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def parameters(self) -> int:
        """Number of trained numbers, padding rows of the vocabulary included."""
        return self._parameters(self.experts)

    @property
    def active_parameters(self) -> int:
        """Those of them that one token meets: all but the experts that it is not sent to."""
        return self._parameters(self.experts_per_token)

    def _parameters(self, experts: int) -> int:
        norms = 2 * self.dim + (2 * self.head_dim if self.qk_norm else 0)
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = norms + attention + max(1, experts) * 3 * self.dim * self.ffn_dim + self.experts * self.dim
        tables = 1 if self.tied_head else 2
        return self.layers * layer + self.dim + tables * self.padded_vocab * self.dim

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; rope_scaling and variants only where there are any."""
        left_out = {name for name in _VARIANTS if name not in self.variants}
        left_out |= {"rope_scaling"} if self.rope_scaling is None else set()
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> "ModelConfig":
        """The config that `to_json` described.

        Args:
            source: where `values` were found, for the error message.

        Raises:
            UserError: a field is missing or unknown (another architecture, or another version of seqmill).
        """
        known = {field.name for field in fields(cls)}
        required = {"vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim"}
        unknown, missing = sorted(set(values) - known), sorted(required - set(values))
        if unknown or missing:
            raise UserError(
                f"{source} describes no seqmill decoder: unknown fields {unknown}, missing fields {missing}; "
                "load it with the program or version that wrote it"
            )
        scaling = values.get("rope_scaling")
        return cls(**{**values, "rope_scaling": scaling and RopeScaling.from_json(scaling)})


@dataclass(frozen=True)
class Preset:
    """A named model and the peak learning rate that suits its size."""

    model: ModelConfig
    learning_rate: float  # AdamW, peak of the schedule


def _preset(
    learning_rate: float, dim: int, layers: int, heads: int, kv_heads: int, head_dim: int, ffn_dim: int
) -> Preset:
    return Preset(ModelConfig(REFERENCE_VOCAB, dim, layers, heads, kv_heads, head_dim, ffn_dim), learning_rate)


# "tiny" is for a laptop's processor. "124m" to "1.3b" carry the size they have with the reference vocabulary; their
# heads are 128 wide because attention kernels on Hopper run about 1.5 times faster there than at 64. "bytes-..." carry
# the size they have with bytes as vocabulary and predict the bytes of a window coder: with an ffn_dim of at most 1,040
# they run in exact integers (compress.integer_transformer).
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny": _preset(3e-3, dim=192, layers=4, heads=6, kv_heads=2, head_dim=32, ffn_dim=512),
        "124m": _preset(6e-4, dim=768, layers=12, heads=6, kv_heads=6, head_dim=128, ffn_dim=2048),
        "355m": _preset(3e-4, dim=1024, layers=24, heads=8, kv_heads=8, head_dim=128, ffn_dim=2752),
        "774m": _preset(2.5e-4, dim=1280, layers=36, heads=10, kv_heads=10, head_dim=128, ffn_dim=3456),
        "1.3b": _preset(2e-4, dim=2048, layers=24, heads=16, kv_heads=16, head_dim=128, ffn_dim=5504),
        "bytes-0.2m": _preset(5e-3, dim=64, layers=3, heads=2, kv_heads=2, head_dim=32, ffn_dim=256),
        "bytes-0.8m": _preset(4e-3, dim=128, layers=3, heads=4, kv_heads=4, head_dim=32, ffn_dim=512),
        "bytes-3m": _preset(2e-3, dim=256, layers=3, heads=4, kv_heads=4, head_dim=64, ffn_dim=1024),
    }
)


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"model = {name!r}: there is no such preset; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_config(name: str, vocab_size: int) -> ModelConfig:
    """The shape of preset `name` for a vocabulary of `vocab_size` ids."""
    return replace(find_preset(name).model, vocab_size=vocab_size)
