"""Several documents under one id, and the column is_repeat, from the tokens folder to a trainer's batches."""

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.manifest import OutputFile, open_manifest, write_manifest
from seqmill.packing import PackedDataset, PackedRows, TokenStore, validate
from seqmill.packing.schema import hash_rows
from seqmill.packing.validation.segments import number_keys, ranks
from seqmill.storage import read_arrow, read_json, write_arrow, write_json

from .conftest import Packed, random_documents

Change = Callable[[list[dict[str, Any]]], None]
LENGTHS = [5, 40, 16, 17, 0, 3, 33, 100, 8]
OFTEN = {1: 3, 3: 2, 5: 4, 7: 2}  # document -> copies; the others occur once


@pytest.fixture
def repeated(pack: Callable) -> Callable[..., Packed]:
    """repeated(): documents of LENGTHS, some of them OFTEN, packed into rows of 16 with is_repeat."""

    def build(overflow: str = "split", flags: bool = True, shards: int = 2, **options: Any) -> Packed:
        documents = random_documents(LENGTHS, 50_000)
        rows = [number for number in range(len(LENGTHS)) for _ in range(OFTEN.get(number, 1))]
        rows = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
        return pack(
            [],
            16,
            overflow,
            shards=shards,
            documents=[documents[i] for i in rows],
            doc_ids=[100 + 10 * i for i in rows],
            is_repeat=[i in OFTEN for i in rows] if flags else None,
            **options,
        )

    return build


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.arrow")) for row in read_arrow(path).to_pylist()]


def edit(folder: Path, change: Change) -> None:
    """Change all rows of all shards and make hashes, manifest and totals fit, as a wrong writer would."""
    manifest = read_json(folder / "manifest.json")
    files = []
    for file in manifest["files"]:
        path = folder / file["name"]
        table = read_arrow(path)
        rows, schema = table.to_pylist(), table.schema
        change(rows)
        for row in rows:
            ids, cu = np.array(row["input_ids"], np.uint16), np.array(row["cu_seqlens"], np.int32)
            row["xxh3"] = hash_rows(ids, np.array([0, len(ids)]), cu, np.array([0, len(cu)]))[0]
        del table
        write_arrow(path, schema, pa.Table.from_pylist(rows, schema).to_batches(max_chunksize=4))
        files.append(OutputFile.of(folder, path.name, len(rows)))
    write_manifest(folder, "packed", files, **{name: manifest[name] for name in ("pack", "totals", "drops")})


def kinds(folder: Path, tokens: Path | None = None) -> set[str]:
    """What is violated, besides the fingerprint of a manifest that a test has edited."""
    return {violation.invariant for violation in validate(folder, tokens).violations} - {"manifest"}


def segments(folder: Path) -> Counter:
    """Every segment as (doc_id, offset, tokens, next token, is_repeat)."""
    found: Counter = Counter()
    for row in rows_of(folder):
        for number, (begin, end) in enumerate(zip(row["cu_seqlens"], row["cu_seqlens"][1:], strict=False)):
            columns = (row[name][number] for name in ("doc_id", "doc_offset", "next_token", "is_repeat"))
            found[(*columns, tuple(row["input_ids"][begin:end]))] += 1
    return found


@pytest.mark.parametrize("algorithm", ["windowed", "concat", "first-fit"])
def test_other_packers_rows_of_repeated_documents_are_valid(repeated: Callable[..., Packed], algorithm: str) -> None:
    packed = repeated(algorithm=algorithm)
    report = validate(packed.folder, packed.corpus.folder)
    assert report.ok, str(report)


@pytest.mark.parametrize("overflow", ["split", "truncate", "drop"])
@pytest.mark.parametrize("flags", [True, False])
def test_several_documents_of_one_id_are_packed_and_valid(
    repeated: Callable[..., Packed], overflow: str, flags: bool
) -> None:
    packed = repeated(overflow, flags)
    for report in (validate(packed.folder), validate(packed.folder, packed.corpus.folder)):
        assert report.ok, str(report)
    manifest = open_manifest(packed.folder)
    expected = {"split": 2 + 1 + 3 + 1, "truncate": 2 + 1 + 3 + 1, "drop": 3}
    assert manifest["totals"]["documents_repeated"] == expected[overflow]
    assert manifest["pack"].get("is_repeat", False) == flags
    assert ("repeat_tokens" in manifest["totals"]) == flags


