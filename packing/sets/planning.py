"""From bag sizes to rows: one plan for what is drawn, one for the rest, by the packer of documents."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seqmill.packing.pack_plan import PackPlan, load_plan, plan, save_plan
from seqmill.packing.sets.drawing import SetSettings, drawn_counts

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SetPlan:
    """The contents of all rows: main rows first, then residual ones. Items of both plans are bags."""

    settings: SetSettings
    counts: Int64s  # int64[bags], instances
    drawn: Int64s  # int64[bags], of which this many are drawn
    main: PackPlan  # of the drawn instances: each bag is whole in one row
    residual: PackPlan  # of the others: a bag may be cut over rows

    @property
    def rows(self) -> int:
        """Rows of both kinds."""
        return self.main.rows + self.residual.rows

    def fragments(self, first_row: int, last_row: int) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """The fragments of rows of one kind.

        Returns:
            row_offsets from 0, int64[rows + 1]; bag, and start and stop among the bag's instances in the order of
            `seqmill.packing.sets.drawing.draw`, int64[fragments].
        """
        is_residual = first_row >= self.main.rows
        part, before = (self.residual, self.main.rows) if is_residual else (self.main, 0)
        bounds = part.row_offsets[first_row - before : last_row - before + 1]
        here = slice(bounds[0], bounds[-1])
        bag = part.item[here]
        behind = self.drawn[bag] if is_residual else np.zeros(len(bag), np.int64)
        return bounds - bounds[0], bag, part.start[here] + behind, part.stop[here] + behind


def plan_sets(counts: npt.ArrayLike, settings: SetSettings) -> SetPlan:
    """Plan the rows of bags with these sizes, int[bags]; the same plan for the same arguments.

    Raises:
        UserError: `counts` are no sizes.
    """
    sizes = np.asarray(counts, np.int64)
    drawn = drawn_counts(sizes, settings)
    seed = (settings.seed << 32) | settings.epoch
    main = plan(drawn, settings.capacity, "error", seed)
    residual = plan(sizes - drawn, settings.capacity, "split", seed)
    return SetPlan(settings, sizes, drawn, main, residual)


def save_set_plan(paths: tuple[Path, Path], planned: SetPlan) -> None:
    """Write the plan of main rows and that of residual ones as two files; sizes and settings are not in them."""
    for path, part in zip(paths, (planned.main, planned.residual), strict=True):
        save_plan(path, part)


def load_set_plan(paths: tuple[Path, Path], counts: Int64s, settings: SetSettings) -> SetPlan:
    """Map what `save_set_plan` wrote of a plan for these sizes and settings.

    Raises:
        UserError: a file is damaged or holds something else.
    """
    main, residual = (load_plan(path) for path in paths)
    return SetPlan(settings, counts, drawn_counts(counts, settings), main, residual)
