"""What the verbs share: their flags, the folder they hold while they work, and how they print."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Inputs = Annotated[
    list[str], typer.Argument(metavar="IN...", help="Files, globs, folders, or a former stage's output.")
]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
ExecutorName = Annotated[str, typer.Option("--executor", help="local or ray.")]
Workers = Annotated[int | None, typer.Option(help="Units in progress at a time; default: all cores.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster; default: this job's own, or an embedded one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option(help="No progress on stderr.")]


class Stage:
    """What a stage's verb works with, and what it leaves to be printed."""

    def __init__(self, out: Path, executor: Any, progress: Any) -> None:
        self.out = out
        self.executor = executor
        self.progress = progress
        self.manifest: Mapping[str, Any] = {}
        self.figures: dict[str, Any] = {}
        self.quarantined = 0

    def documents(self, inputs: list[str], **settings: Any) -> Path:
        """The documents folder that `inputs` name, or one made from raw files in OUT/documents."""
        from seqmill.manifest import MANIFEST, open_manifest
        from seqmill.pipeline.ingest import IngestConfig
        from seqmill.pipeline.ingest import ingest as ingest_stage
        from seqmill.pipeline.normalise import NormaliseConfig

        folder = Path(inputs[0])
        if len(inputs) == 1 and (folder / MANIFEST).is_file():
            open_manifest(folder, "documents")
            return folder.absolute()
        config = IngestConfig(inputs=tuple(inputs), **settings)
        manifest = ingest_stage(config, NormaliseConfig(), self.out / "documents", self.executor, self.progress)
        self.quarantined = manifest["quarantined"]["documents"]
        return self.out / "documents"


@contextmanager
def stage_of(
    name: str, out: Path, executor: str, workers: int | None, address: str | None, quiet: bool, as_json: bool
) -> Iterator[Stage]:
    """Hold `out`, time the stage, and print its figures at the end."""
    import time

    from seqmill.pipeline.executors import make_executor
    from seqmill.pipeline.progress import make_progress
    from seqmill.storage import local_folder, only_writer

    began = time.monotonic()
    folder = local_folder(out)
    with only_writer(folder):
        stage = Stage(folder, make_executor(executor, workers, address), make_progress(quiet))
        yield stage
    totals = stage.manifest.get("totals", {})
    quarantined = stage.manifest.get("quarantined", {"documents": stage.quarantined})["documents"]
    funnel = {"funnel": stage.manifest["funnel"]} if "funnel" in stage.manifest else {}
    seconds = round(time.monotonic() - began, 3)
    figures = {"documents": 0, "bytes": 0, **totals, **stage.figures, "quarantined": quarantined, **funnel}
    print_figures(name, {**figures, "seconds": seconds, "out": str(out)}, as_json)


def print_figures(name: str, figures: Mapping[str, Any], as_json: bool) -> None:
    """One JSON object, or one line of the plain figures."""
    if as_json:
        print(json.dumps(figures))
        return
    plain = {key: value for key, value in figures.items() if not isinstance(value, Mapping | list)}
    print(f"{name}: " + ", ".join(f"{key} {_rendered(value)}" for key, value in plain.items()))
    for fault in figures.get("faults", []):
        print(f"  {fault}")


def _rendered(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
