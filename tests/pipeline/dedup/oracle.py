"""Slow, obvious versions of what the dedup kernels do, in plain Python."""

import unicodedata

import numpy as np
import scipy.sparse

from seqmill.pipeline.dedup.characters import UNSPACED_BLOCKS

MASK = (1 << 64) - 1


def words(text: str) -> list[str]:
    found: list[str] = []
    inside = False
    for character in text:
        is_word = character == "_" or unicodedata.category(character)[0] in "LMN"
        if is_word and any(first <= ord(character) <= last for first, last in UNSPACED_BLOCKS):
            found.append(character)
            inside = False
        elif is_word:
            lower = "σ" if character in "ςΣ" else character.lower()[0]
            found[-1:] = [found[-1] + lower] if inside else [*found[-1:], lower]
            inside = True
        else:
            inside = False
    return found


def fold(character: str) -> str:
    if character != "_" and unicodedata.category(character)[0] not in "LMN":
        return character
    return "σ" if character in "ςΣ" else character.lower()[0]


def shingles(text: str, ngram: int) -> list[tuple[str, ...]]:
    found = words(text)
    if len(found) < ngram:
        found = [fold(character) for character in text if not character.isspace()]
    if not found:
        return []
    width = min(ngram, len(found))
    return [tuple(found[k : k + width]) for k in range(len(found) - width + 1)]


def jaccard(a: str, b: str, ngram: int) -> float:
    left, right = set(shingles(a, ngram)), set(shingles(b, ngram))
    return len(left & right) / len(left | right) if left | right else 0.0


def all_similarities(texts: list[str], ngram: int) -> np.ndarray:
    """float64[texts, texts]: the Jaccard similarity of every pair, by a product of sparse matrices."""
    sets = [sorted(set(shingles(text, ngram))) for text in texts]
    numbers: dict[tuple[str, ...], int] = {}
    columns = [numbers.setdefault(shingle, len(numbers)) for one in sets for shingle in one]
    bounds = np.cumsum([0, *map(len, sets)])
    matrix = scipy.sparse.csr_array((np.ones(len(columns)), columns, bounds), shape=(len(sets), len(numbers)))
    shared = (matrix @ matrix.T).toarray()
    sizes = np.diff(bounds)
    return shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_word(word: str, alone: bool) -> int:
    value = 0x243F6A8885A308D3
    for character in word:
        value = ((value ^ ord(character)) * 0x9E3779B97F4A7C15) & MASK
        if not alone:
            value ^= value >> 29
    return mix(value)


def is_unspaced(word: str) -> bool:
    return len(word) == 1 and any(first <= ord(word) <= last for first, last in UNSPACED_BLOCKS)


def hash_shingle(shingle: tuple[str, ...], characters: bool) -> int:
    value = 0
    for word in shingle:
        value = (value * 0x9E3779B97F4A7C15 + hash_word(word, characters or is_unspaced(word))) & MASK
    return mix(value)


def shingle_hashes(text: str, ngram: int) -> list[int]:
    characters = len(words(text)) < ngram
    return [hash_shingle(shingle, characters) for shingle in shingles(text, ngram)]


def signature(text: str, ngram: int, multipliers: list[int], addends: list[int]) -> list[int]:
    keys = [key >> 32 for key in shingle_hashes(text, ngram)]
    return [
        min(((a * key + b) % 2**32 for key in keys), default=2**32 - 1)
        for a, b in zip(multipliers, addends, strict=True)
    ]


def leaders(cluster: list[set[int]], is_held: list[bool], threshold: float, containment: float) -> list[int]:
    """For each member in survivor order, the earlier kept member that is similar enough or holds it, or itself."""
    kept: list[int] = []
    chosen = []
    for m, mine in enumerate(cluster):
        similar = [
            k
            for k in kept
            if (mine | cluster[k] and len(mine & cluster[k]) / len(mine | cluster[k]) >= threshold)
            or (mine and len(mine & cluster[k]) / len(mine) >= containment)
        ]
        chosen.append(similar[0] if similar and not is_held[m] else m)
        kept += [m] if chosen[-1] == m else []
    return chosen


def contained(text: str, held: list[str], ngram: int) -> tuple[int, float]:
    """The first held text of which `text` holds the largest share of runs of words, and the share."""
    mine, best = set(runs(text, ngram)), (-1, 0.0)
    for k, other in enumerate(held):
        theirs = set(runs(other, ngram))
        share = len(mine & theirs) / len(theirs) if theirs else 0.0
        best = (k, share) if share > best[1] else best
    return best


def runs(text: str, ngram: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[k : k + ngram]) for k in range(len(found) - ngram + 1)]
