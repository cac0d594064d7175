"""The file plan.arrow: which row goes to which rank in which step, and everything that it was planned from.

    step            int32  optimiser step, dense from 0
    slot            int32  position among the rows of this rank in this step, dense from 0
    rank            int16  the rank that takes the row, or the first of the ranks that share it
    group           int16  ranks that share the row: rank, rank + 1, ... rank + group - 1; 1 for a row of one rank
    row_id          int64  each row of the dataset once
    predicted_cost  float32  of the whole row on one rank, in the unit of the cost model

Rows are sorted by (step, slot, rank). The metadata holds the settings, the cost model, the fingerprint of the dataset
and the hash of the plan, which covers all of these.
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.packing.cache import read_table
from seqmill.packing.costs import CostModel
from seqmill.storage import canonical_json, read_metadata, with_metadata, write_arrow

KIND: Final = "step-plan"
STRATEGIES: Final = ("columns", "lpt", "delay", "groups", "round-robin")
MAX_RANKS: Final = 32_767  # what the columns rank and group can hold
MAX_GROUP_RANKS: Final = 64  # 1,828 divisions into groups; 128 ranks have 27,338
_SCHEMA: Final = pa.schema(
    [
        ("step", pa.int32()),
        ("slot", pa.int32()),
        ("rank", pa.int16()),
        ("group", pa.int16()),
        ("row_id", pa.int64()),
        ("predicted_cost", pa.float32()),
    ]
)


@dataclass(frozen=True)
class PlanSettings:
    """How rows are to be shared out.

    Raises:
        UserError: a value is impossible.
    """

    ranks: int  # that train together
    rows: int = 1  # per rank and step, on average where the strategy balances work instead
    strategy: str = "columns"  # one of STRATEGIES; see seqmill.packing.planner
    window: int = 16  # columns, lpt: steps that exchange rows with each other; 0 for the whole epoch
    queues: int = 2  # delay: classes of costly rows, each twice as costly as the one before
    outlier: float = 0.5  # delay: share of a rank's mean work in a step from which on a row waits
    max_delay: int = 16  # delay: steps that a row waits at most
    memory_tokens: int | None = None  # tokens of one row that a rank has memory for; None for no limit
    seed: int = 0  # of the order that the plan begins with

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UserError(f"unknown plan strategy {self.strategy!r}; choose one of {', '.join(STRATEGIES)}")
        for name in ("ranks", "rows", "queues", "max_delay", "memory_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"plan {name} = {value}: must be at least 1")
        limit = MAX_GROUP_RANKS if self.strategy == "groups" else MAX_RANKS
        if self.ranks > limit:
            raise UserError(f"plan ranks = {self.ranks}: strategy {self.strategy} goes to {limit}; plan for fewer")
        if self.window < 0:
            raise UserError(f"plan window = {self.window}: must be a number of steps, or 0 for the whole epoch")
        if not 0 < self.outlier < float("inf"):
            raise UserError(f"plan outlier = {self.outlier}: must be a positive share of a rank's mean work")

    @property
    def rows_per_step(self) -> int:
        """Rows that all ranks together draw for a step."""
        return self.ranks * self.rows

    @property
    def waits(self) -> str:
        """Where ranks wait for each other: after every "slot" (columns), or at the end of a "step"."""
        return "slot" if self.strategy == "columns" else "step"


@dataclass(frozen=True, eq=False)
class StepPlan:
    """The rows of an epoch in steps, slots and ranks; arrays have one element per row, sorted by (step, slot, rank)."""

    step: npt.NDArray[np.int32]
    slot: npt.NDArray[np.int32]
    rank: npt.NDArray[np.int16]
    group: npt.NDArray[np.int16]
    row_id: npt.NDArray[np.int64]
    predicted_cost: npt.NDArray[np.float32]
    settings: PlanSettings
    model: CostModel
    used: str  # the strategy, or "round-robin" where nothing that was tried is predicted to be faster
    dataset: str  # fingerprint of the packed folder

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return int(self.step[-1]) + 1 if len(self.step) else 0

    @cached_property
    def hash(self) -> str:
        """32 hex digits that identify the plan: its columns, and what it was made from."""
        digest = hashlib.blake2b(canonical_json(self._described()), digest_size=16)
        for name in _SCHEMA.names:
            digest.update(np.ascontiguousarray(getattr(self, name)).view(np.uint8).data)
        return digest.hexdigest()

    def _described(self) -> dict[str, Any]:
        settings, model = asdict(self.settings), self.model.as_json()
        return {"settings": settings, "cost_model": model, "used": self.used, "dataset": self.dataset}


def save_step_plan(path: Path, plan: StepPlan) -> None:
    """Write a plan atomically as an Arrow stream."""
    metadata = {**plan._described(), "plan_hash": plan.hash, "steps": plan.steps}
    schema = with_metadata(_SCHEMA, KIND, **metadata)
    write_arrow(
        path, schema, [pa.record_batch([pa.array(getattr(plan, name)) for name in schema.names], schema=schema)]
    )


def load_step_plan(path: str | Path, dataset: str | None = None) -> StepPlan:
    """Read a plan and check it against its hash.

    Args:
        path: of the file, or a URL that fsspec can open.
        dataset: the fingerprint that it must be of, where given.

    Raises:
        UserError: the file is no plan, is damaged, or is of another dataset.
    """
    table = read_table(path)
    described = read_metadata(table.schema)
    if described.get("kind") != KIND or not table.schema.equals(_SCHEMA):
        raise UserError(f"{path} is no step plan; make one with seqmill plan")
    plan = StepPlan(
        **{name: table.column(name).to_numpy() for name in _SCHEMA.names},
        settings=PlanSettings(**described["settings"]),
        model=CostModel(**described["cost_model"]),
        used=described["used"],
        dataset=described["dataset"],
    )
    if plan.hash != described["plan_hash"]:
        raise UserError(f"{path} does not match its plan hash: it was changed or damaged; make it again")
    if dataset is not None and plan.dataset != dataset:
        raise UserError(f"{path} is a plan of the dataset {plan.dataset}, not of {dataset}; plan this one")
    return plan
