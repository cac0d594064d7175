"""Keyed permutations with random access: the n-th element of a shuffle without the other elements.

A Feistel network over the smallest power of two that holds `count`, walked until it lands below `count` (cycle
walking, Black and Rogaway 2002). It needs no memory, so resuming at position one billion costs what position zero
costs, and it is written in integer arithmetic of our own, so that a shuffle never changes with a numpy release.
It orders data; it keeps no secrets.
"""

import hashlib

import numpy as np
import numpy.typing as npt
from numba import njit

_ROUNDS = 4
_ODD_1 = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_ODD_2 = np.uint64(0xC2B2AE3D27D4EB4F)  # a prime of the xxHash family
_HALF = np.uint64(32)
_BLOCK = 512  # elements that are permuted together


def round_keys(*parts: int | str) -> npt.NDArray[np.uint64]:
    """The key of a permutation, uint64[4], from anything that names it: `round_keys("epoch", seed, epoch)`."""
    name = ":".join(str(part) for part in parts).encode()
    return np.frombuffer(hashlib.blake2b(name, digest_size=8 * _ROUNDS).digest(), "<u8").astype(np.uint64)


@njit(cache=True, nogil=True)
def _scramble(value: np.uint64, key: np.uint64) -> np.uint64:
    mixed = (value + key) * _ODD_1
    mixed = (mixed ^ (mixed >> _HALF)) * _ODD_2
    return mixed >> _HALF


@njit(cache=True, nogil=True)
def keyed_number(first: int, second: int, keys: npt.NDArray[np.uint64]) -> np.int64:
    """A number from 0 to 2^62 - 1 that looks drawn at random, and is the same for the same arguments."""
    one = _scramble(np.uint64(first), keys[0]) ^ _scramble(np.uint64(second), keys[1])
    high, low = _scramble(one ^ (np.uint64(first) << _HALF), keys[2]), _scramble(one + np.uint64(second), keys[3])
    return np.int64(((high << _HALF) | low) >> np.uint64(2))


@njit(cache=True, nogil=True)
def keyed_numbers(firsts: npt.NDArray[np.uint64], second: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """`keyed_number(first, second, keys)` of every first, int64[len(firsts)]."""
    numbers = np.empty(firsts.size, np.int64)
    for place in range(firsts.size):
        numbers[place] = keyed_number(firsts[place], second, keys)
    return numbers


@njit(cache=True, nogil=True)
def _bits(count: int) -> int:
    bits = 2
    while (1 << bits) < count:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _step(value: int, bits: int, keys: npt.NDArray[np.uint64]) -> np.int64:
    """The Feistel network: a permutation of the numbers of `bits` bits."""
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits - bits // 2)) - np.uint64(1)
    high = np.uint64(value) >> low_bits
    low = np.uint64(value) & low_mask
    for number in range(0, _ROUNDS, 2):  # each line is undone by itself, so the whole is a bijection
        high ^= _scramble(low, keys[number]) & high_mask
        low ^= _scramble(high, keys[number + 1]) & low_mask
    return np.int64((high << low_bits) | low)


@njit(cache=True, nogil=True)
def _walk(value: int, count: int, bits: int, keys: npt.NDArray[np.uint64]) -> np.int64:
    while True:
        found = _step(value, bits, keys)
        if found < count:  # true for at least every second value once count > 2: two steps on average at worst
            return found
        value = found


@njit(cache=True, nogil=True)
def permute(index: int, count: int, keys: npt.NDArray[np.uint64]) -> np.int64:
    """Where the permutation of range(count) with these keys sends `index`, 0 <= index < count <= 2^62."""
    return _walk(index, count, _bits(count), keys)


@njit(cache=True, nogil=True)
def permutation(count: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The whole permutation: int64[count], element i is `permute(i, count, keys)`."""
    order = np.empty(count, np.int64)
    permute_range(0, count, keys, order)
    return order


@njit(cache=True, nogil=True)
def permute_range(first: int, count: int, keys: npt.NDArray[np.uint64], out: np.ndarray) -> None:
    """Write `permute(i, count, keys)` for i from `first` on to `out`, integers[at most count - first]."""
    bits, walking = _bits(count), np.empty(_BLOCK, np.int64)
    for begin in range(0, out.size, _BLOCK):
        block = out[begin : begin + _BLOCK]
        for place in range(block.size):
            block[place], walking[place] = first + begin + place, place
        # All that still walk take a step side by side: no step waits for another one, and nothing has to be guessed
        left = block.size
        while left:
            still = 0
            for number in range(left):
                place = walking[number]
                block[place] = _step(block[place], bits, keys)
                walking[still] = place
                still += block[place] >= count
            left = still
