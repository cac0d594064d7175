"""What a packed row costs a training step: A * sum_sq + B * tokens + C * segments + D.

Attention costs the squares of the segments, everything else costs its tokens; a segment and a row may cost something
by themselves (masks, launches). The coefficients come from the shape of a decoder, in floating-point operations, or
from timings on the device that will run it, in seconds. Only ratios matter to a plan, so either unit serves.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing.schema import KIND
from seqmill.storage import read_arrow

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_FORWARD_AND_BACKWARD = 3  # a backward pass makes two products of matrices for each one of the forward pass
_COUNTS = ("n_tokens", "sum_sq", "n_segments")


@dataclass(frozen=True, eq=False)
class RowSizes:
    """What the cost of rows depends on; all arrays have one element per row."""

    row_id: Int64s  # each one once
    n_tokens: Int64s  # >= 1
    sum_sq: Int64s  # sum of squared segment lengths, in tokens squared
    n_segments: Int64s

    def __len__(self) -> int:
        return len(self.row_id)

    def take(self, index: Int64s) -> "RowSizes":
        """The rows at these positions, in this order."""
        return RowSizes(self.row_id[index], self.n_tokens[index], self.sum_sq[index], self.n_segments[index])


def read_row_sizes(folder: Path) -> RowSizes:
    """The sizes of all rows of a packed folder, in stored order; the tokens themselves are not read.

    Raises:
        UserError: the folder is no finished packed folder.
    """
    columns: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in ("row_id", *_COUNTS)}
    for file in open_manifest(folder, KIND)["files"]:
        table = read_arrow(folder / file["name"])
        for name in ("row_id", "n_tokens", "sum_sq"):
            columns[name].append(table.column(name).to_numpy().astype(np.int64))
        columns["n_segments"].append(pc.list_value_length(table.column("seq_lengths")).to_numpy().astype(np.int64))
    return RowSizes(**{name: np.concatenate([np.empty(0, np.int64), *parts]) for name, parts in columns.items()})


@dataclass(frozen=True)
class Architecture:
    """The shape of a decoder, as far as it decides how much there is to compute.

    Raises:
        UserError: a number is not positive.
    """

    layers: int
    dim: int  # width of the residual stream
    heads: int  # query heads
    kv_heads: int  # key and value heads
    head_dim: int  # width of a head
    ffn_dim: int  # width inside the feed-forward part
    vocab_size: int
    ffn_matrices: int = 3  # dim x ffn_dim matrices of a layer: 3 for SwiGLU, 2 for plain GELU

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise UserError(f"architecture {name} = {value}: must be at least 1")


@dataclass(frozen=True)
class CostModel:
    """The coefficients of a row's cost, all in `unit`.

    Raises:
        UserError: a coefficient is negative or not finite, or all of the first four are zero.
    """

    per_square: float  # A, for each squared token of a segment
    per_token: float  # B
    per_segment: float  # C
    per_row: float  # D
    unit: str  # "FLOP" or "s"
    per_exchanged_token: float = 0.0  # to move one token's queries, keys, values and outputs between ranks

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in asdict(self).items() if name != "unit"}
        for name, value in numbers.items():
            if not 0 <= value < float("inf"):
                raise UserError(f"cost model {name} = {value}: must be finite and not negative")
        if not any(numbers[name] for name in ("per_square", "per_token", "per_segment", "per_row")):
            raise UserError("a cost model of zeros only would call every plan perfect; give it a positive coefficient")

    def costs(self, rows: RowSizes) -> Floats:
        """The cost of every row on one rank, float64[rows], in `unit`."""
        # term by term and not as a product of matrices, whose rounding differs between machines
        squares, tokens, segments = self.per_square * rows.sum_sq, self.per_token * rows.n_tokens, rows.n_segments
        costs: Floats = (squares + tokens + self.per_segment * segments + self.per_row).astype(np.float64)
        return costs

    def as_json(self) -> dict[str, Any]:
        """All fields by name; `CostModel(**fields)` is the way back."""
        return asdict(self)


def architecture_costs(shape: Architecture, flop_per_byte: float = 1000.0) -> CostModel:
    """Floating-point operations of the forward and backward pass over a row.

    With L layers, h = heads * head_dim, W the weights that a token is multiplied with (attention projections,
    feed-forward part and output head), and causal attention over segments of s tokens, which has s (s + 1) / 2 pairs
    of 4 h operations in each layer (2 h for the score, 2 h for the weighted sum):

        forward = sum over segments of 2 W s + 2 L h (s^2 + s)         forward and backward = 3 * forward
        A = 3 * 2 L h,  B = 3 * (2 W + 2 L h),  C = D = 0

    Recomputation (of attention in FlashAttention's backward pass, of activations) and the tiles of kernels are not
    counted; fit timings where they matter.

    Args:
        flop_per_byte: operations that a rank does in the time in which it sends one byte to another. The default is an
            assumption: 450 TFLOP/s beside 450 GB/s, an H100 within its node. It prices the exchange of
            sequence-parallel groups: queries, keys, values and outputs of 2 bytes a number, forward and backward.
    """
    width = shape.heads * shape.head_dim
    exchanged = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim  # q, o, k, v of a token in one layer
    layer = shape.dim * exchanged + shape.ffn_matrices * shape.dim * shape.ffn_dim
    weights = shape.layers * layer + shape.dim * shape.vocab_size
    attention = 2 * shape.layers * width
    return CostModel(
        per_square=float(_FORWARD_AND_BACKWARD * attention),
        per_token=float(_FORWARD_AND_BACKWARD * (2 * weights + attention)),
        per_segment=0.0,
        per_row=0.0,
        unit="FLOP",
        per_exchanged_token=flop_per_byte * 2 * 2 * shape.layers * exchanged,
    )


class FitError(NamedTuple):
    """How far a fitted model is from the timings it was fitted to, as shares of each timing."""

    mean: float
    largest: float


def fit_costs(rows: RowSizes, seconds: npt.ArrayLike, per_exchanged_token: float = 0.0) -> tuple[CostModel, FitError]:
    """The non-negative coefficients with the least squared relative error on timings of rows.

    Args:
        rows: the rows that were run; their ids do not matter.
        seconds: float[rows] > 0, how long each took.
        per_exchanged_token: passed on, in seconds.

    Raises:
        UserError: the timings are not positive, do not match the rows, or are fewer than 4.
    """
    measured = np.asarray(seconds, np.float64)
    if measured.shape != (len(rows),) or len(rows) < 4:
        raise UserError(f"{measured.size} timings of {len(rows)} rows: a fit needs one for each of at least 4 rows")
    if not (np.isfinite(measured).all() and (measured > 0).all()):
        raise UserError("a timing is not a positive number of seconds; leave it out")
    relative = _features(rows) / measured[:, None]
    found = non_negative_least_squares(relative, np.ones(len(rows)))
    square, token, segment, row = found.tolist()
    model = CostModel(square, token, segment, row, unit="s", per_exchanged_token=per_exchanged_token)
    errors = np.abs(relative @ found - 1)
    return model, FitError(float(errors.mean()), float(errors.max()))


def non_negative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """The x >= 0 that minimises |matrix @ x - target|, exactly, for a few columns.

    The best x is the plain least-squares solution on the columns where it is positive, so trying every set of columns
    finds it: 2^columns small problems, 16 for a cost model.

    Args:
        matrix: float64[rows, columns].
        target: float64[rows].

    Returns:
        float64[columns].
    """
    norms = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(norms > 0, norms, 1)  # sum_sq is millions of times as large as n_segments
    best, least = np.zeros(matrix.shape[1]), float(np.linalg.norm(target))
    for size in range(1, matrix.shape[1] + 1):
        for chosen in combinations(range(matrix.shape[1]), size):
            solution = np.linalg.lstsq(scaled[:, chosen], target, rcond=None)[0]
            distance = float(np.linalg.norm(scaled[:, chosen] @ solution - target))
            if (solution >= 0).all() and distance < least * (1 - 1e-12):  # fewer columns win a tie
                best, least = np.zeros(matrix.shape[1]), distance
                best[list(chosen)] = solution / norms[list(chosen)]
    return best


def read_timings(path: Path) -> tuple[RowSizes, Floats]:
    """Rows and their seconds from a file of JSON lines with n_tokens, sum_sq, n_segments and seconds.

    Raises:
        UserError: the file cannot be read, or a line is something else.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read timings from {path} ({error}); give a file of JSON lines") from error
    return _timings(path, lines)


def _timings(path: Path, lines: Iterable[str]) -> tuple[RowSizes, Floats]:
    found: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            found.append([float(record[name]) for name in (*_COUNTS, "seconds")])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is no JSON object with the numbers "
                f"{', '.join(_COUNTS)} and seconds; correct it"
            ) from error
    table = np.array(found, np.float64).reshape(-1, 4)
    counts = table[:, :3].astype(np.int64)
    return RowSizes(np.arange(len(table)), *counts.T), table[:, 3]


def _features(rows: RowSizes) -> Floats:
    """float64[rows, 4]: what the four coefficients are multiplied with."""
    columns = (rows.sum_sq, rows.n_tokens, rows.n_segments, np.ones(len(rows)))
    return np.stack([column.astype(np.float64) for column in columns], axis=1)
