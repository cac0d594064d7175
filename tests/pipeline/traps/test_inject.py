import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import local
from seqmill.errors import UserError
from seqmill.packing.permutation import round_keys
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.traps import InjectConfig, inject
from seqmill.pipeline.traps.gaps import count_gaps, find_gaps
from seqmill.pipeline.traps.inject import insert
from seqmill.pipeline.traps.table import read_traps
from seqmill.storage import read_arrow, read_json, write_arrow

from .conftest import HOST_BYTES

Encode = Callable[[str], list[int]]
Read = Callable[[Path], pa.Table]

texts = st.lists(
    st.sampled_from(["a", "é", "👩\u200d👧", "e\u0301", "日本", " ", " ", "\n", "\t", "\u3000"]), max_size=40
)


def removed(text: bytes, spans: list[tuple[int, int]]) -> bytes:
    """`text` without these spans and the byte before each."""
    for start, stop in sorted(spans, reverse=True):
        text = text[: start - 1] + text[stop:]
    return text


def injections(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "injections.parquet").to_pylist()


def test_a_search_finds_every_copy_of_the_members_where_the_table_says_and_no_other(
    injected: Path, table_of: Read
) -> None:
    rows, traps = injections(injected), read_traps(injected / "traps.parquet").to_pylist()
    documents = {row["doc_id"]: row for row in table_of(injected).to_pylist()}
    for trap in traps:
        own = [row for row in rows if row["trap_id"] == trap["trap_id"]]
        found = [
            (doc_id, match.start())
            for doc_id, row in documents.items()
            for match in re.finditer(re.escape(trap["text"].encode()), row["text"].encode())
        ]
        assert len(found) == trap["copies"]
        assert found == [(row["doc_id"], row["start"]) for row in own]
        assert [row["copy"] for row in own] == list(range(trap["copies"]))
        for row in own:
            text = documents[row["doc_id"]]["text"]
            assert text[row["character"] :].startswith(trap["text"])
            assert text[row["character"] - 1] == " "
            assert text[row["character"] + len(trap["text"])] == " "
            assert row["id"] == documents[row["doc_id"]]["id"]
            assert row["stop"] - row["start"] == len(trap["text"].encode())
            assert row["text"] is None


def test_members_get_every_number_of_copies_equally_often_and_documents_of_their_own(injected: Path) -> None:
    traps = read_traps(injected / "traps.parquet").to_pylist()
    shares = Counter((trap["tokens"], trap["member"], trap["copies"]) for trap in traps)
    assert shares == {
        **{(length, True, copies): 4 for length in (20, 40) for copies in (1, 4, 16)},
        **{(length, False, 0): 12 for length in (20, 40)},
    }
    hosts = {row["trap_id"]: row["doc_id"] for row in injections(injected)}
    assert len(hosts) == len(set(hosts.values())) == 24


def test_without_the_copies_every_document_is_as_it_was(injected: Path, documents: Path, table_of: Read) -> None:
    old, new = table_of(documents), table_of(injected)
    assert new.schema.names == old.schema.names
    assert new.drop_columns("text").equals(old.drop_columns("text"))
    spans: dict[int, list[tuple[int, int]]] = {}
    for row in injections(injected):
        spans.setdefault(row["doc_id"], []).append((row["start"], row["stop"]))
    changed = 0
    columns = (column.to_pylist() for column in (old["doc_id"], old["text"], new["text"]))
    for doc_id, before, after in zip(*columns, strict=True):
        assert removed(after.encode(), spans.get(doc_id, [])).decode() == before
        assert len(before.encode()) >= HOST_BYTES or before == after
        changed += before != after
    assert changed == 24


def test_bytes_in_and_added_bytes_are_the_bytes_out(injected: Path, documents: Path, table_of: Read) -> None:
    manifest, before = read_json(injected / "manifest.json"), read_json(documents / "manifest.json")["totals"]
    added = sum(1 + row["stop"] - row["start"] for row in injections(injected))
    assert manifest["entered"] == {key: before[key] for key in ("documents", "bytes")}
    assert manifest["added"] == {"documents": 0, "bytes": added, "copies": len(injections(injected))}
    assert manifest["totals"] == {"documents": before["documents"], "bytes": before["bytes"] + added}
    assert manifest["totals"]["bytes"] == sum(len(text.encode()) for text in table_of(injected)["text"].to_pylist())


