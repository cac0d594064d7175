"""Pairs of texts whose Jaccard similarity of word 5-grams is known exactly, because it is built and then counted.

A text of m distinct shingles, of which c are changed, has similarity (m - c) / (m + c) with the changed one. A changed
word far from others and from the ends changes 5 shingles, and a run of n changed words n + 4. For m = 296 and 0.8,
c = 33: five words, and a sixth place with a run of 4.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence

NGRAM = 5
WORDS = 300  # in a text
TOLERANCE = 0.005
APART = 2 * NGRAM  # words between two changed places, so that no shingle spans both and runs have room
LETTERS = re.compile(r"\b[a-z]+\b")

Words = list[str]


def passages(texts: Iterable[str], words: int = WORDS) -> list[Words]:
    """Disjoint passages of real texts in which no 5-gram repeats, of words of ASCII letters in lower case: what every
    normaliser leaves alone."""
    found = []
    for text in texts:
        all_words = LETTERS.findall(text.lower())
        cut = (all_words[k : k + words] for k in range(0, len(all_words) - words + 1, words))
        found.extend(passage for passage in cut if len(shingle_set(passage)) == words - NGRAM + 1)
    return found


def shingle_set(words: Sequence[str]) -> set[tuple[str, ...]]:
    """The distinct 5-grams."""
    return {tuple(words[k : k + NGRAM]) for k in range(len(words) - NGRAM + 1)}


def jaccard(a: Sequence[str], b: Sequence[str]) -> float:
    """Exact similarity of the sets of 5-grams of two sequences of words."""
    first, second = shingle_set(a), shingle_set(b)
    return len(first & second) / len(first | second)


def changed(words: Words, similarity: float, vocabulary: Sequence[str], draw: random.Random) -> Words:
    """A passage with as many words replaced as should bring it to `similarity`, of 0.6 to 0.9; a word that comes in may
    make a 5-gram that was there, so the caller counts."""
    shingles = len(words) - NGRAM + 1
    places, longer = divmod(round(shingles * (1 - similarity) / (1 + similarity)), NGRAM)
    room = len(words) - 2 * NGRAM - (places - 1) * APART
    starts = [NGRAM + spot + k * APART for k, spot in enumerate(sorted(draw.choices(range(room), k=places)))]
    copy = list(words)
    for start, length in zip(starts, (1 + longer, *[1] * (places - 1)), strict=True):
        copy[start : start + length] = draw.choices(vocabulary, k=length)
    return copy


def pairs(sources: Sequence[Words], similarity: float, count: int, seed: int) -> Iterator[tuple[str, str, float]]:
    """`count` times (text, changed text, exact similarity within TOLERANCE of `similarity`), from passages in turn.

    Raises:
        ValueError: the passages do not allow it, after 20 tries for each pair wanted.
    """
    draw = random.Random(f"{seed} {similarity}")
    vocabulary = sorted({word for words in sources for word in words})
    made = 0
    for attempt in range(20 * count):
        words = sources[attempt % len(sources)]
        other = changed(words, similarity, vocabulary, draw)
        exact = jaccard(words, other)
        if abs(exact - similarity) <= TOLERANCE:
            yield " ".join(words), " ".join(other), exact
            made += 1
            if made == count:
                return
    raise ValueError(f"only {made} of {count} pairs of similarity {similarity} can be made of {len(sources)} passages")
