from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pools import local
from seqmill.manifest import OutputFile, write_manifest
from seqmill.pipeline.funnel import check_funnel
from seqmill.pipeline.mixing import MixConfig, mix
from seqmill.pipeline.progress import Silent
from seqmill.storage import read_arrow, with_metadata, write_arrow

Rows = Sequence[Mapping[str, Any]]
FIELDS = {"doc_id": pa.uint64(), "id": pa.string(), "text": pa.large_string(), "source": pa.string()}
MORE = {"cluster_id": pa.uint64(), "copy": pa.uint32(), "score": pa.float32(), "tags": pa.list_(pa.string())}


def document(doc_id: int, text: str = "text", source: str = "web", **more: Any) -> dict[str, Any]:
    return {"doc_id": doc_id, "id": f"id{doc_id}", "text": text, "source": source, **more}


@pytest.fixture
def documents_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a finished documents folder, `per_part` rows to a file and `per_batch` to a record batch."""

    def call(rows: Rows, name: str = "documents", per_part: int = 1000, per_batch: int = 7) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        columns = [column for column in (*FIELDS, *MORE) if not rows or column in rows[0]]
        fields = {column: {**FIELDS, **MORE}[column] for column in columns if rows or column in FIELDS}
        schema = with_metadata(pa.schema(fields), "documents")
        files = []
        for number, first in enumerate(range(0, max(1, len(rows)), per_part)):
            table = pa.Table.from_pylist(list(rows[first : first + per_part]), schema)
            file = f"part-{number:05d}.arrow"
            write_arrow(folder / file, schema, table.to_batches(max_chunksize=per_batch))
            files.append(OutputFile.of(folder, file, len(table)))
        write_manifest(folder, "documents", files, totals={"documents": len(rows)})
        return folder

    return call


class Mixed:
    """A mix: its manifest and its rows in order. Whatever was mixed, the counts must add up."""

    def __init__(self, out: Path, manifest: dict[str, Any]) -> None:
        self.out, self.manifest = out, manifest
        tables = [read_arrow(out / file["name"]) for file in manifest["files"]]
        self.rows: list[dict[str, Any]] = [row for table in tables for row in table.to_pylist()]
        self.columns = tables[0].column_names if tables else []
        self.part_sizes = [table.nbytes for table in tables]
        check_funnel(manifest["funnel"])
        (funnel,) = manifest["funnel"]
        distinct = {row["doc_id"] for row in self.rows}
        assert len(distinct) == funnel["documents_out"]
        assert len(self.rows) - len(distinct) == manifest["repeated"]["documents"]
        assert manifest["totals"]["documents"] == len(self.rows)
        assert manifest["totals"]["bytes"] == funnel["bytes_out"] + manifest["repeated"]["bytes"]
        assert manifest["totals"]["bytes"] == sum(map(size_of, self.rows))
        for name, source in manifest["by_source"].items():
            own = [row for row in self.rows if row["source"] == name]
            assert source["left"]["documents"] == len(own)
            assert source["left"]["bytes"] == sum(map(size_of, own))
            lost = funnel["reasons"].get(f"not sampled: {name}", {"documents": 0, "bytes": 0})
            assert {unit: source["entered"][unit] - lost[unit] for unit in lost} == {
                "documents": len({row["doc_id"] for row in own}),
                "bytes": source["distinct"]["bytes"],
            }

    def order(self) -> list[tuple[int, int]]:
        return [(row["doc_id"], row.get("copy", 0)) for row in self.rows]

    def copies(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for row in self.rows:
            counts[row["doc_id"]] = counts.get(row["doc_id"], 0) + 1
        return counts


def size_of(row: Mapping[str, Any]) -> int:
    return row["num_bytes"] if "num_bytes" in row else len(row["text"].encode())


@pytest.fixture
def run_mix(tmp_path: Path) -> Callable[..., Mixed]:
    made = 0

    def call(*folders: Path, out: Path | None = None, workers: int = 1, **config: Any) -> Mixed:
        nonlocal made
        made += 1
        target = out or tmp_path / f"mix-{made}"
        return Mixed(target, mix(folders, MixConfig(**config), target, local(workers), Silent()))

    return call
