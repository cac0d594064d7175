"""Verbs that choose and order documents: mixtures, shuffles, holdout splits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from seqmill.cli.common import Address, AsJson, ExecutorName, Inputs, Out, Quiet, Stage, Workers, stage_of
from seqmill.errors import UserError

app = typer.Typer()

Memory = Annotated[int, typer.Option("--memory", metavar="MB", help="MiB that one worker may take.")]


@app.command()
def mix(
    inputs: Inputs,
    out: Out,
    weights: Annotated[
        str | None, typer.Option(metavar="SOURCE=W,...", help="Part of the output per source; all sources.")
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(metavar="SOURCE=E,...", help="Times each source is seen; unnamed ones once.")
    ] = None,
    target_tokens: Annotated[int | None, typer.Option(help="Size of the output, with --weights.")] = None,
    target_bytes: Annotated[int | None, typer.Option(help="The same in bytes.")] = None,
    target_documents: Annotated[int | None, typer.Option(help="The same in documents, met exactly.")] = None,
    max_epochs: Annotated[
        float | None, typer.Option(help="No source more often; without a target: 1, and as much as that allows.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice and the order.")] = 0,
    shuffle: Annotated[bool, typer.Option(help="New order, or that of the input.")] = True,
    memory: Memory = 1024,
    parameters: Annotated[
        int | None, typer.Option(help="Size of the model to train: warns where repetition harms it.")
    ] = None,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Mix sources by weights or epochs, and shuffle: documents or tokens folders into one."""
    from seqmill.pipeline.mixing import MixConfig
    from seqmill.pipeline.mixing import mix as mix_stage

    targets = {"tokens": target_tokens, "bytes": target_bytes, "documents": target_documents}
    given = {unit: target for unit, target in targets.items() if target is not None}
    if len(given) > 1:
        raise UserError(f"--target-{' and --target-'.join(given)} exclude each other: keep the one you mean")
    unit, target = next(iter(given.items()), (None, None))
    config = MixConfig(
        weights=_numbers("--weights", weights),
        epochs=_numbers("--epochs", epochs),
        target=target,
        unit=unit,
        max_epochs=max_epochs,
        seed=seed,
        shuffle=shuffle,
        memory_mb=memory,
        parameters=parameters,
    )
    with stage_of("mix", out, executor, workers, address, quiet, as_json) as stage:
        folders = _finished_folders(stage, inputs)
        stage.manifest = mix_stage(folders, config, stage.out, stage.executor, stage.progress)
        names = ("unit", "repeated", "by_source", "damage_band")
        stage.figures = {name: stage.manifest[name] for name in names if name in stage.manifest}
    if not as_json:
        _print_sources(stage.manifest)


@app.command()
def split(
    inputs: Inputs,
    out: Out,
    fraction: Annotated[float | None, typer.Option(help="Part of the documents to hold out.")] = None,
    documents: Annotated[int | None, typer.Option(help="Number of documents to hold out.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    memory: Memory = 1024,
    executor: ExecutorName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Hold documents out: OUT/train and OUT/holdout, by source, clusters of duplicates on one side."""
    from seqmill.pipeline.mixing import SplitConfig
    from seqmill.pipeline.mixing import split as split_stage

    config = SplitConfig(fraction=fraction, documents=documents, seed=seed, memory_mb=memory)
    with stage_of("split", out, executor, workers, address, quiet, as_json) as stage:
        folder = stage.documents(inputs)
        manifests = split_stage(folder, config, stage.out, stage.executor, stage.progress)
        sides = {side: manifest["totals"] for side, manifest in manifests.items()}
        stage.figures = {unit: sum(totals[unit] for totals in sides.values()) for unit in ("documents", "bytes")}
        stage.figures.update({f"{side}_{unit}": totals[unit] for side, totals in sides.items() for unit in totals})
        stage.figures["deviation"] = manifests["holdout"]["deviation"]
        stage.figures["by_source"] = {side: manifest["by_source"] for side, manifest in manifests.items()}


def _numbers(flag: str, text: str | None) -> dict[str, float]:
    """ "web=0.7,books=0.3" as a dict; a name may hold "=", the last one counts."""
    numbers: dict[str, float] = {}
    for pair in text.split(",") if text else ():
        source, _, number = pair.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not source or value != value or source in numbers:
            raise UserError(f"{flag} {text!r}: {pair!r} is wrong; write each source once, as in web=0.7,books=0.3")
        numbers[source] = value
    return numbers


def _finished_folders(stage: Stage, inputs: list[str]) -> list[Path]:
    """The folders that `inputs` name, or one made from raw files."""
    from seqmill.manifest import MANIFEST

    finished = [Path(name).absolute() for name in inputs if (Path(name) / MANIFEST).is_file()]
    if not finished:
        return [stage.documents(inputs)]
    if len(finished) < len(inputs):
        raw = next(name for name in inputs if not (Path(name) / MANIFEST).is_file())
        raise UserError(f"{raw} has no {MANIFEST}, other inputs have; ingest it first (seqmill ingest {raw} --out DIR)")
    return finished


def _print_sources(manifest: Mapping[str, Any]) -> None:
    """A line per source, and what repetition does to a model of the given size."""
    from seqmill.pipeline.mixing.damage import damage_lines

    unit, sources = manifest["unit"], manifest["by_source"]
    width = max([len("source"), *map(len, sources)])
    head = f"  {'source':{width}} {'documents':>12} {'epochs':>9} {unit:>15} {'share':>8}"
    print(head + (f" {'wanted':>8} {'deviation':>10}" if manifest["config"]["weights"] else ""))
    for name, source in sources.items():
        wanted = f"{source['wanted_share']:8.2%} {source['deviation']:+10,}" if "wanted_share" in source else ""
        documents = source["left"]["documents"]
        line = f"  {name:{width}} {documents:12,} {source['epochs']:9.3f} {source['size']:15,} {source['share']:8.2%}"
        print(f"{line} {wanted}".rstrip())
    if "damage_band" in manifest:
        epochs = {name: source["epochs"] for name, source in sources.items()}
        for line in damage_lines(manifest["damage_band"], epochs):
            print(f"  {line}")
