import heapq
import math

import numpy as np
import pytest

from seqmill.compress.builders.topn import BIT, bits_of_frequencies, topn
from seqmill.compress.ngram_model import ngram_model
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel


@pytest.mark.parametrize("precision", [8, 14, 16])
def test_costs_are_the_logarithms_of_probabilities(precision: int) -> None:
    found = bits_of_frequencies(precision)
    exact = [precision - math.log2(frequency) for frequency in range(1, (1 << precision) + 1)]
    assert np.abs(found[1:] / BIT - exact).max() < 2 / BIT
    assert (np.diff(found[1:]) <= 0).all()
    assert found[-1] == 0


def plain_topn(model: TreeModel, size: int) -> set[bytes]:
    """The single bytes, and the cheapest longer strings, one at a time."""
    bits = bits_of_frequencies(model.precision)
    heap = [(0, b"")]
    found: list[bytes] = []
    while len(found) < size - 256:
        cost, string = heapq.heappop(heap)
        if len(string) > 1:
            found.append(string)
        row = bits[model.frequencies([string])[0]]
        for byte in range(256):
            heapq.heappush(heap, (cost + int(row[byte]), string + bytes([byte])))
    return {bytes([byte]) for byte in range(256)} | set(found)


@pytest.mark.parametrize(("window", "specials"), [(9, 0), (10, 3), (11, 0)])
def test_the_strings_are_those_that_taking_the_cheapest_one_by_one_finds(
    window: int, specials: int, texts: Texts
) -> None:
    model = ngram_model(texts, order=3, nodes=20_000, precision=9)
    table = topn(model, window, specials)
    assert len(table) == (1 << window) - specials
    assert set(table.strings()) == plain_topn(model, len(table))


def test_the_model_is_asked_about_few_more_contexts_than_there_are_strings(texts: Texts) -> None:
    class Counting:
        precision, fingerprint, asked = 12, "", 0

        def frequencies(self, contexts: list[bytes]) -> np.ndarray:
            self.asked += len(contexts)
            return plain.frequencies(contexts)

    plain, model = ngram_model(texts, order=3, precision=12), Counting()
    topn(model, 14)
    assert model.asked < 1.5 * 2**14
