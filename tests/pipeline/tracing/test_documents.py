"""Where a document went, and what of it is in no row."""

import json
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.manifest import OutputFile, write_manifest
from seqmill.packing.lookup import find_document
from seqmill.packing.schema import packed_schema
from seqmill.pipeline.pack import BucketConfig, PackConfig
from seqmill.pipeline.tracing import Sources, Target, trace
from seqmill.storage import read_arrow, write_arrow

LONG = "a long document that needs more than one row of thirty-two tokens"


def spans(found: dict) -> list[list[int]]:
    return [segment["tokens"] for segment in found["segments"]]


def test_the_segments_of_every_document_are_found_and_cover_it(by_kind: Callable) -> None:
    made = by_kind("bpe")
    for doc_id in made.texts:
        found = trace(made.packed, Target("doc", doc_id))
        assert (found["complete"], found["missing"], found["copies"]) == (True, [], 1)
        assert [end for _, end in spans(found)] == [*(begin for begin, _ in spans(found)[1:]), found["document_tokens"]]
        for one in found["segments"]:
            segment = trace(made.packed, Target("row", one["row"]))["segments"][one["segment"]]
            assert (segment["doc_id"], segment["tokens"]) == (doc_id, one["tokens"])
            assert segment["next_token"] == one["next_token"]


@pytest.mark.parametrize(
    ("overflow", "held", "missing", "why"),
    [
        ("truncate", [[0, 32]], [32, 66], "behind the first 32 tokens (overflow: truncate)"),
        ("drop", [], [0, 66], "the document is longer than a row of 32 tokens (overflow: drop)"),
    ],
)
def test_what_a_policy_left_out_is_told(
    make_run: Callable, tmp_path: Path, overflow: str, held: list, missing: list, why: str
) -> None:
    made = make_run(tmp_path, config=PackConfig(seq_len=32, overflow=overflow), texts=[LONG, "short"])
    found = trace(made.packed, Target("doc", 0))
    assert (spans(found), found["complete"]) == (held, False)
    assert found["missing"] == [{"tokens": missing, "copies": 1, "why": why}]
    assert trace(made.packed, Target("doc", (1 << 40) + 1))["complete"] is True


@pytest.mark.parametrize("leftovers", ["carry_to_packer", "drop"])
def test_buckets_tell_of_targets_and_of_leftovers(make_run: Callable, tmp_path: Path, leftovers: str) -> None:
    cut = BucketConfig(shortest=8, longest=32, step_tokens=64, cycles=1, leftovers=leftovers)
    made = make_run(tmp_path, config=PackConfig(buckets=cut), texts=[LONG + "..", "", "0123456789"])
    long, empty = trace(made.packed, Target("doc", 0)), trace(made.packed, Target("doc", (1 << 40) + 1))
    target = "it is there as the target of the token before it"
    assert empty["missing"] == [{"tokens": [0, 1], "copies": 1, "why": "a document of one token has no target"}]
    if leftovers == "drop":  # 68 tokens: pairs in 32 + 32, 3 pairs are left
        assert spans(long) == [[0, 32], [32, 64]]
        assert [(one["tokens"], one["why"]) for one in long["missing"]] == [
            ([64, 65], target),
            ([65, 68], "an end shorter than the shortest bucket of 8 (leftovers: drop)"),
        ]
        assert long["complete"] is False
    else:
        assert spans(long) == [[0, 32], [32, 64], [64, 67]]
        assert [(one["tokens"], one["why"]) for one in long["missing"]] == [([67, 68], target)]
        assert long["complete"] is True


def test_copies_are_counted_and_a_lost_one_is_missed(make_run: Callable, tmp_path: Path) -> None:
    made = make_run(tmp_path, texts=[LONG, "x", LONG], ids=[7, 8, 7])
    found = trace(made.packed, Target("doc", 7))
    assert (found["copies"], found["complete"]) == (2, True)
    assert spans(found) == sorted(2 * [[0, 32], [32, 64], [64, 66]])
    lost = next(one for one in found["segments"] if one["tokens"] == [32, 64])["row"]
    drop_row(made.packed, lost)
    found = trace(made.packed, Target("doc", 7))
    assert found["complete"] is False
    assert [(one["tokens"], one["copies"]) for one in found["missing"]] == [([32, 64], 1)]
    assert "seqmill inspect --validate" in found["missing"][0]["why"]


