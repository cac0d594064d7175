"""The verb that packs sets of features."""

from pathlib import Path
from typing import Annotated

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Out, Quiet, Workers, stage_of

app = typer.Typer()


@app.command(name="pack-sets")
def pack_sets(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="IN...", help="Arrow or Parquet files, or folders, with bag_id, features and label."),
    ],
    out: Out,
    capacity: Annotated[int, typer.Option(help="Instances that a row has room for.")] = 2048,
    keep: Annotated[float, typer.Option(help="Share of each bag that is drawn; the rest goes to residual rows.")] = 0.5,
    at_least: Annotated[
        int, typer.Option(help="Instances drawn wherever a bag has them: smaller ones stay whole.")
    ] = 0,
    at_most: Annotated[int | None, typer.Option(help="Instances drawn of one bag; default: the capacity.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the order of rows.")] = 0,
    epoch: Annotated[int, typer.Option(help="Another epoch draws anew.")] = 0,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pack bags of feature vectors (multiple instance learning) into rows of one size, losing none."""
    from seqmill.packing.sets import SetSettings
    from seqmill.pipeline.pack_sets import PackSetsConfig
    from seqmill.pipeline.pack_sets import pack_sets as pack_sets_stage

    config = PackSetsConfig(SetSettings(capacity, keep, at_least, at_most, seed, epoch))
    with stage_of("pack-sets", out, executor, workers, address, quiet, as_json) as stage:
        manifest = pack_sets_stage(inputs, config, stage.out, stage.executor, stage.progress)
        kinds = {name: manifest["sets"][name] for name in ("main", "residual")}
        stage.figures = {"documents": manifest["totals"]["bags"], **manifest["totals"]}
        stage.figures |= {f"{name}_{key}": value for name, counts in kinds.items() for key, value in counts.items()}
