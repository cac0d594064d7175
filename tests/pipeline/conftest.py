import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, settings

from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.funnel import check_funnel
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.storage import read_arrow

# machines that run tests are shared: a slow example is no failure, and fixtures here make fresh folders on each call
settings.register_profile(
    "pipeline", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("pipeline")


class SilentProgress:
    def start(self, stage: str, units: int) -> None:
        pass

    def advance(self) -> None:
        pass

    def skip(self, units: int) -> None:
        pass

    def tell(self, news: str) -> None:
        pass

    def finish(self) -> None:
        pass


@pytest.fixture
def progress() -> SilentProgress:
    return SilentProgress()


class Ingested:
    """The outcome of one run: its manifest, and all its documents in order."""

    def __init__(self, out: Path, manifest: dict[str, Any]) -> None:
        self.out = out
        self.manifest = manifest
        self.table = pa.concat_tables(read_arrow(out / file["name"]) for file in manifest["files"])
        self.texts = self.table["text"].to_pylist()
        self.rows = [doc_id & ((1 << 40) - 1) for doc_id in self.table["doc_id"].to_pylist()]
        self.bad = {reason: count["documents"] for reason, count in manifest["quarantined"]["reasons"].items()}

    def quarantined(self) -> list[dict[str, Any]]:
        paths = sorted((self.out / "quarantine").glob("*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path, progress: SilentProgress) -> Callable[..., Ingested]:
    """Ingest into a fresh folder, or `out`, with all bad records allowed; checks that the funnel adds up."""
    count = 0

    def call(
        *inputs: Any, out: Path | None = None, normalise: NormaliseConfig | None = None, **config: Any
    ) -> Ingested:
        nonlocal count
        count += 1
        settings = IngestConfig(tuple(str(i) for i in inputs), **{"max_bad_fraction": 1.0, **config})
        folder = out or tmp_path / f"out-{count}"
        manifest = ingest(settings, normalise or NormaliseConfig(), folder, LocalExecutor(1), progress)
        found = Ingested(folder, manifest)
        check_funnel(manifest["funnel"])
        read, normalised = manifest["funnel"]
        assert read["documents_in"] == read["documents_out"] + manifest["quarantined"]["documents"]
        assert normalised["documents_out"] == manifest["totals"]["documents"] == len(found.texts)
        assert normalised["bytes_out"] == manifest["totals"]["bytes"] == sum(len(t.encode()) for t in found.texts)
        return found

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    """Write a raw file below tmp_path/in; .gz and .zst names are compressed."""

    def call(name: str, content: bytes | str) -> Path:
        data = content.encode() if isinstance(content, str) else content
        if name.endswith(".gz"):
            data = gzip.compress(data)
        elif name.endswith(".zst"):
            data = zstandard.compress(data)
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return call