def drop_row(packed: Path, row: int) -> None:
    """Take one row out of the only shard, with a manifest that fits."""
    path = packed / "part-00000.arrow"
    rows = read_arrow(path)
    kept = pa.concat_tables([rows.slice(0, row), rows.slice(row + 1)]).combine_chunks()
    rows_left = write_arrow(path, kept.schema, kept.to_batches())
    manifest = json.loads((packed / "manifest.json").read_text())
    entries = {k: v for k, v in manifest.items() if k not in ("format_version", "kind", "fingerprint", "files")}
    write_manifest(packed, "packed", [OutputFile.of(packed, path.name, rows_left)], **entries)


def test_without_the_tokens_folder_only_the_rows_speak(make_run: Callable, tmp_path: Path) -> None:
    made = make_run(tmp_path, texts=[LONG, "x"])
    shutil.rmtree(made.root / "tokens")
    found = trace(made.packed, Target("doc", 0))
    assert (spans(found), found["complete"], found["missing"]) == ([[0, 32], [32, 64], [64, 66]], None, [])
    with pytest.raises(UserError, match=r"document 0:99 is in no row .* give the tokens folder with --tokens"):
        trace(made.packed, Target("doc", 99))


def test_documents_are_found_by_the_ids_of_their_users(by_kind: Callable) -> None:
    made = by_kind("byte")
    assert trace(made.packed, Target.of("id:name-10"))["doc_id"] == (1 << 40) + 10
    with pytest.raises(UserError, match="no document 'nobody'; trace one by its doc_id"):
        trace(made.packed, Target.of("id:nobody"))
    with pytest.raises(UserError, match=r"document 0:77 is in no row of .* and not in"):
        trace(made.packed, Target("doc", 77))


def test_names_that_several_documents_have_are_refused(make_run: Callable, tmp_path: Path) -> None:
    made = make_run(tmp_path, texts=["a", "b"], ids=[4, (1 << 40) + 4])
    with pytest.raises(UserError, match="2 documents with the id 'name-4': doc:0:4, doc:1:4; trace one by"):
        trace(made.packed, Target("id", "name-4"), Sources(documents=made.root / "documents"))


def test_a_document_is_found_among_millions_of_segments_without_reading_tokens(tmp_path: Path) -> None:
    """Two million segments in rows of four; the file's tokens are never touched, so their values do not matter."""
    rows, each = 500_000, 4
    rng = np.random.default_rng(0)
    doc_ids = rng.integers(0, 1 << 50, rows * each).astype(np.uint64)
    bounds = pa.array(np.arange(rows + 1, dtype=np.int32) * each)
    schema = packed_schema(300, {})
    fills = {"doc_id": doc_ids, "next_token": np.full(rows * each, -1, np.int32)}
    arrays = []
    for name, type_ in zip(schema.names, schema.types, strict=True):
        count = rows * each if pa.types.is_list(type_) else rows
        values = fills.get(name, np.zeros(count, (type_.value_type if count > rows else type_).to_pandas_dtype()))
        arrays.append(pa.ListArray.from_arrays(bounds, pa.array(values)) if count > rows else pa.array(values))
    write_arrow(tmp_path / "part-00000.arrow", schema, pa.Table.from_arrays(arrays, schema=schema).to_batches(100_000))
    write_manifest(tmp_path, "packed", [OutputFile.of(tmp_path, "part-00000.arrow", rows)])
    wanted = [0, 777_777, rows * each - 1]
    began = time.process_time()
    for place in wanted:
        found = find_document(tmp_path, int(doc_ids[place]))
        assert list(zip(found.row.tolist(), found.segment.tolist(), strict=True)) == [divmod(place, each)]
    assert (time.process_time() - began) / len(wanted) < 1


def test_segments_of_a_document_come_in_order(by_kind: Callable) -> None:
    made = by_kind("byte")
    for doc_id in made.texts:
        found = find_document(made.packed, doc_id)
        assert all(a <= b for a, b in pairwise(found.start.tolist()))
