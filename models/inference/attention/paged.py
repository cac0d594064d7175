"""A part of attention on a processor, where pieces are a few tokens long: a kernel that reads the pages in place.

Every (piece, key-value head) is one item of work: its keys are read once, page by page, for all query heads of the
group and all tokens of the piece, with a running maximum (the online softmax of Milakov and Gimelshein,
arXiv 1805.02867), so nothing is copied and nothing but visible positions is ever read.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

_THREAD_KEYS = 1 << 14  # keys x heads of an item list that are worth a thread of their own
_NO_WINDOW = 1 << 62


class PagedPieces(NamedTuple):
    """Pieces of a step whose keys lie in pages of one group."""

    first_row: Int64s  # [pieces]: of the step's tokens
    tokens: Int64s  # [pieces]
    start: Int64s  # [pieces]: positions in the cache before the piece
    begin: Int64s  # [pieces]: first position that is attended to here; what lies before is attended to elsewhere
    tables: npt.NDArray[np.int32]  # [pieces, most pages]
    positions: Int64s  # [rows]: of each token in its sequence; those of a tree of drafts may share one
    ancestors: npt.NDArray[np.uint64]  # [rows]: bit j: whether token j of the piece is seen by this one
    window: int | None
    sinks: int


def attend_paged(
    q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor, pieces: PagedPieces, page_tokens: int
) -> tuple[Tensor, Tensor]:
    """Let the tokens of all pieces attend to what their sequences hold from `begin` on, themselves included.

    Args:
        q_THE: float32 on the host, of the rows of these pieces.
        k_KSE: float32: of one layer.

    Returns:
        out_THE and lse_TH, float32.
    """
    out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
    lse_TH = torch.empty(q_THE.shape[:2], dtype=torch.float32)
    window = _NO_WINDOW if pieces.window is None else pieces.window
    kv_heads = k_KSE.shape[0]
    items = len(pieces.tokens) * kv_heads
    arguments = (
        *(x.numpy() for x in (q_THE, k_KSE, v_KSE)),
        *pieces[:7],
        page_tokens,
        window,
        pieces.sinks,
        out_THE.numpy(),
        lse_TH.numpy(),
    )
    keys = int((pieces.start - pieces.begin + pieces.tokens).sum()) * q_THE.shape[1]
    threads = min(torch.get_num_threads(), items, 1 + keys // _THREAD_KEYS)
    if threads == 1:
        _attend(*arguments, 0, items)
    else:
        _on_threads(threads, lambda begin, end: _attend(*arguments, begin, end), items)
    return out_THE, lse_TH


def _on_threads(threads: int, work: Callable[[int, int], None], items: int) -> None:
    bounds = [items * i // threads for i in range(threads + 1)]
    list(_pool(threads).map(work, bounds[:-1], bounds[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="attention")


_FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order, but infinities and NaN as they are


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _attend(
    q: Float32s,
    k: Float32s,
    v: Float32s,
    first_row: Int64s,
    tokens: Int64s,
    start: Int64s,
    begin: Int64s,
    tables: npt.NDArray[np.int32],
    positions: Int64s,
    ancestors: npt.NDArray[np.uint64],
    page_tokens: int,
    window: int,
    sinks: int,
    out: Float32s,
    lse: Float32s,
    first_item: int,
    last_item: int,
) -> None:
    """Items `first_item` to `last_item`, each a piece (item // key-value heads) and a head (the rest)."""
    kv_heads, width = k.shape[0], k.shape[2]
    group = q.shape[1] // kv_heads
    scale = np.float32(1.0 / math.sqrt(width))
    most = 0
    for item in range(first_item, last_item):
        most = max(most, tokens[item // kv_heads])
    queries = np.empty((most * group, width), np.float32)
    total = np.empty((most * group, width), np.float32)
    largest = np.empty(most * group, np.float32)
    weight = np.empty(most * group, np.float32)
    scores = np.empty(page_tokens, np.float32)
    powers = np.empty(page_tokens, np.int32)
    is_seen = np.empty(page_tokens, np.bool_)
    for item in range(first_item, last_item):
        piece, head = item // kv_heads, item % kv_heads
        count, row, base = tokens[piece], first_row[piece], start[piece]
        for index in range(count * group):
            for i in range(width):
                queries[index, i] = q[row + index // group, head * group + index % group, i] * scale
        total[: count * group] = 0.0
        largest[: count * group] = -np.inf
        weight[: count * group] = 0.0
        end = base + count
        for page in range(begin[piece] // page_tokens, (end + page_tokens - 1) // page_tokens):
            low, high = max(begin[piece], page * page_tokens), min(end, (page + 1) * page_tokens)
            if high <= base + 1 - window and low >= sinks:
                continue  # behind the window of the first token, and so of all
            offset = (tables[piece, page] - page) * page_tokens
            keys, values = k[head, offset + low : offset + high], v[head, offset + low : offset + high]
            for token in range(count):
                visible = _look(
                    positions[row : row + count], ancestors[row + token], token, base, low, high, window, sinks, is_seen
                )
                if not visible:
                    continue
                for index in range(token * group, token * group + group):
                    highest = _score(queries[index], keys, is_seen, visible == high - low, scores)
                    if highest > largest[index]:
                        factor = np.exp(largest[index] - highest)
                        largest[index] = highest
                        weight[index] *= factor
                        for i in range(width):
                            total[index, i] *= factor
                    weight[index] += _exponentials(scores[: high - low], largest[index], powers)
                    _add_values(scores, values, is_seen, visible == high - low, total[index])
        for index in range(count * group):
            at, of = row + index // group, head * group + index % group
            share = weight[index]
            factor = np.float32(1.0) / share if share > 0 else np.float32(0.0)
            for i in range(width):
                out[at, of, i] = total[index, i] * factor
            lse[at, of] = largest[index] + np.log(share) if share > 0 else -np.inf


@njit(cache=True, nogil=True)
def _look(
    positions: Int64s,
    ancestors: int,
    token: int,
    base: int,
    low: int,
    high: int,
    window: int,
    sinks: int,
    is_seen: npt.NDArray[np.bool_],
) -> int:
    """How many of the positions `low` to `high` a token of a piece sees, and which, in `is_seen`."""
    visible = 0
    for place in range(low, high):
        known = place if place < base else positions[place - base]
        seen = positions[token] - known < window or known < sinks
        if place >= base:
            seen &= (ancestors >> np.uint64(place - base)) & np.uint64(1) != 0
        is_seen[place - low] = seen
        visible += seen
    return visible


@njit(cache=True, nogil=True, fastmath=_FAST)
def _score(
    query: Float32s, keys: Float32s, is_seen: npt.NDArray[np.bool_], all_seen: bool, scores: Float32s
) -> np.float32:
    """The largest of the scores, which are -inf where a key is not seen."""
    highest = np.float32(-np.inf)
    for place in range(len(keys)):
        score = np.float32(0.0)
        for i in range(len(query)):
            score += query[i] * keys[place, i]
        if not all_seen and not is_seen[place]:
            score = np.float32(-np.inf)
        scores[place] = score
        highest = max(highest, score)
    return highest


@njit(cache=True, nogil=True, fastmath=_FAST)
def _exponentials(scores: Float32s, largest: np.float32, powers: npt.NDArray[np.int32]) -> np.float32:
    """Turn scores into exp(score - largest), and sum them up.

    exp(x) = 2^n 2^f with n + f = x / ln 2 and f in [-0.5, 0.5]: 2^f by its Taylor polynomial of degree 7, which is off
    by less than 1e-8 there, and 2^n by putting n into the exponent bits of a float32. Unlike a call of exp, all of it
    is done for eight scores at a time.
    """
    ones = powers.view(np.float32)
    for place in range(len(scores)):
        x = max((scores[place] - largest) * np.float32(1.4426950408889634), np.float32(-126.0))
        n = np.floor(x + np.float32(0.5))
        f = (x - n) * np.float32(0.6931471805599453)
        p = np.float32(1 / 5040)
        p = p * f + np.float32(1 / 720)
        p = p * f + np.float32(1 / 120)
        p = p * f + np.float32(1 / 24)
        p = p * f + np.float32(1 / 6)
        p = p * f + np.float32(0.5)
        p = p * f + np.float32(1.0)
        scores[place] = p * f + np.float32(1.0)
        powers[place] = (np.int32(n) + np.int32(127)) << np.int32(23)
    total = np.float32(0.0)
    for place in range(len(scores)):
        scores[place] *= ones[place]
        total += scores[place]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_values(
    weights: Float32s, values: Float32s, is_seen: npt.NDArray[np.bool_], all_seen: bool, total: Float32s
) -> None:
    """Add the values that are seen, by their weights; what is not seen may be anything, NaN too."""
    for place in range(len(values)):
        if all_seen or is_seen[place]:
            weight = weights[place]
            for i in range(len(total)):
                total[i] += weight * values[place, i]
