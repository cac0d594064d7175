"""The stage that packs bags of features: bags as Arrow files, one plan over all sizes, then shards of rows.

Parquet is read once into Arrow files in the stage's state, since rows take their bags from anywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, OutputFile, write_manifest
from seqmill.packing.sets import (
    BagStore,
    SetPlan,
    SetSettings,
    load_set_plan,
    plan_sets,
    save_set_plan,
    set_manifest_entries,
    write_sets,
)
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    UnitResult,
    file_reference,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.settings import build
from seqmill.storage import write_arrow

BAGS_AT_ONCE = 64  # of a Parquet file in memory
MAIN_PLAN, RESIDUAL_PLAN = "main-plan.arrow", "residual-plan.arrow"


@dataclass(frozen=True)
class PackSetsConfig:
    """Bags into rows of equal room."""

    sets: SetSettings
    shard_bytes: int = 1 << 29  # of features in one output file, about

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise UserError(f"sets.shard_bytes = {self.shard_bytes}: at least 1 is needed")


def pack_sets(
    inputs: Sequence[Path], config: PackSetsConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Pack the bags of files, or of all Arrow and Parquet files in folders, in the order of their names; the manifest.

    Raises:
        UserError: there are no such files, or they hold no bags.
    """
    files = _files(inputs)
    prepare_folder(out)
    state = out / STATE_FOLDER
    readable = [_reference(path) for path in files]
    imports = [
        Unit(f"bags-{number:05d}", {"name": f"bags-{number:05d}", "file": file})
        for number, file in enumerate(readable)
        if file["path"].endswith(".parquet")
    ]
    for record in run_units("read bags", read_parquet, imports, state, executor, progress):
        readable[int(record.unit.partition("-")[2])] = file_reference(state, record.files[0])
    shared = {"bags": readable, "sets": asdict(config.sets)}
    (plan,) = run_units("plan sets", make_plan, [Unit("plan", shared)], state, executor, progress)
    shared["plans"] = [file_reference(state, file) for file in plan.files]
    store, planned = _open_planned(shared)
    units = [
        Unit(f"part-{number:05d}", {"name": f"part-{number:05d}", "first": first, "last": last, **shared})
        for number, (first, last) in enumerate(_shards(planned, store.dim, config.shard_bytes))
    ]
    records = run_units("pack sets", write_shard, units, out, executor, progress)
    written = [file for record in records for file in record.files]
    return write_manifest(
        out,
        "sets",
        written,
        stage="pack-sets",
        bags=[file["xxh3_128"] for file in readable],
        **set_manifest_entries(planned, store.dim),
    )


def _files(inputs: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in inputs:
        inside = [one for suffix in ("*.arrow", "*.parquet") for one in path.glob(suffix)] if path.is_dir() else [path]
        if not inside or not all(one.is_file() for one in inside):
            raise UserError(f"{path} is no file of bags and holds none: name .arrow or .parquet files, or a folder")
        found += sorted(one.absolute() for one in inside)
    return found


def _reference(path: Path) -> dict[str, Any]:
    return file_reference(path.parent, OutputFile.of(path.parent, path.name, 0))


def _shards(planned: SetPlan, dim: int, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """The first and one past the last row of every file; the rows of a file are of one kind."""
    rows = max(1, shard_bytes // (2 * dim * planned.settings.capacity))
    for begin, end in pairwise((0, planned.main.rows, planned.rows)):
        for first in range(begin, end, rows):
            yield first, min(first + rows, end)


def read_parquet(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Copy the columns of bags from a Parquet file to an Arrow stream."""
    path = Path(payload["file"]["path"])
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in ("bag_id", "features", "label") if name in file.schema_arrow.names]
            schema = pa.schema([file.schema_arrow.field(name) for name in columns])
            batches = (batch.select(columns).cast(schema) for batch in file.iter_batches(BAGS_AT_ONCE, columns=columns))
            name = f"{payload['name']}.arrow"
            return UnitResult({name: write_arrow(out / name, schema, batches)})
    except pa.ArrowException as error:
        raise UserError(f"cannot read {path} as Parquet ({error}); write it again") from error


def make_plan(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Assign the instances of all bags to rows."""
    store = BagStore.open([Path(file["path"]) for file in payload["bags"]])
    planned = plan_sets(store.counts, build(SetSettings, payload["sets"]))
    save_set_plan((out / MAIN_PLAN, out / RESIDUAL_PLAN), planned)
    return UnitResult({MAIN_PLAN: planned.main.rows, RESIDUAL_PLAN: planned.residual.rows})


def _open_planned(payload: Mapping[str, Any]) -> tuple[BagStore, SetPlan]:
    """The bags, and the plan that `make_plan` wrote of them."""
    store = BagStore.open([Path(file["path"]) for file in payload["bags"]])
    main, residual = (Path(file["path"]) for file in payload["plans"])
    return store, load_set_plan((main, residual), store.counts, build(SetSettings, payload["sets"]))


def write_shard(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write rows first to last (exclusive) of the plan as one file."""
    store, planned = _open_planned(payload)
    name = f"{payload['name']}.arrow"
    return UnitResult({name: write_sets(out / name, planned, payload["first"], payload["last"], store)})
