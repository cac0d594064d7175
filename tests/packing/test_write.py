import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import xxhash

from seqmill.errors import UserError
from seqmill.packing import RowTotals, TokenStore, load_plan, pack_settings, plan, save_plan, validate, write_rows
from seqmill.storage import fingerprint, read_arrow, read_metadata

LENGTHS = [0, 1, 15, 16, 17, 1600, 3, 3, 3, 40, 0, 31, 8, 8, 2, 5, 100, 7]


def all_rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*.arrow")) for row in read_arrow(path).to_pylist()]


def fragments(folder: Path) -> dict[int, dict[int, tuple[list[int], int]]]:
    """document id -> offset -> (tokens, next token), read from the rows alone."""
    found: dict[int, dict[int, tuple[list[int], int]]] = {}
    for row in all_rows(folder):
        begin = 0
        for number, length in enumerate(row["seq_lengths"]):
            tokens = row["input_ids"][begin : begin + length]
            document = found.setdefault(row["doc_id"][number], {})
            assert row["doc_offset"][number] not in document
            document[row["doc_offset"][number]] = (tokens, row["next_token"][number])
            begin += length
        assert begin == len(row["input_ids"])
    return found


@pytest.mark.parametrize("overflow", ["split", "truncate", "drop"])
@pytest.mark.parametrize("vocab_size", [50_000, 65_536, 65_537])
def test_documents_are_rebuilt_from_the_rows(pack: Callable, overflow: str, vocab_size: int) -> None:
    packed = pack(LENGTHS, 16, overflow, vocab_size=vocab_size)
    found = fragments(packed.folder)
    for doc_id, document in zip(packed.corpus.doc_ids, packed.corpus.documents, strict=True):
        tokens = document.tolist()
        if overflow == "truncate":
            tokens = tokens[:16]
        elif overflow == "drop" and len(tokens) > 16:
            tokens = []
        parts = sorted(found.pop(doc_id, {}).items())
        assert [token for _, (part, _) in parts for token in part] == tokens
        followers = [part[0] for _, (part, _) in parts[1:]]
        assert [follower for _, (_, follower) in parts] == followers + [-1] * bool(tokens)
        assert [offset for offset, _ in parts] == list(range(0, len(tokens), 16))
    assert not found


def test_documents_that_rows_cut_anywhere_are_rebuilt(pack: Callable) -> None:
    packed = pack(LENGTHS, 16, algorithm="concat")
    found = fragments(packed.folder)
    offsets = {offset % 16 for document in found.values() for offset in document}
    assert len(offsets) > 5
    for doc_id, document in zip(packed.corpus.doc_ids, packed.corpus.documents, strict=True):
        parts = sorted(found.pop(doc_id, {}).items())
        assert [token for _, (part, _) in parts for token in part] == document.tolist()
        followers = [part[0] for _, (part, _) in parts[1:]]
        assert [follower for _, (_, follower) in parts] == followers + [-1] * bool(len(document))
    assert not found
    assert validate(packed.folder, packed.corpus.folder).ok


def test_every_column_follows_from_the_tokens_and_lengths(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    by_id = dict(zip(packed.corpus.doc_ids, packed.corpus.sources, strict=True))
    rows = all_rows(packed.folder)
    assert [row["row_id"] for row in rows] == list(range(packed.plan.rows))
    assert max(len(row["seq_lengths"]) for row in rows) > 2
    for row in rows:
        lengths = row["seq_lengths"]
        assert row["cu_seqlens"] == [0, *np.cumsum(lengths).tolist()]
        assert row["max_seqlen"] == max(lengths)
        assert row["n_tokens"] == sum(lengths) == len(row["input_ids"]) <= 16
        assert row["n_loss_tokens"] == row["n_tokens"] - row["next_token"].count(-1)
        assert row["sum_sq"] == sum(length * length for length in lengths)
        assert row["pos_start"] == [0] * len(lengths)
        assert [packed.store.sources[number] for number in row["source"]] == [by_id[i] for i in row["doc_id"]]
        content = np.array(row["input_ids"], np.uint16).tobytes() + np.array(row["cu_seqlens"], np.int32).tobytes()
        assert row["xxh3"] == np.uint64(xxhash.xxh3_64_intdigest(content)).astype(np.int64)


def test_batches_are_bounded_and_their_offsets_begin_at_zero(pack: Callable) -> None:
    packed = pack(LENGTHS, 16, batch_tokens=64)
    batches = [b for path in sorted(packed.folder.glob("part-*")) for b in read_arrow(path).to_batches()]
    assert len(batches) > 10
    assert {batch.num_rows for batch in batches} <= {1, 2, 3, 4}
    for batch in batches:
        for column in batch.columns:
            assert column.null_count == 0
            assert not pa.types.is_list(column.type) or column.offsets[0].as_py() == 0


def test_a_shard_depends_on_its_rows_and_not_on_its_writer(pack: Callable, tmp_path: Path) -> None:
    """Equal bytes: from the plan in memory, and from the saved plan in another process."""
    packed = pack(LENGTHS, 16, shards=3)
    edges = np.linspace(0, packed.plan.rows, 4).astype(int).tolist()
    save_plan(tmp_path / "plan.arrow", packed.plan)
    script = (
        "import sys; from pathlib import Path; from seqmill.packing import *\n"
        "plan = load_plan(Path(sys.argv[1])); store = TokenStore.open(Path(sys.argv[2]))\n"
        "first, last = int(sys.argv[4]), int(sys.argv[5])\n"
        "write_rows(Path(sys.argv[3]), plan, first, last, store, pack_settings(plan, store), 64)\n"
    )
    out = tmp_path / "again.arrow"
    arguments = [tmp_path / "plan.arrow", packed.corpus.folder, out, edges[1], edges[2]]
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True)
    assert out.read_bytes() == (packed.folder / "part-00001.arrow").read_bytes()


