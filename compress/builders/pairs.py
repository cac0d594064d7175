"""A dictionary that is fitted to how it is used: strings that save little give way to pairs of strings that would.

In a prefix-closed dictionary every prefix of a string owns an id, however rarely a window ends there. Without that
rule a string is worth what it saves: each time it is used, the windows that it would take without it, less one. Rounds
of counting and exchanging raise the bytes a window stands for, as those of FSST do for 255 symbols (Boncz, Neumann and
Leis 2020, "FSST: Fast Random Access String Compression").
"""

import logging
from dataclasses import dataclass

import numba
import numpy as np

from seqmill.compress.dictionary import LONGEST_STRING, Dictionary
from seqmill.compress.parsing import parse
from seqmill.compress.trie import BASE_MASK, BASE_SHIFT, BYTE_MASK, STRING_SHIFT, Trie

logger = logging.getLogger(__name__)

FIRST_SHARE = 4  # the first round exchanges up to a quarter of the strings, the second an eighth, the third a twelfth
NEVER = np.int64(1) << 60  # what a single byte saves: it is never given up
LEAST_GAIN = 2  # windows that a new string must save in the sample


@dataclass(frozen=True)
class Usage:
    """How a sample is cut by a dictionary."""

    windows: int  # of the whole sample
    saved: np.ndarray  # int64[strings]: windows that the sample would take more without each string
    lefts: np.ndarray  # int64[pairs]: ids that stand before `rights` somewhere in a document
    rights: np.ndarray  # int64[pairs]
    counts: np.ndarray  # int64[pairs]: how often, most frequent first


def exchange_pairs(
    start: Dictionary, data: np.ndarray, offsets: np.ndarray, strings: int, rounds: int, parse_name: str = "longest"
) -> Dictionary:
    """Give the strings that save least to pairs that would save more, round after round.

    Args:
        start: the dictionary to begin with; the better it is, the better the result.
        data: uint8[...], the bytes of the sample's documents.
        offsets: int64[documents + 1] into `data`.
        strings: of the dictionary that is wanted; `start` may have fewer, or more.
        rounds: of counting and exchanging. Fewer are made when nothing is to be gained any more.
        parse_name: "longest" or "fewest": how text will be cut.
    """
    dictionary = start
    for number in range(1, rounds + 1):
        usage = usage_of(dictionary, data, offsets, parse_name)
        logger.info(
            "round %d: %d strings, %.4f bytes a window", number, len(dictionary), len(data) / max(1, usage.windows)
        )
        better = _exchanged(dictionary, usage, strings, len(dictionary) // (FIRST_SHARE * number))
        if better.fingerprint == dictionary.fingerprint:
            break
        dictionary = better
    return dictionary


def usage_of(dictionary: Dictionary, data: np.ndarray, offsets: np.ndarray, parse_name: str) -> Usage:
    """Cut a sample and count what each string saves, and which pairs stand side by side."""
    trie = Trie.of(dictionary)
    ids, ends = parse(parse_name)(trie, data, offsets)
    used = np.bincount(ids, minlength=len(dictionary))
    saved = used * (_windows_without(trie.units, trie.root, dictionary.blob, dictionary.offsets) - 1)
    saved[dictionary.lengths == 1] = NEVER
    inside = np.ones(max(0, len(ids) - 1), bool)  # pairs that do not lie across the end of a document
    inside[ends[(ends > 0) & (ends < len(ids))] - 1] = False
    lengths = dictionary.lengths[ids]
    inside &= lengths[:-1] + lengths[1:] <= LONGEST_STRING
    pairs = (ids[:-1].astype(np.int64) << 32 | ids[1:])[inside]
    found, counts = np.unique(pairs, return_counts=True)
    order = np.argsort(-counts, kind="stable")  # of equal counts the lower ids first, on every machine
    return Usage(len(ids), saved, found[order] >> 32, found[order] & 0xFFFFFFFF, counts[order])


def _exchanged(dictionary: Dictionary, usage: Usage, strings: int, most: int) -> Dictionary:
    """Fill up to so many strings, then exchange up to `most` as long as a pair saves more than what it replaces."""
    known = dictionary.strings()
    least_first = np.argsort(usage.saved, kind="stable")
    surplus = max(0, len(known) - strings)
    dropped, room = {known[i] for i in least_first[:surplus]}, max(0, strings - len(known))
    candidates = iter(least_first[surplus : surplus + most].tolist())
    kept, added = set(known), list[bytes]()
    for left, right, gain in zip(usage.lefts.tolist(), usage.rights.tolist(), usage.counts.tolist(), strict=True):
        string = known[left] + known[right]
        if gain < LEAST_GAIN:
            break
        if string in kept:
            continue
        if len(added) >= room:
            given_up = next(candidates, None)
            if given_up is None or usage.saved[given_up] >= gain:
                break
            dropped.add(known[given_up])
        kept.add(string)
        added.append(string)
    return Dictionary.from_strings([string for string in known if string not in dropped] + added)


@numba.njit(nogil=True, cache=True)
def _windows_without(units: np.ndarray, root: int, blob: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Into how few other strings each string can be cut: int64[strings]; a single byte: 0."""
    fewest = np.zeros(len(offsets) - 1, np.int64)
    windows = np.empty(256, np.int64)
    for string in range(len(fewest)):
        begin, length = offsets[string], offsets[string + 1] - offsets[string]
        if length == 1:
            continue
        windows[0], windows[1 : length + 1] = 0, length + 1
        for place in range(length):
            at, base = place, np.uint64(root)
            while at < length:
                byte = np.uint64(blob[begin + at])
                unit = np.uint64(units[base ^ byte])
                if unit & np.uint64(BYTE_MASK) != byte:
                    break
                base = unit >> np.uint64(BASE_SHIFT) & np.uint64(BASE_MASK)
                at += 1
                if unit >> np.uint64(STRING_SHIFT) and at - place < length:
                    windows[at] = min(windows[at], windows[place] + 1)
        fewest[string] = windows[length]
    return fewest
