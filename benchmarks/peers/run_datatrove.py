"""datatrove: its four MinHash steps, as FineWeb used them: 14 bands of 8 rows, 5-grams of spaCy's words."""

import json
from collections.abc import Callable
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from protocol import BANDS, NGRAM, ROWS, SAME_BANDS, SEED, Clusters, main

CONFIG = MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS, seed=SEED)


def signatures(texts: list[str]) -> None:
    step = MinhashDedupSignature("unused", CONFIG)  # its arithmetic alone, without its files
    for text in texts:
        found = step.get_shingles(text)
        if found.size:
            step.get_signature(found)


def dedup(documents: Path, scratch: Path) -> Callable[[], Clusters]:
    def folder(name: str) -> str:
        return str(scratch / name)

    listed = scratch / "paths.txt"
    listed.write_text(f"{documents.name}\n")

    def reader() -> JsonlReader:
        return JsonlReader(str(documents.parent), paths_file=str(listed))  # a pattern would match suffixes

    removed = JsonlWriter(folder("removed"), compression=None)
    steps = [
        [reader(), MinhashDedupSignature(folder("signatures"), CONFIG)],
        [MinhashDedupBuckets(folder("signatures"), folder("buckets"), config=CONFIG)],
        [MinhashDedupCluster(folder("buckets"), folder("clusters"), CONFIG, save_cluster_id=True)],
        [
            reader(),
            MinhashDedupFilter(folder("clusters"), removed, load_cluster_ids=True),
            JsonlWriter(folder("kept"), compression=None),
        ],
    ]
    for number, (pipeline, tasks) in enumerate(zip(steps, (1, BANDS, 1, 1), strict=True)):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=folder(f"logs-{number}")).run()

    def clusters() -> Clusters:
        for path in (*(scratch / "removed").glob("*.jsonl"), *(scratch / "kept").glob("*.jsonl")):
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    record = json.loads(line)
                    cluster = record["metadata"].get("minhash_cluster_id", -1)
                    if cluster >= 0:
                        yield record["id"], str(cluster)

    return clusters


if __name__ == "__main__":
    main("datatrove", {"": signatures}, {SAME_BANDS: dedup})