def test_all_other_tokens_of_the_documents_stay_the_same(
    injected: Path, documents: Path, table_of: Read, encode: Encode
) -> None:
    """In the new tokens, the runs of the copies stand between those of the old text."""
    old = dict(zip(*(table_of(documents)[name].to_pylist() for name in ("doc_id", "text")), strict=True))
    new = dict(zip(*(table_of(injected)[name].to_pylist() for name in ("doc_id", "text")), strict=True))
    traps = {trap["trap_id"]: trap for trap in read_traps(injected / "traps.parquet").to_pylist()}
    hosts = {row["doc_id"]: row["trap_id"] for row in injections(injected)}
    for doc_id, trap_id in hosts.items():
        run = encode(f" {traps[trap_id]['text']}")
        ids = encode(new[doc_id])
        places = [k for k in range(len(ids)) if ids[k : k + len(run)] == run]
        assert len(places) == traps[trap_id]["copies"]
        for place in reversed(places):
            del ids[place : place + len(run)]
        assert ids == encode(old[doc_id])


def test_the_bytes_are_the_same_for_any_number_of_workers(
    injected: Path, documents: Path, traps_file: Path, tmp_path: Path
) -> None:
    inject(documents, traps_file, InjectConfig((1, 4, 16), HOST_BYTES, seed=5), tmp_path, local(2), Silent())
    names = sorted(path.name for path in injected.iterdir() if path.is_file())
    assert {"injections.parquet", "manifest.json", "part-00000.arrow", "traps.parquet"} <= set(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (injected / name).read_bytes()


def test_another_seed_chooses_other_documents(
    injected: Path, documents: Path, traps_file: Path, tmp_path: Path
) -> None:
    inject(documents, traps_file, InjectConfig((1, 4, 16), HOST_BYTES, seed=6), tmp_path, LocalExecutor(1), Silent())
    hosts = [{row["doc_id"] for row in injections(folder)} for folder in (injected, tmp_path)]
    assert hosts[0] != hosts[1]


def test_too_few_long_documents_are_refused_with_numbers(documents: Path, traps_file: Path, tmp_path: Path) -> None:
    long = InjectConfig(min_document_bytes=9_000)
    with pytest.raises(UserError, match=r"24 member traps need 24 documents; of \d+ documents \d have 9000 bytes"):
        inject(documents, traps_file, long, tmp_path, LocalExecutor(1), Silent())
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("texts", [["日本語" * 900], ["", "a"], ["line\nline\n" * 300], ["a  b   c" * 400]])
def test_documents_without_a_gap_between_words_hold_no_trap(
    texts: list[str], documents_of: Callable[..., Path], traps_file: Path, tmp_path: Path
) -> None:
    config = InjectConfig(min_document_bytes=1000)
    with pytest.raises(UserError, match="and 0 of these a space between words"):
        inject(documents_of(texts), traps_file, config, tmp_path / "out", LocalExecutor(1), Silent())


def test_fuzzy_copies_differ_from_the_trap_in_so_many_tokens_and_from_each_other(
    documents: Path, traps_file: Path, tokenizer: Path, tmp_path: Path, table_of: Read, encode: Encode
) -> None:
    config = InjectConfig((2, 8), HOST_BYTES, fuzzy=4)
    manifest = inject(documents, traps_file, config, tmp_path, LocalExecutor(1), Silent(), tokenizer)
    texts = dict(zip(*(table_of(tmp_path)[name].to_pylist() for name in ("doc_id", "text")), strict=True))
    traps = {trap["trap_id"]: trap for trap in read_traps(tmp_path / "traps.parquet").to_pylist()}
    rows = injections(tmp_path)
    assert manifest["added"]["copies"] == len(rows) == sum(trap["copies"] for trap in traps.values())
    for row in rows:
        assert texts[row["doc_id"]].encode()[row["start"] - 1 : row["stop"] + 1].decode() == f" {row['text']} "
        own, varied = encode(traps[row["trap_id"]]["text"]), encode(row["text"])
        assert len(own) == len(varied)
        assert sum(a != b for a, b in zip(own, varied, strict=True)) == 4
    assert len({row["text"] for row in rows}) == len(rows)


def test_fuzzy_copies_need_a_tokenizer_and_enough_tokens(
    documents: Path, traps_file: Path, tokenizer: Path, tmp_path: Path
) -> None:
    def run(fuzzy: int, tokenizer: Path | None) -> None:
        config = InjectConfig((1,), HOST_BYTES, fuzzy=fuzzy)
        inject(documents, traps_file, config, tmp_path, LocalExecutor(1), Silent(), tokenizer)

    with pytest.raises(UserError, match="--tokenizer"):
        run(4, None)
    with pytest.raises(UserError, match="--fuzzy 30: a trap of 20 tokens has 18"):
        run(30, tokenizer)


def test_documents_that_are_repeated_are_refused(
    documents_of: Callable[..., Path], traps_file: Path, tmp_path: Path
) -> None:
    """Their repeats share an id, and every one of them would get the trap."""
    folder = documents_of(["some text of words " * 200] * 3)
    part = folder / "part-00000.arrow"
    table = read_arrow(part)
    table = table.append_column("is_repeat", pa.array([False] * len(table)))
    write_arrow(part, table.schema, table.to_batches())
    manifest = read_json(folder / "manifest.json")
    manifest["files"][0]["bytes"] = part.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="repeat documents behind"):
        inject(folder, traps_file, InjectConfig(), tmp_path / "out", LocalExecutor(1), Silent())


