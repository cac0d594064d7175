"""A decoder's weights as integers: made once from floats, stored in one file, and the same on every machine.

Each matrix has int8 rows and says how its products become numbers of the next step's fixed point. A number of f bits
stands for integer / 2**f. An input row is int8 as well, with one integer scale:

    input[k]  = rows[k] / 127 * scale / 2**input_bits          rows from -127 to 127, scale an integer below 2**22
    output[m] = sum_k weights[m, k] * rows[k] * scale * multipliers[m] / 2**shift     in output_bits

The sum is exact in float32 while inputs * 127 * 127 < 2**24, so matrices have at most 1,040 columns; the product of all
stays below 2**62.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.compress.byte_model import BYTE_VALUES
from seqmill.errors import UserError
from seqmill.storage import canonical_json, read_arrow, read_metadata, with_metadata, write_arrow

KIND = "integer-transformer"
LARGEST = 127  # of int8 weights and inputs: -128 is left out
MOST_POSITIONS = 4096  # from here on the values that attention adds up may not fit 64 bits
MOST_INPUTS = (2**24 - 1) // LARGEST**2  # 1,040 columns of a matrix
MULTIPLIER_BITS = 16  # multipliers are below 2**16

RESIDUAL_BITS = 16  # of the residual stream, int32
ACTIVATION_BITS = 10  # of queries, keys, values, gates and what they gate, int16: -32 to 32
HIDDEN_BITS = 12  # of the gated inside of the MLP
SCALE_BITS = 16  # of the scales of normalised rows and of rows that attention gives
LOG2_BITS = 8  # of attention scores and logits, both to the base 2
WEIGHT_BITS = 30  # of a probability's numerator
ROTATION_BITS = 14  # of cosines and sines
SIGMOID_BITS = 15
_LEAST_EPSILON = 64  # roots are 8 or more: rounding one down does not double a scale
SIGMOID_ENTRIES = 1 << 13  # two neighbouring activations share one: 0 to 16, as 1 / (1 + e**-16) is 1 in 15 bits


@dataclass(frozen=True)
class DecoderShape:
    """The shape of a decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    dim: int  # width of the residual stream
    layers: int
    heads: int  # query heads
    kv_heads: int  # key and value heads; each serves heads / kv_heads query heads
    head_dim: int
    ffn_dim: int  # width inside SwiGLU
    positions: int  # the start and positions - 1 bytes: what predicts the next byte

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise UserError(f"a decoder of {name} = {value} cannot be: must be 1 or more")
        if self.heads % self.kv_heads or self.head_dim % 2 or not 2 <= self.positions < MOST_POSITIONS:
            raise UserError(
                f"heads = {self.heads}, kv_heads = {self.kv_heads}, head_dim = {self.head_dim}, positions = "
                f"{self.positions}: kv_heads must divide heads, head_dim be even, and positions be from 2 to "
                f"{MOST_POSITIONS - 1}, beyond which sums could overflow"
            )
        widest = max(self.dim, self.heads * self.head_dim, self.ffn_dim)
        if widest > MOST_INPUTS:
            raise UserError(
                f"a matrix of this decoder sums {widest} products of int8, but only {MOST_INPUTS} are exact in "
                "float32; choose a narrower model"
            )

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every matrix by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {"head": (BYTE_VALUES, self.dim)}
        for layer in range(self.layers):
            shapes[f"{layer}.qkv"] = (queries + 2 * keys, self.dim)
            shapes[f"{layer}.attention_out"] = (self.dim, queries)
            shapes[f"{layer}.gate_up"] = (2 * self.ffn_dim, self.dim)
            shapes[f"{layer}.down"] = (self.dim, self.ffn_dim)
        return shapes

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """(type, shape) of everything that a file holds, by name."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "embedding": ("int32", (BYTE_VALUES + 1, self.dim)),
            "cosines": ("int16", (self.positions, self.head_dim // 2)),
            "sines": ("int16", (self.positions, self.head_dim // 2)),
            "sigmoid": ("uint16", (SIGMOID_ENTRIES,)),
            "exp2": ("int32", (1 << LOG2_BITS,)),
            "epsilon": ("int64", (1,)),
            "score_multiplier": ("int64", (1,)),
        }
        for name, (outputs, inputs) in self.matrices().items():
            found[name] = ("int8", (outputs, inputs))
            found[f"{name}.multipliers"] = ("uint16", (outputs,))
            found[f"{name}.shift"] = ("int64", (1,))
        return found


@dataclass(frozen=True, eq=False)
class IntegerWeights:
    """Everything that a decoder's frequencies depend on but their precision."""

    shape: DecoderShape
    tensors: Mapping[str, np.ndarray]  # as `DecoderShape.tensors` lists them
    # embedding         one row a byte, and the start's
    # exp2              2**30 * 2**(-i / 256), rounded down
    # sigmoid           of (2 i + 1/2) / 2**10
    # epsilon           what RMSNorm adds to mean squares, in 2 * RESIDUAL_BITS
    # score_multiplier  log2(e) / sqrt(head_dim) in 16 bits

    def __post_init__(self) -> None:
        expected = self.shape.tensors()
        if set(expected) != set(self.tensors):
            odd = sorted(set(expected) ^ set(self.tensors))
            raise UserError(f"an integer transformer of this shape has not the tensors given, such as {odd[0]!r}")
        for name, (dtype, shape) in expected.items():
            found = self.tensors[name]
            if found.shape != shape or found.dtype != np.dtype(dtype):
                raise UserError(
                    f"tensor {name!r} of an integer transformer is {found.dtype}{list(found.shape)}, not "
                    f"{dtype}{list(shape)}"
                )
        for name, (lowest, highest) in self._limits().items():
            found = self.tensors[name]
            if found.min() < lowest or found.max() > highest:
                raise UserError(
                    f"tensor {name!r} of an integer transformer has numbers from {found.min()} to {found.max()}: only "
                    f"{lowest} to {highest} are sure not to overflow"
                )

    def _limits(self) -> dict[str, tuple[int, int]]:
        one = 1 << ROTATION_BITS
        limits = {
            "embedding": (-(2**26) + 1, 2**26 - 1),
            "cosines": (-one, one),
            "sines": (-one, one),
            "sigmoid": (0, 1 << SIGMOID_BITS),
            "exp2": (1, 1 << WEIGHT_BITS),
            "epsilon": (_LEAST_EPSILON, 2**40),
            "score_multiplier": (1, 2**17),
        }
        for name in self.shape.matrices():
            limits[name] = (-LARGEST, LARGEST)
            limits[f"{name}.multipliers"] = (0, 2**MULTIPLIER_BITS - 1)
            limits[f"{name}.shift"] = (1, 61)
        return limits

    @property
    def fingerprint(self) -> str:
        """sha256 of the shape and all tensors, little-endian."""
        digest = hashlib.sha256(canonical_json([KIND, asdict(self.shape)]))
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(canonical_json([name, str(tensor.dtype), tensor.shape]))
            digest.update(_little_endian(tensor))
        return digest.hexdigest()


