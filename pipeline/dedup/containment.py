"""Runs of words that a document shares with an evaluation set, counted against each of its documents.

Example with runs of 3 words: "what is the capital of France" has 4 runs, from what|is|the to capital|of|france. A web
page with the sentence "Do you know what is the capital of Peru?" holds 3 of them: share 0.75.

The order of runs and where they stand do not count; a run is one 64-bit hash.
"""

import numba
import numpy as np

from seqmill.pipeline.dedup.shingles import BUFFER, WORDS, next_shingles, runs_of

EMPTY = np.int64(-1)


@numba.njit(nogil=True, cache=True)
def run_sets(
    data: np.ndarray, offsets: np.ndarray, kind: np.ndarray, folded: np.ndarray, ngram: int
) -> tuple[np.ndarray, np.ndarray]:
    """The set of runs of `ngram` words of every document, sorted; documents with fewer words have none.

    Args:
        data: uint8[...], UTF-8 in NFC.
        offsets: int64[documents + 1] into `data`.
        kind, folded: from `character_tables`, of a normaliser whose unit is the word.

    Returns:
        int64[documents + 1] into uint64[...] hashes.
    """
    documents = len(offsets) - 1
    units, block = np.empty(ngram + BUFFER, np.uint64), np.empty(ngram + BUFFER, np.uint64)
    longest = 0
    for d in range(documents):
        longest = max(longest, offsets[d + 1] - offsets[d])
    runs = np.empty(longest + 1, np.uint64)
    hashes = np.empty(offsets[documents] - offsets[0] + documents, np.uint64)
    ends = np.zeros(documents + 1, np.int64)
    for d in range(documents):
        count, _ = runs_of(data, offsets[d], offsets[d + 1], kind, folded, WORDS, ngram, units, block, runs)
        distinct = np.unique(runs[:count])
        ends[d + 1] = ends[d] + len(distinct)
        hashes[ends[d] : ends[d + 1]] = distinct
    return ends, hashes[: ends[documents]].copy()


@numba.njit(nogil=True, cache=True)
def slot_table(runs: np.ndarray) -> np.ndarray:
    """A hash table of distinct `runs` uint64[n]: int64[power of two > 2 n] indices into `runs`, or EMPTY. Runs are
    hashes already, so their low bits are the slot; collisions go to the next one."""
    size = 2
    while size < 2 * len(runs) + 1:
        size *= 2
    slots = np.full(size, EMPTY, np.int64)
    for k in range(len(runs)):
        slot = np.int64(runs[k] & np.uint64(size - 1))
        while slots[slot] != EMPTY:
            slot = (slot + 1) & (size - 1)
        slots[slot] = k
    return slots


@numba.njit(nogil=True, cache=True)
def best_contained(
    data: np.ndarray,
    offsets: np.ndarray,
    kind: np.ndarray,
    folded: np.ndarray,
    ngram: int,
    runs: np.ndarray,
    slots: np.ndarray,
    holders: np.ndarray,
    held: np.ndarray,
    totals: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """For every document, the evaluation document of which it holds the largest share.

    Args:
        data, offsets, kind, folded, ngram: as for `run_sets`.
        runs: uint64[runs], the distinct runs of the evaluation set.
        slots: of `runs`, from `slot_table`.
        holders: int64[runs + 1] into `held` int32[...], the evaluation documents that a run is in.
        totals: int64[evaluation documents], distinct runs of each.

    Returns:
        int64[documents] evaluation document, the first of the largest share, or -1; float64[documents] the share.
    """
    documents = len(offsets) - 1
    units, block = np.empty(ngram + BUFFER, np.uint64), np.empty(ngram + BUFFER, np.uint64)
    best, share = np.full(documents, -1, np.int64), np.zeros(documents, np.float64)
    seen = np.full(len(runs), -1, np.int64)  # the last document that a run was found in
    shared = np.zeros(len(totals), np.int64)
    touched = np.empty(len(totals), np.int64)
    last_slot = len(slots) - 1
    for d in range(documents):
        at, carried, touches = offsets[d], np.int64(0), 0
        while at < offsets[d + 1]:
            count, at, carried = next_shingles(
                data, at, offsets[d + 1], kind, folded, WORDS, ngram, units, carried, block
            )
            for k in range(count):
                slot = np.int64(block[k] & np.uint64(last_slot))
                while slots[slot] != EMPTY and runs[slots[slot]] != block[k]:
                    slot = (slot + 1) & last_slot
                run = slots[slot]
                if run == EMPTY or seen[run] == d:
                    continue
                seen[run] = d
                for h in range(holders[run], holders[run + 1]):
                    if shared[held[h]] == 0:
                        touched[touches] = held[h]
                        touches += 1
                    shared[held[h]] += 1
        for k in range(touches):
            other = touched[k]
            found = shared[other] / totals[other]
            if found > share[d] or (found == share[d] and other < best[d]):
                best[d], share[d] = other, found
            shared[other] = 0
    return best, share
