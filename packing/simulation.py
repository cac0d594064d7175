"""What a plan should cost: rows have their predicted costs, and ranks wait for each other where the settings say.

Only what the plan decides is simulated: computing, waiting, and the exchange inside of groups that share rows. Data
loading, gradient exchange and pipelines cost the same for any plan and are left out.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seqmill.packing.assignment import group_time
from seqmill.packing.costs import CostModel, RowSizes

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Timeline:
    """The predicted step times of an epoch; both arrays are float64[steps], in the unit of the cost model."""

    longest: Floats  # until the last rank is done
    mean: Floats  # that a rank works

    @property
    def total(self) -> float:
        """The time of the epoch."""
        return float(self.longest.sum())


@dataclass(frozen=True)
class SimulationReport:
    """What is predicted of a plan, and of dealing out the same rows without one."""

    rows: int
    steps: int
    time: float  # of the epoch, in `unit`
    unit: str  # of the cost model: "FLOP" or "s"
    imbalance: float  # time / working time of the mean rank, 1 at best: no schedule of these ranks takes less
    worst_imbalance: float  # the same of the worst step
    idle_share: float  # of all ranks' time
    speedup_over_round_robin: float  # time of the stored order, dealt out in turn / time
    speedup_over_random: float  # time of the shuffled order, dealt out in turn / time
    shared_rows: int  # rows that several ranks share
    delayed_rows: int  # rows that come later than in the shuffled order
    mean_delay: float  # steps, over all rows; those that come earlier count as 0
    max_delay: int  # steps
    tokens_per_step: float  # mean
    tokens_per_step_deviation: float  # standard deviation / mean

    def as_json(self) -> dict[str, Any]:
        """All figures by name."""
        return asdict(self)


def timeline(
    rows: RowSizes, model: CostModel, ranks: int, waits: str, step: Int64s, slot: Int64s, rank: Int64s, group: Int64s
) -> Timeline:
    """Predict the steps of an assignment of rows.

    Args:
        waits: "slot" or "step"; see PlanSettings.waits.
        step, slot, rank, group: int64[rows], as in StepPlan, in the order of `rows`.
    """
    time = group_time(model.costs(rows), model.per_exchanged_token * rows.n_tokens, group)
    steps = int(step.max()) + 1 if len(step) else 0
    each = np.repeat(np.arange(len(rows)), group)  # a row counts for every rank that shares it
    first = np.concatenate([[0], np.cumsum(group)])[:-1]
    its_rank = rank[each] + np.arange(len(each)) - first[each]
    if waits == "step":
        by_rank = np.bincount(step[each] * ranks + its_rank, time[each], steps * ranks).reshape(steps, ranks)
        return Timeline(by_rank.max(axis=1), by_rank.mean(axis=1))
    slots = int(slot.max()) + 1 if len(slot) else 0
    place = (step[each] * slots + slot[each]) * ranks + its_rank
    by_slot = np.bincount(place, time[each], steps * slots * ranks).reshape(steps, slots, ranks)
    return Timeline(by_slot.max(axis=2).sum(axis=1), by_slot.sum(axis=(1, 2)) / ranks)
