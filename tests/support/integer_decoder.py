"""A decoder with integer weights in Python's own integers: no array arithmetic, no batches, no cache, no overflow."""

import math

from seqmill.compress.integer_weights import IntegerWeights

Numbers = list[int]


def rounded(x: int, bits: int) -> int:
    return (x + (1 << (bits - 1))) >> bits


def clipped(x: int, most: int) -> int:
    return max(-most, min(most, x))


class PlainDecoder:
    def __init__(self, weights: IntegerWeights) -> None:
        self.shape = weights.shape
        self.tensors = {name: tensor.tolist() for name, tensor in weights.tensors.items()}

    def frequencies(self, context: bytes, precision: int) -> Numbers:
        """The frequencies of the byte after a context that the model sees as a whole."""
        stream = [list(self.tensors["embedding"][token]) for token in (256, *context)]
        for layer in range(self.shape.layers):
            self._attend(layer, stream)
            for x in stream:
                self._feed_forward(layer, x)
        exponents = self._product("head", *self._norm(stream[-1]))
        weights = [self._power(max(exponents) - exponent) for exponent in exponents]
        shared = (1 << precision) - 256
        found = [1 + weight * shared // sum(weights) for weight in weights]
        found[exponents.index(max(exponents))] += (1 << precision) - sum(found)
        return found

    def _attend(self, layer: int, stream: list[Numbers]) -> None:
        width, shape = self.shape.head_dim, self.shape
        queries, keys, values = [], [], []
        for position, x in enumerate(stream):
            qkv = [clipped(y, 2**15 - 1) for y in self._product(f"{layer}.qkv", *self._norm(x))]
            heads = [qkv[first : first + width] for first in range(0, len(qkv), width)]
            rotated = [self._rotated(head, position) for head in heads[: shape.heads + shape.kv_heads]]
            queries.append(rotated[: shape.heads])
            keys.append(rotated[shape.heads :])
            values.append(heads[shape.heads + shape.kv_heads :])
        multiplier = self.tensors["score_multiplier"][0]
        for position, x in enumerate(stream):
            out: Numbers = []
            for head in range(shape.heads):
                group = head // (shape.heads // shape.kv_heads)
                past = range(position + 1)
                dots = [self._dot(queries[position][head], keys[j][group]) for j in past]
                scores = [rounded(dot * multiplier, 28) for dot in dots]
                weights = [self._power(max(scores) - score) for score in scores]
                total = sum(weights)
                for e in range(width):
                    taken = sum(weights[j] * values[j][group][e] for j in past)
                    out.append(((taken << 6) + (total >> 1)) // total)
            self._add(f"{layer}.attention_out", out, x)

    def _feed_forward(self, layer: int, x: Numbers) -> None:
        both = [clipped(y, 2**15 - 1) for y in self._product(f"{layer}.gate_up", *self._norm(x))]
        hidden = []
        for gate, up in zip(both[: self.shape.ffn_dim], both[self.shape.ffn_dim :], strict=True):
            share = self.tensors["sigmoid"][min(abs(gate) >> 1, 8191)]
            hidden.append(rounded(gate * (share if gate >= 0 else 2**15 - share) * up, 23))
        self._add(f"{layer}.down", hidden, x)

    def _add(self, name: str, numbers: Numbers, x: Numbers) -> None:
        largest = max(map(abs, numbers))
        for k, y in enumerate(self._product(name, self._int8(numbers, largest), largest)):
            x[k] = clipped(x[k] + y, 2**26 - 1)

    def _norm(self, x: Numbers) -> tuple[Numbers, int]:
        root = math.isqrt(sum(y * y for y in x) // len(x) + self.tensors["epsilon"][0])
        largest = max(map(abs, x))
        return self._int8(x, largest), (largest << 16) // root

    def _int8(self, numbers: Numbers, largest: int) -> Numbers:
        inverse = ((127 << 32) + (largest >> 1)) // largest if largest else 0
        rows = [rounded(x * inverse, 32) for x in numbers]
        assert all(-127 <= x <= 127 for x in rows)
        return rows

    def _product(self, name: str, rows: Numbers, scale: int) -> Numbers:
        shift = self.tensors[f"{name}.shift"][0]
        found = []
        for weights, multiplier in zip(self.tensors[name], self.tensors[f"{name}.multipliers"], strict=True):
            product = self._dot(weights, rows) * scale * multiplier
            assert abs(product) + (1 << (shift - 1)) < 2**63
            found.append(rounded(product, shift))
        return found

    def _rotated(self, head: Numbers, position: int) -> Numbers:
        pairs = self.shape.head_dim // 2
        turned = [0] * (2 * pairs)
        for k in range(pairs):
            cosine, sine = self.tensors["cosines"][position][k], self.tensors["sines"][position][k]
            a, b = head[k], head[k + pairs]
            turned[k] = clipped(rounded(a * cosine - b * sine, 14), 2**15 - 1)
            turned[k + pairs] = clipped(rounded(b * cosine + a * sine, 14), 2**15 - 1)
        return turned

    def _power(self, below: int) -> int:
        return self.tensors["exp2"][below & 255] >> (below >> 8)

    @staticmethod
    def _dot(a: Numbers, b: Numbers) -> int:
        return sum(x * y for x, y in zip(a, b, strict=True))
