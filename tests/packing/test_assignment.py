import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from seqmill.packing.assignment import (
    TOLERANCE,
    best_groups,
    binary_partitions,
    group_time,
    longest_first,
    release_steps,
)


def lpt(costs: list[float], bins: int) -> tuple[list[int], list[float]]:
    """Longest processing time first as the books say it."""
    load, chosen = [0.0] * bins, []
    for cost in costs:
        lightest = min(range(bins), key=lambda number: (load[number], number))
        load[lightest] += cost
        chosen.append(lightest)
    return chosen, load


def optimum(costs: list[float], bins: int) -> float:
    """The least possible largest load, by integer programming: item i in bin b is variable i * bins + b, then T."""
    items = len(costs)
    once, below = np.zeros((items, items * bins + 1)), np.zeros((bins, items * bins + 1))
    for item in range(items):
        once[item, item * bins : (item + 1) * bins] = 1
        for number in range(bins):
            below[number, item * bins + number] = costs[item]
    below[:, -1] = -1
    goal = np.eye(items * bins + 1)[-1]
    whole = np.append(np.ones(items * bins), 0)
    found = milp(
        goal,
        integrality=whole,
        bounds=Bounds(0, np.append(np.ones(items * bins), np.inf)),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(below, -np.inf, 0)],
        options={"mip_rel_gap": 0.0},
    )
    assert found.success
    return float(found.fun)


def one_pool(costs: list[float], bins: int) -> tuple[list[int], list[float]]:
    chosen, load = longest_first(np.array(costs, np.float64), np.array([0, len(costs)]), np.array([bins]))
    return chosen.tolist(), load.tolist()


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=5), st.integers(1, 9))
def test_pools_are_shared_out_like_one_at_a_time_by_the_book(pools: list[list[int]], bins: int) -> None:
    """With many ties, which go to the bin of the lowest number."""
    ordered = [sorted(map(float, pool), reverse=True) for pool in pools]
    ends = np.cumsum([0, *map(len, ordered)])
    each = np.array([bins + number for number in range(len(pools))], np.int64)
    chosen, load = longest_first(np.array([cost for pool in ordered for cost in pool], np.float64), ends, each)
    expected = [lpt(pool, count) for pool, count in zip(ordered, each.tolist(), strict=True)]
    shift = [0, *np.cumsum(each).tolist()]
    assert chosen.tolist() == [shift[i] + number for i, (numbers, _) in enumerate(expected) for number in numbers]
    assert load.tolist() == [one for _, loads in expected for one in loads]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(2, 4))
def test_the_largest_load_keeps_grahams_bound(costs: list[int], bins: int) -> None:
    ordered = sorted(map(float, costs), reverse=True)
    best = optimum(ordered, bins)
    assert best - 1e-6 <= max(one_pool(ordered, bins)[1]) <= (4 / 3 - 1 / (3 * bins)) * best + 1e-6


@pytest.mark.parametrize("bins", [2, 3, 4])
def test_grahams_bound_is_reached_by_his_example(bins: int) -> None:
    costs = [float(cost) for cost in range(2 * bins - 1, bins - 1, -1) for _ in range(2)] + [float(bins)]
    best = optimum(costs, bins)
    assert best == pytest.approx(3 * bins)
    assert max(one_pool(costs, bins)[1]) == pytest.approx((4 / 3 - 1 / (3 * bins)) * best)


def test_random_loads_are_within_a_few_percent_of_the_optimum() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(12):
        costs = sorted((rng.lognormal(0, 0.5, 12) * 100).round().tolist(), reverse=True)
        ratios.append(max(one_pool(costs, 3)[1]) / optimum(costs, 3))
    assert 1 <= np.mean(ratios) < 1.05


