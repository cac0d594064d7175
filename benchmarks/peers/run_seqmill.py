"""seqmill itself, driven as its peers are: from the same JSON lines, or from a documents folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from protocol import BUDGETS, SAME_BANDS, Clusters, main

from seqmill.manifest import open_manifest
from seqmill.pipeline.dedup import DedupConfig, dedup
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent


def from_documents(documents: Path, scratch: Path, memory_mb: int = DedupConfig.memory_mb) -> Callable[[], Clusters]:
    out = scratch / "dedup"
    dedup(documents, DedupConfig(memory_mb=memory_mb), out, LocalExecutor(1), Silent())

    def clusters() -> Clusters:
        removed = pq.read_table(out / "removed.parquet", columns=["id", "cluster_id"])
        yield from zip(removed["id"].to_pylist(), map(str, removed["cluster_id"].to_pylist()), strict=True)
        for file in open_manifest(out, "documents")["files"]:
            for batch in document_batches(out / file["name"]):
                yield from zip(batch["id"].to_pylist(), map(str, batch["cluster_id"].to_pylist()), strict=True)

    return clusters


def from_json_lines(documents: Path, scratch: Path) -> Callable[[], Clusters]:
    ingest(IngestConfig((str(documents),)), NormaliseConfig(), scratch / "documents", LocalExecutor(1), Silent())
    return from_documents(scratch / "documents", scratch)


if __name__ == "__main__":
    budgets = {f"budget {size}": partial(from_documents, memory_mb=size) for size in BUDGETS}
    main("seqmill", {}, {SAME_BANDS: from_json_lines, "documents": from_documents, **budgets})