@given(texts.map("".join))
def test_gaps_are_single_spaces_between_other_characters(text: str) -> None:
    expected = [match.start() for match in re.finditer(rb"(?<=[^ \t\n\v\f\r]) (?=[^ \t\n\v\f\r])", text.encode())]
    data = np.frombuffer(text.encode(), np.uint8)
    assert find_gaps(data).tolist() == expected
    twice = np.concatenate([data, data])
    offsets = np.array([0, len(data), 2 * len(data)])
    assert count_gaps(twice, offsets, 0).tolist() == [len(expected)] * 2
    assert count_gaps(twice, offsets, len(data) + 1).tolist() == [0, 0]


@given(texts.map("".join), st.lists(st.sampled_from(["T", "ÜT 日", "t u"]), min_size=1, max_size=7), st.integers(0, 99))
def test_an_insertion_can_be_found_and_taken_out(text: str, added: list[str], seed: int) -> None:
    text = f"begin {text} end x"
    new, where = insert(text, added, round_keys(seed))
    data = new.encode()
    spans = list(zip(where["start"].tolist(), where["stop"].tolist(), strict=True))
    assert [data[start:stop].decode() for start, stop in spans] == added
    assert all(data[start - 1 : start] == b" " == data[stop : stop + 1] for start, stop in spans)
    assert [new[k : k + len(piece)] for k, piece in zip(where["character"].tolist(), added, strict=True)] == added
    assert removed(data, spans).decode() == text


def test_gaps_are_used_up_before_any_is_used_twice() -> None:
    for seed in range(5):
        assert insert("a b c", ["T"] * 2, round_keys(seed))[0] == "a T b T c"
        assert insert("a b c", ["T"] * 4, round_keys(seed))[0] == "a T T b T T c"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"repetitions": ()}, "traps.repetitions"),
        ({"repetitions": (0, 1)}, "each 1 or more"),
        ({"repetitions": (2, 2)}, "different numbers"),
        ({"min_document_bytes": 0}, "traps.min_document_bytes = 0"),
        ({"fuzzy": -1}, "traps.fuzzy = -1"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_impossible_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InjectConfig(**changed)
