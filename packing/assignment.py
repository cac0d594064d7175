"""Work to ranks: longest processing time first, alone or over groups of ranks that share a row.

Longest processing time first (LPT; Graham 1969, SIAM J. Appl. Math. 17) takes the items from costly to cheap and gives
each to the least loaded bin. Its largest load is at most 4/3 - 1/(3m) of the best one for m bins.

A group of d ranks divides every row it takes (sequence parallelism). Its time for a row is

    cost / d + exchange * (d - 1) / d^2

the work divided, and each rank's share 1/d of the row's exchange, of which (d - 1)/d goes to other ranks. So groups
make room for long rows and balance, and cost communication. Which groups are best depends on the rows: as in FlexSP
(arXiv 2412.01523) every way to divide the ranks into groups of 1, 2, 4, ... is tried, each with LPT.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit
from numba.extending import register_jitable

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
TOLERANCE: Final = 5e-3  # share of a step's time that is not worth looking for: cost models are off by more


@njit(cache=True, nogil=True)
def _lighter(load: Floats, one: int, other: int) -> bool:
    return load[one] < load[other] or (load[one] == load[other] and one < other)


@njit(cache=True, nogil=True)
def _sink(heap: Int64s, size: int, load: Floats) -> None:
    """Move the bin at the top of the heap down to its place: the lightest bin is on top, ties by number."""
    place, moving = 0, heap[0]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _lighter(load, heap[child + 1], heap[child]):
            child += 1
        if not _lighter(load, heap[child], moving):
            break
        heap[place] = heap[child]
        place = child
    heap[place] = moving


@njit(cache=True, nogil=True)
def longest_first(cost: Floats, pools: Int64s, bins: Int64s) -> tuple[Int64s, Floats]:
    """LPT for several pools of items at a time, each with its own bins.

    Args:
        cost: float64[items], the pools one after the other, each from costly to cheap.
        pools: int64[pools + 1], where each pool begins among the items.
        bins: int64[pools], bins of each pool, >= 1.

    Returns:
        The bin of every item, int64[items], numbered through all pools, and the load of every bin, float64[all bins].
    """
    chosen = np.empty(cost.size, np.int64)
    loads = np.zeros(bins.sum(), np.float64)
    heap = np.empty(loads.size, np.int64)
    first_bin = 0
    for pool in range(bins.size):
        size = bins[pool]
        load = loads[first_bin : first_bin + size]
        for place in range(size):
            heap[place] = place
        for item in range(pools[pool], pools[pool + 1]):
            lightest = heap[0]
            load[lightest] += cost[item]
            chosen[item] = first_bin + lightest
            _sink(heap, size, load)
        first_bin += size
    return chosen, loads


def binary_partitions(ranks: int) -> Int64s:
    """Every way to write `ranks` as a sum of powers of two: int64[ways, ranks], from large to small, then zeros.

    4 gives [4, 0, 0, 0], [2, 2, 0, 0], [2, 1, 1, 0], [1, 1, 1, 1]. Large parts come first, so that parts laid side by
    side begin at a multiple of their size.
    """
    ways = [part + [0] * (ranks - len(part)) for part in _partitions(ranks, 1 << max(0, ranks.bit_length() - 1))]
    return np.array(ways, np.int64).reshape(-1, ranks)


def _partitions(left: int, largest: int) -> list[list[int]]:
    if left == 0:
        return [[]]
    found = []
    while largest:
        if largest <= left:
            found += [[largest, *rest] for rest in _partitions(left - largest, largest)]
        largest >>= 1
    return found


@register_jitable
def group_time(cost: Any, exchange: Any, degree: Any) -> Any:
    """The time of `degree` ranks for a row, or of each of many rows: see the top of this module."""
    return cost / degree + exchange * (degree - 1) / (degree * degree)


@njit(cache=True, nogil=True)
def _share_out(
    cost: Floats, exchange: Floats, least_degree: Int64s, degrees: Int64s, load: Floats, chosen: Int64s, limit: float
) -> float:
    """LPT over groups of these degrees; the largest load, or infinity once it is no less than `limit`."""
    load[:] = 0.0
    largest = 0.0
    for row in range(cost.size):
        best, end = -1, np.inf
        for group in range(degrees.size):
            if degrees[group] < least_degree[row]:
                break  # groups come from large to small, and then zeros
            after = load[group] + group_time(cost[row], exchange[row], degrees[group])
            if after < end:
                best, end = group, after
        if end >= limit:
            return np.inf
        load[best] = end
        chosen[row] = best
        largest = max(largest, end)
    return largest


@njit(cache=True, nogil=True)
def _least_possible(cost: Floats, exchange: Floats, least_degree: Int64s, partitions: Int64s) -> float:
    """A largest load that no division goes below: all work spread evenly, and the costliest row on the largest group.

    Sharing adds to the work of all ranks together, so each row counts with the fewest ranks that it can be on.
    """
    ranks, largest = partitions.shape[1], partitions[0, 0]
    work, longest = 0.0, 0.0
    for row in range(cost.size):
        work += group_time(cost[row], exchange[row], least_degree[row]) * least_degree[row]
        fastest, degree = np.inf, least_degree[row]
        while degree <= largest:
            fastest = min(fastest, group_time(cost[row], exchange[row], degree))
            degree *= 2
        longest = max(longest, fastest)
    return max(work / ranks, longest)


@njit(cache=True, nogil=True)
def best_groups(
    cost: Floats, exchange: Floats, least_degree: Int64s, pools: Int64s, partitions: Int64s
) -> tuple[Int64s, Int64s]:
    """The division of the ranks with the least largest load under LPT, for several pools of rows.

    The search of a pool ends early at a load within TOLERANCE of one that nothing can beat.

    Args:
        cost, exchange: float64[rows], the pools one after the other, each from costly to cheap.
        least_degree: int64[rows], ranks that a row needs at least; some partition has a part as large.
        pools: int64[pools + 1], where each pool begins among the rows.
        partitions: int64[ways, ranks], as `binary_partitions` gives them.

    Returns:
        The first rank of the group that takes each row, and how many ranks it has: int64[rows] each.
    """
    first_rank = np.empty(cost.size, np.int64)
    degree = np.empty(cost.size, np.int64)
    load = np.empty(partitions.shape[1], np.float64)
    for pool in range(pools.size - 1):
        here = slice(pools[pool], pools[pool + 1])
        chosen, trial = np.empty(here.stop - here.start, np.int64), np.empty(here.stop - here.start, np.int64)
        least, winner = np.inf, 0
        enough = (1 + TOLERANCE) * _least_possible(cost[here], exchange[here], least_degree[here], partitions)
        for way in range(partitions.shape[0] - 1, -1, -1):  # small groups first: they win a tie
            if least <= enough:
                break
            found = _share_out(cost[here], exchange[here], least_degree[here], partitions[way], load, trial, least)
            if found < least:
                least, winner = found, way
                chosen[:] = trial
        for row in range(here.start, here.stop):
            group = chosen[row - here.start]
            degree[row] = partitions[winner, group]
            first_rank[row] = 0
            for before in range(group):
                first_rank[row] += partitions[winner, before]
    return first_rank, degree


@njit(cache=True, nogil=True)
def release_steps(cost: Floats, edges: Floats, per_step: int, ranks: int, max_delay: int) -> Int64s:
    """The step of every row when costly rows wait for their like (WLB-LLM, arXiv 2503.17924, section 4).

    Step t draws rows t * per_step to (t + 1) * per_step. A row of at least edges[c] (and less than edges[c + 1]) joins
    queue c; when it is the `ranks`-th there, all of them go into the step at hand, one for each rank. A row that has
    waited for `max_delay` steps goes without the others, and the last step takes all that wait.

    Args:
        cost: float64[rows], in the order in which they are drawn.
        edges: float64[queues], ascending.

    Returns:
        int64[rows]; row i is drawn in step i // per_step and comes at most max_delay steps later.
    """
    queues = edges.size
    waiting = np.empty((queues, ranks), np.int64)  # oldest first
    count = np.zeros(queues, np.int64)
    step_of = np.empty(cost.size, np.int64)
    last = (cost.size - 1) // per_step if cost.size else 0
    for row in range(cost.size):
        step = row // per_step
        if row % per_step == 0:
            for queue in range(queues):
                overdue = 0
                while overdue < count[queue] and step - waiting[queue, overdue] // per_step >= max_delay:
                    step_of[waiting[queue, overdue]] = step
                    overdue += 1
                for place in range(overdue, count[queue]):
                    waiting[queue, place - overdue] = waiting[queue, place]
                count[queue] -= overdue
        queue = np.searchsorted(edges, cost[row], side="right") - 1
        if queue < 0:
            step_of[row] = step
            continue
        waiting[queue, count[queue]] = row
        count[queue] += 1
        if count[queue] == ranks:
            for place in range(ranks):
                step_of[waiting[queue, place]] = step
            count[queue] = 0
    for queue in range(queues):
        for place in range(count[queue]):
            step_of[waiting[queue, place]] = last
    return step_of
