"""The steps of a decoder between its matrix products, in integers alone.

Rows are contexts' last tokens. Every kernel treats each row by itself, and integer sums have no order: so a row's
result is the same in any batch, on any machine and for any number of threads. Products arrive as float32 that holds
integers; the first thing done with them is to make them int64.

Shifts round to the nearest, halves up: (x + half) >> bits. "Saturates" means that what is out of range becomes the
nearest number in range.
"""

import numba
import numpy as np

from seqmill.compress.integer_weights import (
    ACTIVATION_BITS,
    HIDDEN_BITS,
    LARGEST,
    LOG2_BITS,
    ROTATION_BITS,
    SCALE_BITS,
    SIGMOID_BITS,
    SIGMOID_ENTRIES,
    WEIGHT_BITS,
)

LARGEST_RESIDUAL = 2**26 - 1  # 1,024 in its 16 bits; the sum of 1,040 squares stays below 2**63
LARGEST_ACTIVATION = 2**15 - 1
_DOT_SHIFT = 2 * ACTIVATION_BITS + 16 - LOG2_BITS
_ATTENTION_SHIFT = SCALE_BITS - ACTIVATION_BITS
_GATED_SHIFT = 2 * ACTIVATION_BITS + SIGMOID_BITS - HIDDEN_BITS
_LOG2_MASK = (1 << LOG2_BITS) - 1


@numba.njit(nogil=True, cache=True)
def integer_sqrt(x: int) -> int:
    """The largest integer whose square is at most x, 0 <= x < 2**63: a binary digit at a time."""
    root, bit = 0, 1 << 62
    while bit > x:
        bit >>= 2
    while bit:
        if x >= root + bit:
            x -= root + bit
            root = (root >> 1) + bit
        else:
            root >>= 1
        bit >>= 2
    return root


@numba.njit(nogil=True, cache=True)
def _to_int8(numbers: np.ndarray, largest: int, rows: np.ndarray) -> None:
    """rows = 127 * numbers / largest, where |numbers| <= largest < 2**30; by one division."""
    inverse = ((LARGEST << 32) + (largest >> 1)) // largest if largest else 0
    for k in range(len(numbers)):
        rows[k] = (int(numbers[k]) * inverse + (1 << 31)) >> 32


@numba.njit(nogil=True, cache=True)
def normalise(residual: np.ndarray, epsilon: int, rows: np.ndarray, scales: np.ndarray) -> None:
    """RMSNorm (Zhang and Sennrich 2019) without weights: int8 rows, and their scales in SCALE_BITS.

    Args:
        residual: int32[n, dim].
        epsilon: added to the mean square.
        rows: float32[n, dim], written; integers from -127 to 127.
        scales: int64[n], written; the largest number of each row over its root mean square.
    """
    n, dim = residual.shape
    for i in range(n):
        squares, largest = 0, 0
        for k in range(dim):
            x = int(residual[i, k])
            squares += x * x
            largest = max(largest, abs(x))
        scales[i] = (largest << SCALE_BITS) // integer_sqrt(squares // dim + epsilon)
        _to_int8(residual[i], largest, rows[i])