def test_ranks_divide_into_groups_in_every_way() -> None:
    assert binary_partitions(4).tolist() == [[4, 0, 0, 0], [2, 2, 0, 0], [2, 1, 1, 0], [1, 1, 1, 1]]
    assert binary_partitions(1).tolist() == [[1]]
    assert binary_partitions(3).tolist() == [[2, 1, 0], [1, 1, 1]]
    assert [len(binary_partitions(ranks)) for ranks in (16, 32, 64)] == [36, 202, 1828]
    found = binary_partitions(13)
    assert (found.sum(axis=1) == 13).all()
    assert len({tuple(way) for way in found.tolist()}) == len(found)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20), st.sampled_from([1, 1, 1, 2, 4])), max_size=12),
    st.integers(4, 9),
)
def test_no_other_division_into_groups_is_better(rows: list[tuple[int, int, int]], ranks: int) -> None:
    rows = sorted(rows, key=lambda row: -row[0])
    cost, exchange = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows], float)
    least = np.array([row[2] for row in rows], np.int64)
    first, degree = best_groups(cost, exchange, least, np.array([0, len(rows)]), binary_partitions(ranks))
    load = np.zeros(ranks)
    for row in range(len(rows)):
        assert degree[row] >= least[row]
        assert first[row] % degree[row] == 0
        load[first[row] : first[row] + degree[row]] += group_time(cost[row], exchange[row], degree[row])
    groups = {(one, one + many) for one, many in zip(first.tolist(), degree.tolist(), strict=True)}
    assert all(a == b or a[1] <= b[0] or b[1] <= a[0] for a in groups for b in groups)
    outcomes = []
    for way in binary_partitions(ranks).tolist():
        degrees = [part for part in way if part]
        if len(rows) and least.max() > degrees[0]:
            continue
        loads = [0.0] * len(degrees)
        for row in range(len(rows)):
            after = [
                loads[group] + group_time(cost[row], exchange[row], part) if part >= least[row] else np.inf
                for group, part in enumerate(degrees)
            ]
            loads[int(np.argmin(after))] = min(after)
        outcomes.append(max(loads))
    assert load.max() <= min(outcomes) * (1 + TOLERANCE) + 1e-9


def test_sharing_rows_is_used_where_it_pays_and_only_there() -> None:
    def degrees(costs: list[float], exchange: float) -> list[int]:
        given = np.array(costs), np.full(len(costs), exchange), np.ones(len(costs), np.int64)
        return best_groups(*given, np.array([0, len(costs)]), binary_partitions(4))[1].tolist()

    assert degrees([8.0], 0.1) == [4]
    assert degrees([8.0], 1000.0) == [1]
    assert degrees([5.0, 5.0, 5.0, 5.0], 0.0) == [1, 1, 1, 1]
    assert degrees([40.0, 10.0, 10.0], 40.0) == [2, 1, 1]


def waiting_by_the_book(costs: list[int], edges: list[int], per_step: int, ranks: int, limit: int) -> list[int]:
    queues: list[list[tuple[int, int]]] = [[] for _ in edges]
    found = [-1] * len(costs)
    steps = -(-len(costs) // per_step)
    for step in range(steps):
        for queue in queues:
            while queue and step - queue[0][1] >= limit:
                found[queue.pop(0)[0]] = step
        for row in range(step * per_step, min((step + 1) * per_step, len(costs))):
            kinds = [number for number, edge in enumerate(edges) if costs[row] >= edge]
            if not kinds:
                found[row] = step
                continue
            queue = queues[kinds[-1]]
            queue.append((row, step))
            if len(queue) == ranks:
                for waiting, _ in queue:
                    found[waiting] = step
                queue.clear()
    for queue in queues:
        for row, _ in queue:
            found[row] = steps - 1
    return found


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), max_size=60),
    st.lists(st.integers(2, 9), max_size=3, unique=True),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_costly_rows_wait_as_the_book_says(
    costs: list[int], edges: list[int], per_step: int, ranks: int, limit: int
) -> None:
    edges = sorted(edges)
    found = release_steps(np.array(costs, float), np.array(edges, float), per_step, ranks, limit)
    assert found.tolist() == waiting_by_the_book(
        list(map(float, costs)), list(map(float, edges)), per_step, ranks, limit
    )
    delay = found - np.arange(len(costs)) // per_step
    assert ((delay >= 0) & (delay <= limit)).all()
