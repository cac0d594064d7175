"""A small transformer that predicts bytes in integers alone, so that encoder and decoder agree on every machine.

Floats appear in one place, and hold integers there: the matrix products are float32 BLAS calls whose sums stay below
2**24, so each is exact in whatever order it is added up (compress.integer_weights). All else is int64 arithmetic
(compress.integer_kernels), row by row. So the frequencies after a context do not depend on the batch it comes in, on
what was computed before, on threads, or on the machine.

Contexts share their prefixes: they are nodes of a tree, each with its keys and values, computed once.

    contexts  "th", "the", "to"        nodes  (start) - t - h - e
                                                          \\ o
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np

from seqmill.compress.byte_model import BYTE_VALUES, LEAST_PRECISION, MOST_PRECISION
from seqmill.compress.integer_kernels import (
    activate,
    add,
    attend,
    byte_frequencies,
    gate,
    normalise,
    rotate,
    scale_rows,
)
from seqmill.compress.integer_weights import LARGEST, MOST_INPUTS, IntegerWeights, read_weights
from seqmill.errors import UserError

_START = BYTE_VALUES  # row of the embedding
_ALGORITHM = 1  # part of the fingerprint: a change of any rounding is another model


class IntegerTransformer:
    """A ByteModel: frequencies of the next byte by a decoder with integer weights. Threads may share one."""

    def __init__(
        self, weights: IntegerWeights, precision: int = 14, cache_bytes: int = 1 << 28, rows_per_pass: int = 1024
    ) -> None:
        """Get ready to run.

        Args:
            precision: the frequencies after every context add up to 2**precision.
            cache_bytes: for keys, values and results of contexts that later ones may extend.
            rows_per_pass: tokens that go through the layers together; changes speed and memory, never a frequency.

        Raises:
            UserError: the precision is impossible, or this machine's BLAS does not add up integers exactly.
        """
        if not LEAST_PRECISION <= precision <= MOST_PRECISION:
            raise UserError(f"precision = {precision} bits: choose between {LEAST_PRECISION} and {MOST_PRECISION}")
        require_exact_products()
        self.weights = weights
        self._precision = precision
        self._rows = rows_per_pass
        self._matrices = {name: _Matrix(weights.tensors, name) for name in weights.shape.matrices()}
        self._tree = _Tree(weights, cache_bytes)
        self._lock = Lock()

    @classmethod
    def open(cls, path: Path | str, precision: int = 14) -> "IntegerTransformer":
        """The model in a file that `seqmill.models.export_integers` wrote.

        Raises:
            UserError: the file is missing, damaged or something else.
        """
        return cls(read_weights(Path(path)), precision)

    @property
    def precision(self) -> int:
        """The frequencies after every context add up to 2**precision."""
        return self._precision

    @property
    def fingerprint(self) -> str:
        """A hash of the weights, the precision and the way of computing."""
        return hashlib.sha256(f"{_ALGORITHM} {self.weights.fingerprint} {self._precision}".encode()).hexdigest()

    @property
    def longest_context(self) -> int:
        """Bytes that the model can see."""
        return self.weights.shape.positions - 1

    def frequencies(self, contexts: Sequence[bytes]) -> np.ndarray:
        """uint32[contexts, 256]: the frequency of every next byte after each context, all 1 or more.

        Of a context longer than `longest_context` the first bytes are not seen. They go by blocks of half of what the
        model sees, so that several longer contexts share their prefixes too:

            longest_context 8, context of 8 bytes: all 8; of 9 to 12 bytes: the last 5 to 8; of 13: the last 5
        """
        out = np.empty((len(contexts), BYTE_VALUES), np.uint32)
        seen = [self._seen(context) for context in contexts]
        done = 0
        with self._lock:
            while done < len(seen):
                nodes = self._tree.insert(seen[done:])
                self._compute_new()
                self._predict(nodes, out[done : done + len(nodes)])
                done += len(nodes)
                if done < len(seen):
                    self._tree.clear()
        return out

    def _seen(self, context: bytes) -> bytes:
        excess = len(context) - self.longest_context
        block = max(1, self.longest_context // 2)
        return context[-(-excess // block) * block :] if excess > 0 else context

    def _compute_new(self) -> None:
        """Keys, values and results of the nodes that have none yet; parents come before their children."""
        tree = self._tree
        while tree.computed < tree.used:
            nodes = slice(tree.computed, min(tree.computed + self._rows, tree.used))
            self._run(nodes)
            tree.computed = nodes.stop

    def _run(self, nodes: slice) -> None:
        """All layers for nodes whose ancestors are among them or computed."""
        tree, shape, tensors = self._tree, self.weights.shape, self.weights.tensors
        epsilon, multiplier = int(tensors["epsilon"][0]), int(tensors["score_multiplier"][0])
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        positions = tree.positions[nodes]
        residual = tensors["embedding"][tree.tokens[nodes]]
        qkv = np.empty((len(residual), queries + 2 * keys), np.int16)
        attended = np.empty((len(residual), queries), np.int32)
        gates = np.empty((len(residual), 2 * shape.ffn_dim), np.int16)
        hidden = np.empty((len(residual), shape.ffn_dim), np.int32)
        for layer in range(shape.layers):
            matrix = self._matrices[f"{layer}.qkv"]
            activate(*matrix.times(*_normalised(residual, epsilon)), qkv)
            rotate(qkv, positions, tensors["cosines"], tensors["sines"], queries + keys)
            tree.keys[layer, nodes] = qkv[:, queries : queries + keys]
            tree.values[layer, nodes] = qkv[:, queries + keys :]
            past = (tree.parents, positions, tree.keys[layer], tree.values[layer])
            attend(qkv, nodes.start, *past, shape.heads, multiplier, tensors["exp2"], attended)
            add(*self._matrices[f"{layer}.attention_out"].times(*_scaled(attended)), residual)
            activate(*self._matrices[f"{layer}.gate_up"].times(*_normalised(residual, epsilon)), gates)
            gate(gates, tensors["sigmoid"], hidden)
            add(*self._matrices[f"{layer}.down"].times(*_scaled(hidden)), residual)
        tree.results[nodes] = residual

    def _predict(self, nodes: np.ndarray, out: np.ndarray) -> None:
        """The head: frequencies uint32[nodes, 256] from the nodes' results."""
        tensors = self.weights.tensors
        for first in range(0, len(nodes), self._rows):
            some = slice(first, first + self._rows)
            rows = _normalised(self._tree.results[nodes[some]], int(tensors["epsilon"][0]))
            byte_frequencies(*self._matrices["head"].times(*rows), tensors["exp2"], self._precision, out[some])


