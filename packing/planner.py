"""Which rank trains on which row in which step, so that ranks wait for each other as little as possible.

Rows have equal room but unequal cost: attention costs the squares of their segments. A plan begins with a shuffled
order of the rows, cut into steps of ranks * rows; a strategy then decides who takes what:

    columns      Ranks wait for each other after every row. The rows of `window` steps are sorted by cost, and each run
                 of `ranks` rows is one slot; slots then go to the steps in shuffled order. No other way to fill slots
                 takes less time (see `_columns`).
    lpt          Ranks wait at the end of a step and run any number of rows in it. The rows of `window` steps go to
                 window * ranks bins, longest processing time first; bins of like load make a step.
    delay        As lpt within single steps, but costly rows wait in queues until every rank can get one of a kind
                 (WLB-LLM, arXiv 2503.17924). Never longer than max_delay steps.
    groups       As lpt within single steps, but ranks may share rows: groups of 1, 2, 4, ... ranks, as each step's
                 rows need them (FlexSP, arXiv 2412.01523; ByteScale, arXiv 2502.21231). For rows that are longer than
                 memory_tokens.
    round-robin  The shuffled order, dealt out in turn; what the others are compared with.

A strategy may lose to dealing out by bad luck. The prediction tells, and then the dealt plan is used instead.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError
from seqmill.packing.assignment import best_groups, binary_partitions, longest_first, release_steps
from seqmill.packing.costs import CostModel, RowSizes
from seqmill.packing.permutation import permutation, round_keys
from seqmill.packing.simulation import SimulationReport, timeline
from seqmill.packing.step_plan import PlanSettings, StepPlan

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Work(NamedTuple):
    """The rows that a strategy shares out, in the order in which they are drawn; arrays are [rows]."""

    cost: Floats
    exchange: Floats  # what sharing a row adds, see seqmill.packing.assignment
    least_degree: Int64s  # ranks that a row needs memory of: a power of two


class _Assignment(NamedTuple):
    """Who takes the rows, in the order of a `_Work`; int64[rows] each."""

    step: Int64s
    turn: Int64s  # orders the rows of a rank within a step
    rank: Int64s
    group: Int64s


def plan_steps(rows: RowSizes, model: CostModel, settings: PlanSettings, dataset: str = "") -> StepPlan:
    """Share out the rows of an epoch.

    Args:
        rows: all rows of a dataset, in any order: the plan depends on ids and sizes alone.
        dataset: fingerprint of the packed folder.

    Returns:
        A plan with every row exactly once: the same one for the same arguments. Its predicted time is at most that of
        dealing out the rows in turn, in stored or in shuffled order.

    Raises:
        UserError: two rows have one id, or a row does not fit the memory of the ranks that may take it.
    """
    stored = _by_id(rows)
    shuffled = stored.take(permutation(len(rows), round_keys("plan order", settings.seed)))
    degrees = _least_degrees(shuffled, settings)
    exchange: Floats = np.multiply(shuffled.n_tokens, model.per_exchanged_token, dtype=np.float64)
    work = _Work(model.costs(shuffled), exchange, degrees)
    degree = int(degrees.max(initial=1))
    candidates = [
        (settings.strategy, shuffled, _STRATEGIES[settings.strategy](work, settings)),
        ("round-robin", shuffled, _dealt(len(rows), settings, degree)),
        ("round-robin", stored, _shuffled_steps(_dealt(len(rows), settings, degree), settings)),
    ]
    if settings.strategy == "round-robin":
        candidates = candidates[:1]
    times = [_time(order, model, settings, assignment) for _, order, assignment in candidates]
    is_best = times[0] <= min(times) * (1 + 1e-12)  # sums of the same costs in another order may differ by rounding
    used, order, assignment = candidates[0 if is_best else int(np.argmin(times))]
    slot = _slots(assignment)
    by_place = np.lexsort((assignment.rank, slot, assignment.step))
    return StepPlan(
        step=assignment.step[by_place].astype(np.int32),
        slot=slot[by_place].astype(np.int32),
        rank=assignment.rank[by_place].astype(np.int16),
        group=assignment.group[by_place].astype(np.int16),
        row_id=order.row_id[by_place],
        predicted_cost=model.costs(order)[by_place].astype(np.float32),
        settings=settings,
        model=model,
        used=used,
        dataset=dataset,
    )


def simulate(plan: StepPlan, rows: RowSizes) -> SimulationReport:
    """Predict what a plan gains over dealing out its rows.

    Args:
        rows: those that the plan was made from, in any order.

    Raises:
        UserError: these are other rows.
    """
    stored, settings, model = _by_id(rows), plan.settings, plan.model
    by_id = np.argsort(plan.row_id)
    if not np.array_equal(plan.row_id[by_id], stored.row_id):
        raise UserError(f"the plan has {len(plan.row_id)} rows, and they are not these {len(rows)}; plan these rows")
    columns = (np.asarray(column, np.int64)[by_id] for column in (plan.step, plan.slot, plan.rank, plan.group))
    step, slot, rank, group = columns
    planned = timeline(stored, model, settings.ranks, settings.waits, step, slot, rank, group)
    order = permutation(len(rows), round_keys("plan order", settings.seed))
    dealt = _dealt(len(rows), settings, int(_least_degrees(stored, settings).max(initial=1)))
    delay = np.maximum(0, step[order] - np.arange(len(rows)) // settings.rows_per_step)
    delay *= plan.used != "round-robin"  # nothing waits where rows are dealt out, from whichever order
    tokens = np.bincount(step, stored.n_tokens, plan.steps)
    working = float(planned.mean.sum())
    return SimulationReport(
        rows=len(rows),
        steps=plan.steps,
        time=planned.total,
        unit=model.unit,
        imbalance=planned.total / working if working else 1.0,
        worst_imbalance=float((planned.longest / planned.mean).max(initial=1.0)),
        idle_share=1 - working / planned.total if working else 0.0,
        speedup_over_round_robin=_ratio(_time(stored, model, settings, dealt), planned.total),
        speedup_over_random=_ratio(_time(stored.take(order), model, settings, dealt), planned.total),
        shared_rows=int((group > 1).sum()),
        delayed_rows=int((delay > 0).sum()),
        mean_delay=float(delay.mean()) if len(delay) else 0.0,
        max_delay=int(delay.max(initial=0)),
        tokens_per_step=float(tokens.mean()) if len(tokens) else 0.0,
        tokens_per_step_deviation=float(tokens.std() / tokens.mean()) if len(tokens) else 0.0,
    )


def _by_id(rows: RowSizes) -> RowSizes:
    stored = rows.take(np.argsort(rows.row_id, kind="stable"))
    twice = np.flatnonzero(np.diff(stored.row_id) == 0)
    if len(twice):
        raise UserError(f"row {stored.row_id[twice[0]]} is there more than once; a plan needs every row id once")
    return stored


def _least_degrees(rows: RowSizes, settings: PlanSettings) -> Int64s:
    """How many ranks each row needs for its memory, as a power of two."""
    if settings.memory_tokens is None:
        return np.ones(len(rows), np.int64)
    ranks = -(-rows.n_tokens // settings.memory_tokens)
    degrees = np.left_shift(1, np.frexp(ranks - 1)[1].astype(np.int64))  # frexp counts the bits of ranks - 1
    largest = 1 << (settings.ranks.bit_length() - 1) if settings.strategy == "groups" else 1
    if (degrees > largest).any():
        worst = int(rows.n_tokens.argmax())
        way_out = (
            "pack shorter rows or plan for more ranks"
            if settings.strategy == "groups"
            else "pack shorter rows, or let ranks share rows with strategy groups"
        )
        raise UserError(
            f"row {rows.row_id[worst]} has {rows.n_tokens[worst]} tokens; {largest} of {settings.ranks} ranks with "
            f"memory_tokens = {settings.memory_tokens} hold {largest * settings.memory_tokens}: {way_out}"
        )
    return degrees


def _dealt(count: int, settings: PlanSettings, degree: int = 1) -> _Assignment:
    """Rows in turn to ranks, or to groups of `degree` ranks where the longest row needs as many."""
    step, within = np.divmod(np.arange(count), settings.rows_per_step)
    turn, place = np.divmod(within, settings.ranks // degree)
    return _Assignment(step, turn, place * degree, np.full(count, degree))


def _shuffled_steps(dealt: _Assignment, settings: PlanSettings) -> _Assignment:
    """The same steps in another order; a short one stays the last."""
    full = len(dealt.step) // settings.rows_per_step
    new_step = np.concatenate([permutation(full, round_keys("plan steps", settings.seed)), [full]])
    return dealt._replace(step=new_step[dealt.step])


def _round_robin(work: _Work, settings: PlanSettings) -> _Assignment:
    return _dealt(len(work.cost), settings)


def _columns(work: _Work, settings: PlanSettings) -> _Assignment:
    """Sorted rows in runs of `ranks`.

    The costliest row of the k-th costliest slot is at least as costly as row k * ranks of the sorted order, since the
    slots before it hold no more rows than that. Sorted runs reach this bound in every slot, with the short one at the
    cheap end.
    """
    count, ranks = len(work.cost), settings.ranks
    window, first_slot = _windows(count, settings)
    place = np.empty(count, np.int64)  # of each row in its window, from costly to cheap
    by_cost = np.lexsort((-work.cost, window))
    place[by_cost] = np.arange(count) - first_slot[window[by_cost]] * ranks
    run, in_run = np.divmod(place, ranks)
    slot = first_slot[window] + run
    rank = np.where(run % 2 == 0, in_run, ranks - 1 - in_run)  # there and back, so that ranks do equal work as well
    slots = -(-count // ranks)
    full = count // ranks
    window_of_slot = np.repeat(np.arange(len(first_slot) - 1), np.diff(first_slot))[:full]
    draw = permutation(full, round_keys("plan slots", settings.seed))
    new_order = np.lexsort((draw, window_of_slot))
    new_slot = np.arange(slots)  # a short slot stays the last
    new_slot[new_order] = np.arange(full)
    step, turn = np.divmod(new_slot[slot], settings.rows)
    return _Assignment(step, turn, rank, np.ones(count, np.int64))


def _windows(count: int, settings: PlanSettings) -> tuple[Int64s, Int64s]:
    """The window of every row, int64[rows], and the first slot of every window and of none after the last."""
    steps = settings.window or max(1, -(-count // settings.rows_per_step))
    window = np.arange(count) // (steps * settings.rows_per_step)
    windows = int(window[-1]) + 1 if count else 0
    slots = -(-count // settings.ranks)
    return window, np.minimum(np.arange(windows + 1) * steps * settings.rows, slots)


def _lpt(work: _Work, settings: PlanSettings) -> _Assignment:
    """Balanced bins, `ranks` for each step of a window; those of like load make a step."""
    count = len(work.cost)
    window, first_slot = _windows(count, settings)
    first_step = -(-first_slot // settings.rows)
    bins = np.diff(first_step) * settings.ranks
    bin_of, turn, load = _binned(work.cost, window, bins)
    window_of_bin = np.repeat(np.arange(len(bins)), bins)
    by_load = np.lexsort((-load, window_of_bin))
    place = np.empty(len(load), np.int64)  # of each bin, by window and from loaded to light
    place[by_load] = np.arange(len(load))
    steps = len(load) // settings.ranks
    new_order = np.lexsort(
        (permutation(steps, round_keys("plan steps", settings.seed)), window_of_bin[:: settings.ranks])
    )
    new_step = np.empty(steps, np.int64)
    new_step[new_order] = np.arange(steps)
    step, rank = np.divmod(place[bin_of], settings.ranks)
    return _Assignment(new_step[step], turn, rank, np.ones(count, np.int64))


def _delay(work: _Work, settings: PlanSettings) -> _Assignment:
    """LPT within steps that costly rows enter in company."""
    count = len(work.cost)
    rank_work = work.cost.mean() * settings.rows if count else 1.0
    edges = rank_work * settings.outlier * 2.0 ** np.arange(settings.queues)
    step = release_steps(work.cost, edges, settings.rows_per_step, settings.ranks, settings.max_delay)
    _, step = np.unique(step, return_inverse=True)  # a step whose rows all wait is none
    steps = int(step.max()) + 1 if count else 0
    bin_of, turn, _ = _binned(work.cost, step, np.full(steps, settings.ranks))
    return _Assignment(step, turn, bin_of % settings.ranks, np.ones(count, np.int64))


def _groups(work: _Work, settings: PlanSettings) -> _Assignment:
    """The best division of the ranks for each step, found by trying all."""
    count = len(work.cost)
    step = np.arange(count) // settings.rows_per_step
    order, pools, turn = _sorted_pools(work.cost, step)
    first_rank, degree = np.empty(count, np.int64), np.empty(count, np.int64)
    first_rank[order], degree[order] = best_groups(
        work.cost[order], work.exchange[order], work.least_degree[order], pools, binary_partitions(settings.ranks)
    )
    return _Assignment(step, turn, first_rank, degree)


def _sorted_pools(cost: Floats, pool: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """The rows by pool and from costly to cheap, where each pool begins among them, and the place of every row."""
    order = np.lexsort((-cost, pool))
    pools = np.searchsorted(pool[order], np.arange((int(pool.max()) + 1 if len(pool) else 0) + 1))
    place = np.empty(len(cost), np.int64)
    place[order] = np.arange(len(cost))
    return order, pools, place


def _binned(cost: Floats, pool: Int64s, bins: Int64s) -> tuple[Int64s, Int64s, Floats]:
    """LPT within pools: the bin and the turn of every row, and the loads of the bins."""
    order, pools, turn = _sorted_pools(cost, pool)
    bin_of = np.empty(len(cost), np.int64)
    bin_of[order], load = longest_first(cost[order], pools, bins)
    return bin_of, turn, load


def _slots(assignment: _Assignment) -> Int64s:
    """The rows of each rank in each step, numbered from 0 by their turn."""
    order = np.lexsort((assignment.turn, assignment.rank, assignment.step))
    step, rank = assignment.step[order], assignment.rank[order]
    begins = np.concatenate([[True], (np.diff(step) != 0) | (np.diff(rank) != 0)])[: len(order)]
    number = np.arange(len(order))
    slot = np.empty(len(order), np.int64)
    slot[order] = number - np.maximum.accumulate(np.where(begins, number, 0))
    return slot


def _time(rows: RowSizes, model: CostModel, settings: PlanSettings, assignment: _Assignment) -> float:
    """The predicted time of an epoch."""
    step, _, rank, group = assignment
    return timeline(rows, model, settings.ranks, settings.waits, step, _slots(assignment), rank, group).total


def _ratio(time: float, best: float) -> float:
    return time / best if best else 1.0


_STRATEGIES: dict[str, Callable[[_Work, PlanSettings], _Assignment]] = {
    "columns": _columns,
    "lpt": _lpt,
    "delay": _delay,
    "groups": _groups,
    "round-robin": _round_robin,
}