def quantise_decoder(
    floats: Mapping[str, np.ndarray], shape: DecoderShape, start_id: int, rope_theta: float, norm_eps: float
) -> IntegerWeights:
    """The integers of a trained decoder. The scales of norms go into the matrices behind them.

    Args:
        floats: by the names of seqmill's checkpoints: "embedding.weight", "blocks.0.qkv.weight", ...; "head.weight"
            where the head is not the embedding. Ids 0 to 255 are the bytes.
        start_id: of the token that stands before a window's first byte.
        rope_theta: base of the rotary wavelengths.
        norm_eps: added to the mean square in RMSNorm.
    """
    table = np.asarray(floats["embedding.weight"], np.float64)
    head = np.asarray(floats.get("head.weight", table), np.float64)[:BYTE_VALUES]
    sources = {"head": (head * floats["norm.weight"], SCALE_BITS, LOG2_BITS, math.log2(math.e))}
    for layer in range(shape.layers):
        block = {name: np.asarray(floats[f"blocks.{layer}.{name}.weight"], np.float64) for name in _BLOCK}
        qkv, gate_up = block["qkv"] * block["attention_norm"], block["gate_up"] * block["ffn_norm"]
        sources[f"{layer}.qkv"] = (qkv, SCALE_BITS, ACTIVATION_BITS, 1.0)
        sources[f"{layer}.attention_out"] = (block["attention_out"], SCALE_BITS, RESIDUAL_BITS, 1.0)
        sources[f"{layer}.gate_up"] = (gate_up, SCALE_BITS, ACTIVATION_BITS, 1.0)
        sources[f"{layer}.down"] = (block["down"], HIDDEN_BITS, RESIDUAL_BITS, 1.0)
    rows = np.concatenate([table[:BYTE_VALUES], table[start_id : start_id + 1]])
    exponents = np.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = np.arange(shape.positions)[:, None] * rope_theta**-exponents
    gates = (2 * np.arange(SIGMOID_ENTRIES) + 0.5) / 2**ACTIVATION_BITS
    score = math.log2(math.e) / math.sqrt(shape.head_dim) * 2**16
    tensors = {
        "embedding": np.rint(rows * 2**RESIDUAL_BITS).astype(np.int32),
        "cosines": np.rint(np.cos(angles) * 2**ROTATION_BITS).astype(np.int16),
        "sines": np.rint(np.sin(angles) * 2**ROTATION_BITS).astype(np.int16),
        "sigmoid": np.rint(2**SIGMOID_BITS / (1 + np.exp(-gates))).astype(np.uint16),
        "exp2": np.floor(2.0 ** (WEIGHT_BITS - np.arange(1 << LOG2_BITS) / 2**LOG2_BITS)).astype(np.int32),
        "epsilon": np.array([max(_LEAST_EPSILON, round(norm_eps * 4**RESIDUAL_BITS))]),
        "score_multiplier": np.array([round(score)]),
    }
    for name, source in sources.items():
        tensors |= _quantise_matrix(name, *source)
    return IntegerWeights(shape, tensors)