class _Matrix:
    """A matrix of int8, held as float32 for BLAS."""

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str) -> None:
        self.columns = np.ascontiguousarray(tensors[name].T.astype(np.float32))
        self.multipliers = tensors[f"{name}.multipliers"]
        self.shift = int(tensors[f"{name}.shift"][0])

    def times(self, rows: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The exact products float32[n, outputs], and with what they are to be multiplied and shifted."""
        return rows @ self.columns, scales, self.multipliers, self.shift


class _Tree:
    """Nodes of contexts, numbered as they come: every parent before its children."""

    def __init__(self, weights: IntegerWeights, cache_bytes: int) -> None:
        shape = weights.shape
        width = shape.kv_heads * shape.head_dim
        per_node = shape.layers * 2 * width * 2 + shape.dim * 4 + 8
        nodes = max(shape.positions, cache_bytes // per_node)
        self.keys = np.empty((shape.layers, nodes, width), np.int16)  # pages are taken as nodes come
        self.values = np.empty((shape.layers, nodes, width), np.int16)
        self.results = np.empty((nodes, shape.dim), np.int32)  # the residual stream behind the last layer
        self.parents = np.empty(nodes, np.int32)
        self.positions = np.empty(nodes, np.int16)
        self.tokens = np.empty(nodes, np.int16)
        self.clear()

    def clear(self) -> None:
        """Forget all nodes."""
        self._nodes: dict[bytes, int] = {}
        self.used = 0  # nodes
        self.computed = 0  # the first so many nodes have keys, values and a result

    def insert(self, contexts: Sequence[bytes]) -> np.ndarray:
        """The nodes of the first contexts, as many as there is room for: int64[1 or more]; prefixes come in as well."""
        found: list[int] = []
        for context in contexts:
            known = len(context)
            while known >= 0 and context[:known] not in self._nodes:
                known -= 1
            if self.used + len(context) - known > len(self.parents):
                if found:
                    break
                self.clear()
                known = -1
            node = self._nodes[context[:known]] if known >= 0 else -1
            for length in range(known + 1, len(context) + 1):
                node = self._append(context[:length], node)
            found.append(node)
        return np.array(found, np.int64)

    def _append(self, context: bytes, parent: int) -> int:
        node = self.used
        self._nodes[context] = node
        self.parents[node] = parent
        self.positions[node] = len(context)
        self.tokens[node] = context[-1] if context else _START
        self.used += 1
        return node


def _normalised(residual: np.ndarray, epsilon: int) -> tuple[np.ndarray, np.ndarray]:
    rows, scales = np.empty(residual.shape, np.float32), np.empty(len(residual), np.int64)
    normalise(residual, epsilon, rows, scales)
    return rows, scales


def _scaled(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, scales = np.empty(numbers.shape, np.float32), np.empty(len(numbers), np.int64)
    scale_rows(numbers, rows, scales)
    return rows, scales


@cache
def require_exact_products(multiply: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul) -> None:
    """Multiply the largest integers that may occur and compare with integer arithmetic.

    Raises:
        UserError: float32 products are rounded here (a BLAS that was told to compute in bfloat16 or TF32).
    """
    odd = 2 * (np.arange(MOST_INPUTS * 8).reshape(8, MOST_INPUTS) * 7919 % LARGEST) - LARGEST
    rows = np.concatenate([np.full((1, MOST_INPUTS), LARGEST), odd])
    if not np.array_equal(multiply(rows.astype(np.float32), rows.T.astype(np.float32)), rows @ rows.T):
        raise UserError(
            "the matrix library of this numpy rounds float32 products of small integers, so frequencies would differ "
            "between machines; turn its reduced precision off (such as BLAS in bfloat16), or install numpy from PyPI"
        )