def test_the_number_of_shards_changes_no_row(pack: Callable) -> None:
    one, three = pack(LENGTHS, 16, shards=1), pack(LENGTHS, 16, shards=3)
    assert all_rows(one.folder) == all_rows(three.folder)
    assert len(list(three.folder.glob("part-*"))) == 3


def test_totals_of_parts_add_up_to_those_of_the_whole(pack: Callable, tmp_path: Path) -> None:
    packed = pack(LENGTHS, 16)
    settings = pack_settings(packed.plan, packed.store)
    rows = packed.plan.rows

    def totals(first: int, last: int) -> RowTotals:
        return write_rows(tmp_path / f"{first}-{last}", packed.plan, first, last, packed.store, settings, 64)

    whole = totals(0, rows)
    assert totals(0, 5) + totals(5, 5) + totals(5, rows) == whole
    assert RowTotals(**whole.as_json()) == whole
    table = pa.concat_tables(read_arrow(path) for path in sorted(packed.folder.glob("part-*"))).to_pydict()
    sizes = [length for row in table["seq_lengths"] for length in row]
    assert whole == RowTotals(
        rows=rows,
        tokens=sum(LENGTHS),
        loss_tokens=sum(table["n_loss_tokens"]),
        segments=len(sizes),
        sum_sq=sum(table["sum_sq"]),
        max_row_sum_sq=max(table["sum_sq"]),
        min_seqlen=min(sizes),
        max_seqlen=16,
    )
    assert whole.loss_tokens == sum(length - 1 for length in LENGTHS if length)


def test_the_manifest_accounts_for_everything(pack: Callable) -> None:
    from seqmill.manifest import open_manifest

    manifest = open_manifest(pack(LENGTHS, 16, "truncate", seed=5).folder, "packed")
    too_long = [length for length in LENGTHS if length > 16]
    assert manifest["drops"] == {
        "policy": "truncate",
        "documents_in": len(LENGTHS),
        "tokens_in": sum(LENGTHS),
        "tokens": sum(too_long) - 16 * len(too_long),
        "documents": 0,
        "documents_truncated": len(too_long),
        "documents_split": 0,
        "documents_empty": 2,
    }
    assert manifest["totals"]["tokens"] + manifest["drops"]["tokens"] == sum(LENGTHS)
    assert manifest["pack"] == {
        "algorithm": "best-fit-decreasing",
        "capacity": 16,
        "overflow": "truncate",
        "seed": 5,
        "vocab_size": 50_000,
        "token_dtype": "uint16",
        "tokenizer": "f" * 32,
        "tokenizer_kind": "byte",
        "special_ids": {"eos": 0},
        "sources": ["books", "code", "web"],
        "positions": "restart",
        "tokens": manifest["pack"]["tokens"],
    }


@pytest.mark.parametrize("vocab_size", [50_000, 70_000])
def test_datasets_reads_a_shard_with_its_features(pack: Callable, vocab_size: int) -> None:
    path = pack(LENGTHS, 16, vocab_size=vocab_size).folder / "part-00000.arrow"
    read = datasets.Dataset.from_file(str(path))
    expected = read_arrow(path)
    assert read.to_list() == expected.to_pylist()
    assert read.features.arrow_schema.types == expected.schema.types
    assert read.features["input_ids"] == datasets.List(datasets.Value("uint16" if vocab_size == 50_000 else "uint32"))
    assert datasets.Features.from_arrow_schema(expected.schema) == read.features


def test_a_shard_says_what_it_is(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    metadata = read_metadata(read_arrow(packed.folder / "part-00000.arrow").schema)
    settings = pack_settings(packed.plan, packed.store)
    described = {"format_version": 1, "kind": "packed", "fingerprint": fingerprint(["packed", settings])}
    assert metadata == {**described, **settings}


def test_a_plan_of_other_documents_is_refused(pack: Callable, tmp_path: Path) -> None:
    store: TokenStore = pack([3, 4], 8).store
    with pytest.raises(UserError, match="the plan is of 3 documents, the tokens folder has 2"):
        write_rows(tmp_path / "part", plan([3, 4, 5], 8), 0, 1, store, {})
    with pytest.raises(UserError, match="rows 0 to 9 are not in the plan, which has 1"):
        write_rows(tmp_path / "part", plan([3, 4], 8), 0, 9, store, {})
    assert not list(tmp_path.glob("part*"))


def test_a_saved_file_that_is_no_plan_is_refused(pack: Callable) -> None:
    with pytest.raises(UserError, match="holds packed, but a pack plan is needed"):
        load_plan(pack([3, 4], 8).folder / "part-00000.arrow")