_BLOCK = ("attention_norm", "qkv", "attention_out", "ffn_norm", "gate_up", "down")


def _quantise_matrix(
    name: str, weights: np.ndarray, input_bits: int, output_bits: int, factor: float
) -> dict[str, np.ndarray]:
    """int8 rows, each with its own scale, and the multipliers and shift that take products to `output_bits`."""
    scales = np.abs(weights).max(axis=1, keepdims=True) / LARGEST
    rows = np.rint(weights / np.where(scales > 0, scales, 1)).astype(np.int8)
    wanted = scales[:, 0] * factor * 2.0 ** (output_bits - input_bits) / LARGEST
    largest = wanted.max(initial=0)
    shift = MULTIPLIER_BITS - math.frexp(largest)[1] if largest > 0 else 1
    multipliers = np.minimum(np.rint(np.ldexp(wanted, shift)), 2**MULTIPLIER_BITS - 1)
    if not 1 <= shift <= 61:
        raise UserError(
            f"matrix {name!r} has weights of up to {np.abs(weights).max():.3g}: it cannot be turned into integers; "
            "train with a lower learning rate"
        )
    return {
        name: rows,
        f"{name}.multipliers": multipliers.astype(np.uint16),
        f"{name}.shift": np.array([shift], np.int64),
    }


_SCHEMA = pa.schema(
    {"name": pa.string(), "type": pa.string(), "shape": pa.list_(pa.int64()), "data": pa.large_binary()}
)


def write_weights(path: Path, weights: IntegerWeights, **built_from: Any) -> None:
    """Write one Arrow file: a row a tensor, little-endian; the shape, a hash and `built_from` in its metadata."""
    shape = asdict(weights.shape)
    schema = with_metadata(_SCHEMA, KIND, shape=shape, sha256=weights.fingerprint, built_from=built_from)

    def batches() -> Iterator[pa.RecordBatch]:
        for name, tensor in sorted(weights.tensors.items()):
            row = [[name], [str(tensor.dtype)], [list(tensor.shape)], [_little_endian(tensor)]]
            columns = [pa.array(value, field.type) for value, field in zip(row, _SCHEMA, strict=True)]
            yield pa.record_batch(columns, schema=schema)

    write_arrow(path, schema, batches())


def read_weights(path: Path) -> IntegerWeights:
    """What `write_weights` wrote.

    Raises:
        UserError: the file is missing, truncated, changed or something else.
    """
    table = read_arrow(path)
    described = read_metadata(table.schema)
    if described.get("kind") != KIND or "shape" not in described:
        raise UserError(f"{path} holds {described.get('kind', 'no table of seqmill')!r}, not an {KIND}; name its file")
    try:
        tensors = {
            row["name"]: np.frombuffer(row["data"], np.dtype(row["type"]).newbyteorder("<"))
            .reshape(row["shape"])
            .astype(row["type"])
            for row in table.to_pylist()
        }
        weights = IntegerWeights(DecoderShape(**described["shape"]), tensors)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} describes no decoder ({error}); export the model again") from error
    if weights.fingerprint != described.get("sha256"):
        raise UserError(f"{path}: its numbers are not those that were written (the hash differs); export it again")
    return weights


def _little_endian(tensor: np.ndarray) -> bytes:
    return tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
