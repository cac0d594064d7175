"""Texts by what they have in common, as compressors see it: normalized compression distance, and nearest neighbours.

    NCD(x, y) = (C(x + separator + y) - min(C(x), C(y))) / max(C(x), C(y))

with C the compressed length (Li et al. 2004, "The similarity metric"): near 0 if y tells nothing new behind x, near 1
if x does not help with y. Nearest neighbours by it classify texts without training (Jiang et al. 2023, arXiv
2212.09410).

C may be anything that gives numbers to texts, so also what a tokenizer makes of them: `id_counts` counts ids,
`id_entropies` takes the ids at the entropy of their frequencies. A tokenizer that learns nothing from x while it
encodes y needs about C(x) + C(y) ids for both, whatever they share: counting its ids tells nothing. The entropy of ids
falls if x and y use the same ones.

Ties are broken by rule, so results do not depend on order of work: of equal distances the earlier training text is
nearer; of classes with equally many neighbours the one whose nearest neighbour is nearest wins.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.compress.byte_compressors import byte_compressor
from seqmill.compress.metrics import unigram_entropy
from seqmill.errors import UserError

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
CHUNK = 64  # texts that a thread measures at a time

Lengths = Callable[[Sequence[bytes]], Float64s]  # texts to float64[texts]: how long each is when compressed


def compressed_lengths(name: str) -> Lengths:
    """C by a general-purpose compressor, bytes each; see `byte_compressors`."""
    return lengths_of(byte_compressor(name).compress)


def lengths_of(compress: Callable[[bytes], bytes]) -> Lengths:
    """C by any function that compresses."""
    return lambda texts: np.fromiter((len(compress(text)) for text in texts), np.float64, len(texts))


def id_counts(encode: Callable[[pa.Array], pa.ListArray]) -> Lengths:
    """C by a tokenizer: how many ids each text has."""
    return lambda texts: np.diff(encode(pa.array(texts, pa.large_binary())).offsets.to_numpy()).astype(np.float64)


def id_entropies(encode: Callable[[pa.Array], pa.ListArray]) -> Lengths:
    """C by a tokenizer: bits of each text's ids at the entropy of their own frequencies in it."""

    def lengths(texts: Sequence[bytes]) -> Float64s:
        lists = encode(pa.array(texts, pa.large_binary()))
        ids, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
        bits = np.zeros(len(texts))
        for text in range(len(texts)):
            own = ids[offsets[text] : offsets[text + 1]]
            bits[text] = len(own) * unigram_entropy(np.unique(own, return_counts=True)[1]) / math.log(2)
        return bits

    return lengths


COMPRESSORS: Mapping[str, Callable[[], Lengths]] = MappingProxyType(
    {
        name: lambda name=name: compressed_lengths(name)  # type: ignore[misc]
        for name in ("gzip:6", "zstd:3", "zstd:19", "xz:6", "bz2:9", "brotli:11")
    }
)


def distances(
    texts: Sequence[bytes], others: Sequence[bytes], lengths: Lengths, separator: bytes = b" ", threads: int = 1
) -> Float64s:
    """NCD of every text and every other one: float64[texts, others]. Not symmetric: the text stands in front.

    Every C(x) is computed once. Two texts that both have a length of 0 are at distance 0.

    Args:
        separator: between the two; Jiang et al. take a space.
        threads: that compress at the same time; worth it for compressors that release the GIL. The result is the same.
    """
    own, of_others = _of_all(texts, lengths, threads), _of_all(others, lengths, threads)
    with ThreadPoolExecutor(threads) as pool:
        rows = pool.map(lambda text: lengths([text + separator + other for other in others]), texts)
        both = np.array(list(rows), np.float64).reshape(len(texts), len(others))
    larger = np.maximum(own[:, None], of_others)
    excess = both - np.minimum(own[:, None], of_others)
    return np.divide(excess, larger, out=np.zeros_like(excess), where=larger > 0)


