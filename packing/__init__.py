"""Packing: documents of any length into rows of one length, and the rows into training steps.

    lengths --plan--> PackPlan --write_rows--> shards + manifest --PackedDataset--> batches for a trainer
    (pack_plan: the packers)   (tokens, write, totals)           (rows, order, dataset)

    lengths --decompose--> PackPlan with Buckets --make_schedule--> BucketSchedule: the bucket of every step
    (decomposition, buckets)                     (curriculum)

The packers are best-fit-decreasing over the whole corpus (whole_corpus, best_fit) or over windows that keep its order
(windows), concatenation and first-fit (in_order). Nothing is lost and nothing is padded: a document that is longer than
a row is cut into pieces, each cut keeps the target behind it, and whatever a policy drops is counted. `validate` checks
a finished folder. `plan_steps` shares out the finished rows among ranks by what they cost (costs, planner, simulation).

    plan = seqmill.packing.plan(lengths, capacity=2048)
    for batch in seqmill.packing.PackedDataset("packed", batch_rows=8):
        ...

`MixedDataset` reads several folders in exact proportions, `Loader` reads ahead in worker processes, and `COLLATORS` has
what makes batches into the arguments of varlen attention, FlexAttention and transformers.

Importing this package does not import torch; datasets, `Loader` and `COLLATORS` do, when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seqmill.packing.buckets import Buckets
from seqmill.packing.costs import CostModel, RowSizes, architecture_costs, fit_costs, read_row_sizes
from seqmill.packing.curriculum import BucketSchedule, load_schedule, make_schedule, save_schedule
from seqmill.packing.decomposition import decompose
from seqmill.packing.pack_plan import PackPlan, load_plan, plan, save_plan
from seqmill.packing.planner import plan_steps, simulate
from seqmill.packing.rows import PackedRows
from seqmill.packing.schema import packed_schema, token_dtype
from seqmill.packing.step_plan import PlanSettings, StepPlan, load_step_plan, save_step_plan
from seqmill.packing.tokens import TokenStore
from seqmill.packing.totals import RowTotals, pack_settings, packed_manifest_entries
from seqmill.packing.validation import ValidationReport, Violation, validate
from seqmill.packing.write import write_rows

if TYPE_CHECKING:
    from seqmill.packing.collate import COLLATORS
    from seqmill.packing.dataset import PackedDataset, PackedRowDataset, join_rows
    from seqmill.packing.loader import Loader
    from seqmill.packing.mixture import MixedDataset

__all__ = [
    "COLLATORS",
    "BucketSchedule",
    "Buckets",
    "CostModel",
    "Loader",
    "MixedDataset",
    "PackPlan",
    "PackedDataset",
    "PackedRowDataset",
    "PackedRows",
    "PlanSettings",
    "RowSizes",
    "RowTotals",
    "StepPlan",
    "TokenStore",
    "ValidationReport",
    "Violation",
    "architecture_costs",
    "decompose",
    "fit_costs",
    "join_rows",
    "load_plan",
    "load_schedule",
    "load_step_plan",
    "make_schedule",
    "pack_settings",
    "packed_manifest_entries",
    "packed_schema",
    "plan",
    "plan_steps",
    "read_row_sizes",
    "save_plan",
    "save_schedule",
    "save_step_plan",
    "simulate",
    "token_dtype",
    "validate",
    "write_rows",
]


_NEED_TORCH = {  # and their modules
    "COLLATORS": "collate",
    "Loader": "loader",
    "MixedDataset": "mixture",
    "PackedDataset": "dataset",
    "PackedRowDataset": "dataset",
    "join_rows": "dataset",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
