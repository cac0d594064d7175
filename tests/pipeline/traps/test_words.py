import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.pipeline.traps.words import PRIOR, WordModel

TEXTS = ["a b a b a c", "  b\tc d\n", "", "d", "a b rare e\u0301 👩\u200d👧"]


def probabilities(texts: list[str], kept: int) -> tuple[list[str], dict[tuple[str, str], float], dict[str, float]]:
    """P(w | v) and P(w) by counting, "?" being the unknown word."""
    counts = Counter(word for text in texts for word in text.split())
    words = sorted(counts, key=lambda word: (-counts[word], word.encode()))[:kept]
    documents = [[word if word in words else "?" for word in text.split()] for text in texts]
    counts = Counter(word for document in documents for word in document)
    pairs = Counter(pair for document in documents for pair in pairwise(document))
    firsts = Counter(pair[0] for pair in pairs.elements())
    alone = {w: (counts[w] + 1) / (counts.total() + len(words) + 1) for w in [*words, "?"]}
    behind = {(v, w): (pairs[v, w] + PRIOR * alone[w]) / (firsts[v] + PRIOR) for v in alone for w in alone}
    return words, behind, alone


@pytest.mark.parametrize("kept", [2, 4, 100])
def test_perplexity_is_the_stated_formula(kept: int) -> None:
    model = WordModel([pa.array(TEXTS[:2], pa.large_string()), pa.array(TEXTS[2:], pa.large_string())], kept)
    words, behind, alone = probabilities(TEXTS, kept)
    assert model.words == words
    for text in ("a b a", "d", "c unheard a", "rare b b", "d d d d"):
        known = [word if word in words else "?" for word in text.split()]
        logs = [math.log(alone[known[0]]), *(math.log(behind[pair]) for pair in pairwise(known))]
        assert model.perplexity(text) == pytest.approx(math.exp(-sum(logs) / len(logs)))


def test_probabilities_of_what_follows_add_up_to_one() -> None:
    _, behind, alone = probabilities(TEXTS, 4)
    for first in alone:
        assert sum(behind[first, word] for word in alone) == pytest.approx(1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_words_follow_each_other_as_often_as_the_tempered_probabilities_say(temperature: float) -> None:
    model = WordModel([pa.array(TEXTS, pa.large_string())], 5)
    words, behind, _ = probabilities(TEXTS, 5)
    texts = model.write(40, 2000, temperature, np.random.default_rng(0))
    seen = Counter(pair for text in texts for pair in pairwise(text.split(" ")))
    for first in words:
        weights = {word: behind[first, word] ** (1 / temperature) for word in words}
        drawn = sum(seen[first, word] for word in words)
        assert drawn > 500
        for word in words:
            assert seen[first, word] / drawn == pytest.approx(weights[word] / sum(weights.values()), abs=0.04)


def test_a_reference_of_one_word_is_refused() -> None:
    with pytest.raises(UserError, match="1 different words"):
        WordModel([pa.array(["a a a"], pa.large_string())], 10)


def test_an_empty_reference_is_refused() -> None:
    with pytest.raises(UserError, match="0 different words"):
        WordModel([pa.array(["", " \n"], pa.large_string())], 10)
