"""The verb that shares out packed rows among ranks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from seqmill.cli.common import AsJson, print_figures

app = typer.Typer()


@app.command()
def plan(
    packed: Annotated[Path, typer.Argument(help="A packed folder.")],
    out: Annotated[Path, typer.Option(help="File to write, such as plan.arrow.")],
    ranks: Annotated[int, typer.Option(help="That train together.")],
    rows: Annotated[int, typer.Option(help="Per rank and step.")] = 1,
    strategy: Annotated[str, typer.Option(help="columns, lpt, delay, groups or round-robin.")] = "columns",
    window: Annotated[int, typer.Option(help="columns, lpt: steps that exchange rows; 0: the whole epoch.")] = 16,
    queues: Annotated[int, typer.Option(help="delay: classes of costly rows that wait for their like.")] = 2,
    outlier: Annotated[float, typer.Option(help="delay: share of a rank's mean step that is costly.")] = 0.5,
    max_delay: Annotated[int, typer.Option(help="delay: steps that a row waits at most.")] = 16,
    memory_tokens: Annotated[int | None, typer.Option(help="Longest row that one rank has memory for.")] = None,
    model: Annotated[str, typer.Option(help="Preset whose operations are counted.")] = "124m",
    timings: Annotated[
        Path | None, typer.Option(help="Fit costs to these JSON lines: n_tokens, sum_sq, n_segments, seconds.")
    ] = None,
    exchange: Annotated[
        float | None, typer.Option(help="groups: seconds to exchange one token, with --timings; 0 on a fast network.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order that the plan begins with.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Share out the rows of an epoch so that ranks wait little for each other, and predict what it gains."""
    from dataclasses import asdict

    from seqmill.errors import UserError
    from seqmill.manifest import open_manifest
    from seqmill.packing.costs import Architecture, architecture_costs, fit_costs, read_row_sizes, read_timings
    from seqmill.packing.planner import plan_steps, simulate
    from seqmill.packing.schema import KIND
    from seqmill.packing.step_plan import PlanSettings, save_step_plan

    settings = PlanSettings(ranks, rows, strategy, window, queues, outlier, max_delay, memory_tokens, seed)
    manifest = open_manifest(packed, KIND)
    figures: dict[str, Any] = {}
    if timings is not None:
        if strategy == "groups" and exchange is None:
            raise UserError(
                "--strategy groups with --timings: timings of one rank do not tell what sharing rows costs; "
                "give --exchange in seconds per token"
            )
        costs, error = fit_costs(*read_timings(timings), exchange or 0.0)
        figures["fit"] = error._asdict()
    else:
        if exchange is not None:
            raise UserError("--exchange is in seconds and --model counts operations: give it with --timings")
        from seqmill.models.config import preset_config

        shape = asdict(preset_config(model, manifest["pack"]["vocab_size"]))
        costs = architecture_costs(Architecture(**{name: shape[name] for name in _SHAPE}))
    sizes = read_row_sizes(packed)
    planned = plan_steps(sizes, costs, settings, manifest["fingerprint"])
    save_step_plan(out, planned)
    predicted = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in simulate(planned, sizes).as_json().items()
    }
    figures |= {"strategy": planned.used, **predicted, "cost_model": costs.as_json(), "plan_hash": planned.hash}
    print_figures("plan", {**figures, "out": str(out)}, as_json)


_SHAPE = ("layers", "dim", "heads", "kv_heads", "head_dim", "ffn_dim", "vocab_size")