def test_every_copy_is_in_the_rows_with_its_flag(repeated: Callable[..., Packed]) -> None:
    packed = repeated()
    expected: Counter = Counter()
    for doc_id, document in zip(packed.corpus.doc_ids, packed.corpus.documents, strict=True):
        tokens = document.tolist()
        for begin in range(0, len(tokens), 16):
            part, rest = tokens[begin : begin + 16], tokens[begin + 16 :]
            expected[(doc_id, begin, rest[0] if rest else -1, (doc_id - 100) // 10 in OFTEN, tuple(part))] += 1
    assert segments(packed.folder) == expected
    tokens = sum(LENGTHS[i] * copies for i, copies in OFTEN.items())
    assert open_manifest(packed.folder)["totals"]["repeat_tokens"] == tokens


def test_rows_without_the_column_are_those_of_documents_that_do_not_tell(repeated: Callable[..., Packed]) -> None:
    told, silent = repeated(), repeated(flags=False)
    assert "is_repeat" not in rows_of(silent.folder)[0]
    assert [{k: v for k, v in row.items() if k != "is_repeat"} for row in rows_of(told.folder)] == rows_of(
        silent.folder
    )


def test_batches_tell_which_segments_are_repeats(repeated: Callable[..., Packed]) -> None:
    packed = repeated(shards=3)
    rows = rows_of(packed.folder)
    seen = set()
    for world_size in (1, 2):
        for rank in range(world_size):
            for batch in PackedDataset(packed.folder, batch_rows=3, seed=2, rank=rank, world_size=world_size):
                expected = [flag for row in batch["row_ids"].tolist() for flag in rows[row]["is_repeat"]]
                assert batch["is_repeat"].tolist() == expected
                assert len(expected) == len(batch["cu_seqlens"]) - 1
                seen |= set(expected)
    assert seen == {True, False}
    dataset = pickle.loads(pickle.dumps(PackedDataset(packed.folder)))
    for index, row in enumerate(rows):
        assert dataset.row(index)["is_repeat"].tolist() == row["is_repeat"]
        assert PackedRows(packed.folder).row(index)["is_repeat"].tolist() == row["is_repeat"]
    assert "is_repeat" not in next(iter(PackedDataset(repeated(flags=False).folder)))


def test_flags_of_sliced_tables_are_those_of_their_documents() -> None:
    """Arrow packs eight flags to a byte: slices begin in the middle of one."""
    flags = np.random.default_rng(0).random(100) < 0.5
    ids, sources = [[1]] * 100, ["a"] * 100
    table = pa.table(
        {
            "doc_id": pa.array(range(100), pa.uint64()),
            "input_ids": pa.array(ids, pa.list_(pa.uint16())),
            "source": sources,
            "is_repeat": flags,
        }
    )
    parts = [table.slice(3, 20), table.slice(50, 0), table.slice(41, 7), table.slice(64, 1)]
    store = TokenStore([pa.concat_tables(parts)], {"vocab_size": 10, "sources": ["a"]})
    expected = [*flags[3:23], *flags[41:48], flags[64]]
    assert store.is_repeat_of(np.arange(28)).tolist() == expected
    assert store.is_repeat_of(np.array([27, 0, 27])).tolist() == [expected[27], expected[0], expected[27]]


def test_flags_that_cannot_be_read_are_refused() -> None:
    manifest = {"vocab_size": 10, "sources": ["a"]}
    table = pa.table(
        {"doc_id": pa.array([1], pa.uint64()), "input_ids": pa.array([[1]], pa.list_(pa.uint16())), "source": ["a"]}
    )
    with pytest.raises(UserError, match="some token tables have a column is_repeat, others not"):
        TokenStore([table, table.append_column("is_repeat", pa.array([True]))], manifest)
    with pytest.raises(UserError, match="is_repeat has type int64, but bool is needed"):
        TokenStore([table.append_column("is_repeat", pa.array([1]))], manifest)
    with pytest.raises(UserError, match="1 nulls in 'is_repeat'"):
        TokenStore([table.append_column("is_repeat", pa.array([None], pa.bool_()))], manifest)


def of_document(number: int, offset: int) -> Callable[[dict[str, Any]], int | None]:
    """The place of a segment in a row, or None."""

    def place(row: dict[str, Any]) -> int | None:
        here = zip(row["doc_id"], row["doc_offset"], strict=True)
        return next((i for i, found in enumerate(here) if found == (100 + 10 * number, offset)), None)

    return place


def once(place: Callable[[dict[str, Any]], int | None], change: Callable[[dict[str, Any], int], None]) -> Change:
    """Apply a change to the first row that has such a segment."""
    done: list[int] = []

    def apply(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            found = place(row)
            if found is not None and not done:
                done.append(row["row_id"])
                change(row, found)

    return apply


def put(name: str, value: Any) -> Callable[[dict[str, Any], int], None]:
    return lambda row, i: row[name].__setitem__(i, value)


WRONG: dict[str, tuple[set[str], set[str], Change]] = {
    # what is wrong -> violations of the rows alone, and beside the tokens folder
    "a copy begins at a place where no other ends": (
        {"I4", "totals"},
        {"I4", "totals"},
        once(of_document(5, 0), put("doc_offset", 2)),
    ),
    "a middle piece says another next token": ({"I5"}, {"I5"}, once(of_document(7, 16), put("next_token", 7))),
    "a piece of a copy has another document's id": (
        {"I4", "I5"},
        {"I4", "I5"},
        once(of_document(7, 32), put("doc_id", 150)),
    ),
    "a copy has the id of another repeated document": (
        set(),
        {"I4"},
        once(of_document(5, 0), put("doc_id", 130)),
    ),
    "a copy has an id of its own": ({"totals"}, {"I4", "totals"}, once(of_document(5, 0), put("doc_id", 999))),
    "a copy's flag is wrong": ({"totals"}, {"I4", "totals"}, once(of_document(5, 0), put("is_repeat", False))),
    "a single document's flag is wrong": (
        {"totals"},
        {"I4", "totals"},
        once(of_document(8, 0), put("is_repeat", True)),
    ),
    "a copy's tokens are wrong": (
        set(),
        {"I4"},
        once(of_document(5, 0), lambda row, i: row["input_ids"].__setitem__(row["cu_seqlens"][i + 1] - 1, 3)),
    ),
    "a single document's tokens are wrong": (
        set(),
        {"I4"},
        once(of_document(8, 0), lambda row, i: row["input_ids"].__setitem__(row["cu_seqlens"][i + 1] - 1, 3)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_inconsistency_of_repeats_is_named(repeated: Callable[..., Packed], name: str) -> None:
    alone, beside, change = WRONG[name]
    packed = repeated()
    edit(packed.folder, lambda rows: None)
    assert validate(packed.folder, packed.corpus.folder).ok, "the way of editing is at fault"
    edit(packed.folder, change)
    assert kinds(packed.folder) - {"I6"} == alone
    assert kinds(packed.folder, packed.corpus.folder) - {"I6"} == beside


def test_a_second_copy_that_was_not_announced_is_named(repeated: Callable[..., Packed]) -> None:
    packed = repeated()
    manifest = read_json(packed.folder / "manifest.json")
    del manifest["totals"]["documents_repeated"]
    write_json(packed.folder / "manifest.json", manifest)
    assert kinds(packed.folder) == {"I4", "totals"}
    manifest["totals"]["documents_repeated"] = 6
    write_json(packed.folder / "manifest.json", manifest)
    assert kinds(packed.folder) == {"totals"}


def test_a_missing_copy_is_named_beside_the_tokens(pack: Callable) -> None:
    document = random_documents([20], 50_000)[0]
    two, three = (
        pack([], 16, documents=[document] * n, doc_ids=[7] * n, is_repeat=[True] * n, shards=1) for n in (2, 3)
    )
    assert validate(two.folder, two.corpus.folder).ok
    assert "piece of the repeated document 7 is in no row" in str(validate(two.folder, three.corpus.folder))
    assert "one too many" in str(validate(three.folder, two.corpus.folder))


def test_different_documents_of_one_id_are_told_apart(pack: Callable) -> None:
    documents = random_documents([20, 35, 16, 3], 50_000)
    packed = pack([], 16, documents=documents, doc_ids=[7, 7, 7, 8])
    assert validate(packed.folder, packed.corpus.folder).ok
    other = pack(
        [], 16, documents=[documents[0], *random_documents([35], 50_000, 9), *documents[2:]], doc_ids=[7, 7, 7, 8]
    )
    assert kinds(packed.folder, other.corpus.folder) == {"I4"}


def test_a_flag_column_of_rows_or_tokens_alone_is_named(repeated: Callable[..., Packed]) -> None:
    told, silent = repeated(), repeated(flags=False)
    assert "only one of the rows and the tokens folder has the column is_repeat" in str(
        validate(told.folder, silent.corpus.folder)
    )
    manifest = read_json(silent.folder / "manifest.json")
    manifest["pack"]["is_repeat"] = True
    write_json(silent.folder / "manifest.json", manifest)
    assert "schema" in kinds(silent.folder)
    with pytest.raises(UserError, match="does not have the layout"):
        PackedRows(silent.folder)


def test_numbers_and_ranks_of_keys_are_those_of_sorted_tuples() -> None:
    draw = np.random.default_rng(0)
    one, two = draw.integers(0, 4, 60), draw.integers(0, 3, 60)
    pairs = list(zip(one.tolist(), two.tolist(), strict=True))
    numbers = number_keys(one, two)
    assert numbers.tolist() == [sorted(set(pairs)).index(pair) for pair in pairs]
    order, rank = ranks(numbers, -two)
    assert sorted(order.tolist()) == list(range(60))
    for i, pair in enumerate(pairs):
        assert rank[i] == sum(1 for j in range(i) if pairs[j] == pair)