def _of_all(texts: Sequence[bytes], lengths: Lengths, threads: int) -> Float64s:
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate([np.empty(0), *pool.map(lengths, chunks)])


def nearest_classes(distance: Float64s, labels: Sequence[str], k: int) -> list[str]:
    """The class of every row by its k nearest neighbours.

    Args:
        distance: float64[texts, training texts].
        labels: of the training texts.
        k: neighbours that vote; see the module's rule for ties.

    Raises:
        UserError: there are fewer than k training texts.
    """
    if not 1 <= k <= len(labels):
        raise UserError(f"k = {k}: choose from 1 to the number of training texts, {len(labels)}")
    found = []
    for row in distance:
        neighbours = [labels[index] for index in np.argsort(row, kind="stable")[:k]]
        found.append(max(neighbours, key=lambda label: (neighbours.count(label), -neighbours.index(label))))
    return found


@dataclass(frozen=True, eq=False)
class Split:
    """Which texts are for training and which for testing: int64[...] positions, ascending."""

    train: Int64s
    test: Int64s


def split_by_group(labels: Sequence[str], groups: Sequence[str], test_share: float, seed: int) -> Split:
    """A seeded split in which every class is on both sides and no group is.

    Args:
        labels: the class of every text.
        groups: what must not be divided, such as the species of a strain; a group belongs to one class.
        test_share: of a class's groups that are for testing, rounded, at least one of them and never all.

    Raises:
        UserError: a class has but one group, or a group lies in two classes.
    """
    if not 0 < test_share < 1:
        raise UserError(f"test_share = {test_share}: choose between 0 and 1")
    class_of = dict(zip(groups, labels, strict=True))
    for label, group in zip(labels, groups, strict=True):
        if class_of[group] != label:
            raise UserError(
                f"group {group!r} lies in classes {class_of[group]!r} and {label!r}: it cannot be split off"
            )
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for label in sorted(set(labels)):
        own = sorted(group for group, its_label in class_of.items() if its_label == label)
        if len(own) < 2:
            raise UserError(f"class {label!r} has {len(own)} group: two are needed, one on each side; leave it out")
        count = min(max(1, round(test_share * len(own))), len(own) - 1)
        chosen |= {own[index] for index in rng.permutation(len(own))[:count]}
    is_test = np.array([group in chosen for group in groups], bool)
    return Split(np.flatnonzero(~is_test), np.flatnonzero(is_test))


@dataclass(frozen=True)
class Scores:
    """How well classes were told."""

    accuracy: float  # share of texts with the right class
    macro_f1: float  # mean over classes that are there or were guessed of 2 TP / (2 TP + FP + FN)


def score_classes(truth: Sequence[str], guessed: Sequence[str]) -> Scores:
    """Accuracy and macro F1.

    Raises:
        UserError: there is no text.
    """
    if not truth:
        raise UserError("there is no text to score: a test set needs at least one")
    pairs = list(zip(truth, guessed, strict=True))
    f1 = []
    for label in sorted({*truth, *guessed}):
        right = pairs.count((label, label))
        f1.append(2 * right / (truth.count(label) + guessed.count(label)))
    return Scores(sum(a == b for a, b in pairs) / len(pairs), math.fsum(f1) / len(f1))


def classify(
    texts: Sequence[bytes],
    labels: Sequence[str],
    split: Split,
    lengths: Lengths,
    neighbours: Sequence[int] = (1,),
    separator: bytes = b" ",
    threads: int = 1,
) -> Iterator[tuple[int, Scores]]:
    """Scores on the test texts for each k of `neighbours`; distances are computed once for all of them."""
    train, test = ([texts[index] for index in side] for side in (split.train, split.test))
    known, truth = ([labels[index] for index in side] for side in (split.train, split.test))
    distance = distances(test, train, lengths, separator, threads)
    for k in neighbours:
        yield k, score_classes(truth, nearest_classes(distance, known, k))
