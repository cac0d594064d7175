"""Keyed 64-bit hashes of documents: what chooses and orders them depends on their ids and a seed alone.

The hash is the finaliser of splitmix64 (Steele, Lea, Flood 2014) over the id xor a key. It is a permutation of the
64-bit integers, so distinct ids never tie, and "the k documents of smallest hash" is exact.
"""

import numpy as np
import numpy.typing as npt
import xxhash

UInt64s = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15  # an odd number: multiples of it are distinct for all copies


def choice_keys(doc_ids: UInt64s, seed: int, purpose: str) -> UInt64s:
    """uint64[documents]: a hash of each id, independent for every (seed, purpose)."""
    return _mixed(doc_ids ^ _key(seed, purpose))


def order_keys(doc_ids: UInt64s, copy: int, seed: int) -> UInt64s:
    """uint64[documents]: the place of copy number `copy` of each document in the shuffled order."""
    first = choice_keys(doc_ids, seed, "order")
    return _mixed(first + np.uint64(copy * _GOLDEN % 2**64)) if copy else first


def _key(seed: int, purpose: str) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(f"{purpose} {seed}".encode()))


def _mixed(x: UInt64s) -> UInt64s:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