@numba.njit(nogil=True, cache=True)
def scale_rows(numbers: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
    """int32[n, width] as int8 rows; the scale of each is its largest number."""
    for i in range(len(numbers)):
        largest = 0
        for k in range(numbers.shape[1]):
            largest = max(largest, abs(int(numbers[i, k])))
        scales[i] = largest
        _to_int8(numbers[i], largest, rows[i])


@numba.njit(nogil=True, cache=True)
def activate(
    products: np.ndarray, scales: np.ndarray, multipliers: np.ndarray, shift: int, activations: np.ndarray
) -> None:
    """Products float32[n, outputs] as activations int16[n, outputs]; saturates."""
    half = 1 << (shift - 1)
    for i in range(len(products)):
        for m in range(products.shape[1]):
            x = (int(products[i, m]) * (scales[i] * int(multipliers[m])) + half) >> shift
            activations[i, m] = min(max(x, -LARGEST_ACTIVATION), LARGEST_ACTIVATION)


@numba.njit(nogil=True, cache=True)
def add(products: np.ndarray, scales: np.ndarray, multipliers: np.ndarray, shift: int, residual: np.ndarray) -> None:
    """Add products float32[n, dim] to the residual stream int32[n, dim]; saturates."""
    half = 1 << (shift - 1)
    for i in range(len(products)):
        for m in range(products.shape[1]):
            x = (int(products[i, m]) * (scales[i] * int(multipliers[m])) + half) >> shift
            residual[i, m] = min(max(residual[i, m] + x, -LARGEST_RESIDUAL), LARGEST_RESIDUAL)


@numba.njit(nogil=True, cache=True)
def rotate(heads: np.ndarray, positions: np.ndarray, cosines: np.ndarray, sines: np.ndarray, width: int) -> None:
    """Turn the first `width` numbers of every row, heads side by side, by their rotary angles, in place; saturates.

    Args:
        heads: int16[n, at least width].
        positions: integers[n].
        cosines, sines: int16[positions, head_dim / 2]; number i of a head turns with number i + head_dim / 2.
    """
    pairs = cosines.shape[1]
    half = 1 << (ROTATION_BITS - 1)
    for i in range(len(heads)):
        place = positions[i]
        for start in range(0, width, 2 * pairs):
            for k in range(pairs):
                cosine, sine = int(cosines[place, k]), int(sines[place, k])
                a, b = int(heads[i, start + k]), int(heads[i, start + pairs + k])
                x = (a * cosine - b * sine + half) >> ROTATION_BITS
                y = (b * cosine + a * sine + half) >> ROTATION_BITS
                heads[i, start + k] = min(max(x, -LARGEST_ACTIVATION), LARGEST_ACTIVATION)
                heads[i, start + pairs + k] = min(max(y, -LARGEST_ACTIVATION), LARGEST_ACTIVATION)


@numba.njit(nogil=True, cache=True)
def attend(
    queries: np.ndarray,
    first: int,
    parents: np.ndarray,
    positions: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    heads: int,
    multiplier: int,
    exp2: np.ndarray,
    out: np.ndarray,
) -> None:
    """What each node takes from itself and its ancestors, with weights 2**(score - largest score).

    Args:
        queries: int16[n, heads * head_dim or more].
        first: the node of the first row; the others follow it.
        parents: int32[all nodes]; -1 at a root.
        positions: integers[n]; ancestors of each node.
        keys, values: int16[all nodes, key heads * head_dim].
        multiplier: takes a product of query and key to a score to the base 2, in 16 bits.
        exp2: int32[256].
        out: int32[n, heads * head_dim], written, in SCALE_BITS.
    """
    head_dim = out.shape[1] // heads
    group = heads * head_dim // keys.shape[1]
    most = positions.max() + 1
    path, weights = np.empty(most, np.int64), np.empty(most, np.int64)
    total_values = np.empty(head_dim, np.int64)
    half = 1 << (_DOT_SHIFT - 1)
    for i in range(len(out)):
        length, node = positions[i] + 1, first + i
        for j in range(length):
            path[j] = node
            node = parents[node]
        for head in range(heads):
            q, k = head * head_dim, head // group * head_dim
            best = -(1 << 62)
            for j in range(length):
                dot = 0
                for e in range(head_dim):
                    dot += int(queries[i, q + e]) * int(keys[path[j], k + e])
                weights[j] = (dot * multiplier + half) >> _DOT_SHIFT
                best = max(best, weights[j])
            total = 0
            total_values[:] = 0
            for j in range(length):
                weight = _power(best - weights[j], exp2)
                total += weight
                for e in range(head_dim):
                    total_values[e] += weight * int(values[path[j], k + e])
            for e in range(head_dim):
                out[i, q + e] = ((total_values[e] << _ATTENTION_SHIFT) + (total >> 1)) // total


@numba.njit(nogil=True, cache=True)
def _power(below: int, exp2: np.ndarray) -> int:
    """2**(30 - below / 256), for below >= 0; 0 where that is less than 1."""
    whole = below >> LOG2_BITS
    return int(exp2[below & _LOG2_MASK]) >> whole if whole <= WEIGHT_BITS else 0


@numba.njit(nogil=True, cache=True)
def gate(gates_and_inputs: np.ndarray, sigmoid: np.ndarray, out: np.ndarray) -> None:
    """SwiGLU (Shazeer 2020): gate * sigmoid(gate) * input, in HIDDEN_BITS.

    Args:
        gates_and_inputs: int16[n, 2 * width], the gates first.
        sigmoid: uint16[8192], of gates of 0 and more; sigmoid(-x) = 1 - sigmoid(x).
        out: int32[n, width], written; below 2**22.
    """
    n, width = out.shape
    for i in range(n):
        for m in range(width):
            x, y = int(gates_and_inputs[i, m]), int(gates_and_inputs[i, width + m])
            share = int(sigmoid[min(abs(x) >> 1, SIGMOID_ENTRIES - 1)])
            share = share if x >= 0 else (1 << SIGMOID_BITS) - share
            out[i, m] = (x * share * y + (1 << (_GATED_SHIFT - 1))) >> _GATED_SHIFT


@numba.njit(nogil=True, cache=True)
def byte_frequencies(
    products: np.ndarray,
    scales: np.ndarray,
    multipliers: np.ndarray,
    shift: int,
    exp2: np.ndarray,
    precision: int,
    out: np.ndarray,
) -> None:
    """Products float32[n, 256] of the head as frequencies uint32[n, 256], as `byte_model.quantise` shares them out.

    Each byte gets 1 and its part of 2**precision - 256, rounded down; the most probable gets what is left.
    """
    half = 1 << (shift - 1)
    shared = (1 << precision) - 256
    weights = np.empty(256, np.int64)
    for i in range(len(products)):
        best = -(1 << 62)
        for m in range(256):
            weights[m] = (int(products[i, m]) * (scales[i] * int(multipliers[m])) + half) >> shift
            best = max(best, weights[m])
        first, total = -1, 0
        for m in range(256):
            if first < 0 and weights[m] == best:
                first = m
            weights[m] = _power(best - weights[m], exp2)
            total += weights[m]
        left = shared
        for m in range(256):
            share = weights[m] * shared // total
            out[i, m] = 1 + share
            left -= share
        out[i, first] += left
