import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pools import local
from seqmill.pipeline.dedup import DedupConfig, dedup
from seqmill.pipeline.funnel import check_funnel
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent

from .made import Deduplicated, Records


@pytest.fixture
def run_dedup(tmp_path: Path) -> Callable[..., Deduplicated]:
    def call(
        records: Records,
        per_file: int = 50,
        workers: int = 1,
        tag: str = "x",
        unit_bytes: int = 4096,
        **config: Any,
    ) -> Deduplicated:
        raw = tmp_path / f"raw-{tag}"
        raw.mkdir(exist_ok=True)
        for first in range(0, len(records), per_file):
            lines = [json.dumps(record) + "\n" for record in records[first : first + per_file]]
            (raw / f"{first:06d}.jsonl").write_text("".join(lines))
        documents, out = tmp_path / f"documents-{tag}", tmp_path / f"dedup-{tag}"
        executor = local(workers)
        small_units = IngestConfig((str(raw),), unit_bytes=unit_bytes)
        ingest(small_units, NormaliseConfig(), documents, executor, Silent())
        manifest = dedup(documents, DedupConfig(**config), out, executor, Silent())
        check_funnel(manifest["funnel"])
        found = Deduplicated(out, manifest)
        entered = manifest["funnel"][0]["documents_in"]
        assert entered == len(found.kept) + len(found.removed)
        assert manifest["totals"]["bytes"] == sum(len(text.encode()) for text in found.kept["text"].to_pylist())
        return found

    return call
