import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import local
from seqmill.errors import UserError
from seqmill.packing import TokenStore
from seqmill.pipeline.excerpts import ExcerptConfig, draw_excerpts, excerpt_starts
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import load

EOS = 256


def ingested(texts: list[str], out: Path, **settings: Any) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = IngestConfig((str(out / "texts.jsonl"),), max_bad_fraction=1.0, **settings)
    ingest(config, NormaliseConfig(), out / "documents", LocalExecutor(1), Silent())
    return out / "documents"


def draw(documents: Path, out: Path, workers: int = 1, **settings: Any) -> tuple[dict[str, Any], pa.Table]:
    manifest = draw_excerpts(documents, ExcerptConfig(**settings), out, local(workers), Silent())
    return manifest, pa.concat_tables(read_arrow(out / file["name"]) for file in manifest["files"])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """400 documents of up to 400 characters, a third of them beyond ASCII; no stretch of 8 bytes occurs twice."""
    rng = np.random.default_rng(0)
    alphabet = np.array(list("abcdefghijklmnopqrstuvwxyz ,.éß漢字😀"))
    return ["".join(rng.choice(alphabet, rng.integers(1, 400))) for _ in range(400)]


@pytest.fixture(scope="module")
def documents(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(texts, tmp_path_factory.mktemp("excerpts"), unit_bytes=30_000)


def test_every_excerpt_is_a_stretch_of_its_document_behind_the_end_of_the_one_before(
    documents: Path, tmp_path: Path
) -> None:
    manifest, table = draw(documents, tmp_path, length=16, sample_bytes=50_000)
    parts = [read_arrow(path) for path in sorted(documents.glob("part-*.arrow"))]
    assert len(parts) > 2
    text = {row["doc_id"]: row["text"].encode() for part in parts for row in part.to_pylist()}
    shorter = 0
    for row in table.to_pylist():
        start, *ids = row["input_ids"]
        excerpt = bytes(ids)
        assert start == EOS
        assert row["num_bytes"] == len(excerpt)
        assert excerpt in text[row["doc_id"]]
        if len(excerpt) < 16:
            assert text[row["doc_id"]].endswith(excerpt)
            shorter += 1
    assert 0 < shorter < len(table) / 4
    totals = manifest["totals"]
    assert totals["documents"] == len(table)
    assert totals["bytes"] == sum(table["num_bytes"].to_pylist())
    assert totals["tokens"] == totals["bytes"] + totals["documents"]
    assert totals["bytes"] == pytest.approx(50_000, rel=0.1)


def test_the_folder_is_one_of_tokens_with_the_byte_tokenizer(documents: Path, tmp_path: Path) -> None:
    _, table = draw(documents, tmp_path, length=16, sample_bytes=5000)
    store = TokenStore.open(tmp_path)
    assert store.documents == len(table)
    assert store.dtype == np.uint16
    encoder = load(tmp_path / "tokenizer")
    decoded = encoder.decode(table["input_ids"].combine_chunks()).to_pylist()
    assert [len(text) for text in decoded] == table["num_bytes"].to_pylist()


def test_every_place_of_a_document_is_as_likely_as_any_other(texts: list[str]) -> None:
    lengths = np.array([len(text.encode()) for text in texts])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(len(texts)).astype(np.uint64)
    tenths = np.zeros(10)
    for seed in range(20):
        rows, starts = excerpt_starts(offsets, ids, 0.1, seed)
        tenths += np.bincount((starts - offsets[rows]) * 10 // lengths[rows], minlength=10)
    expected = np.zeros(10)
    for length in lengths:
        expected += np.bincount(np.arange(length) * 10 // length, minlength=10) * 0.1 * 20
    assert (np.abs(tenths - expected) < 5 * np.sqrt(expected)).all()


def slow_starts(sizes: list[int], ids: list[int], share: float, seed: int) -> list[tuple[int, int]]:
    def mixed(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    found, begin = [], 0
    for row, (size, number) in enumerate(zip(sizes, ids, strict=True)):
        document = mixed((number + seed * 0x9E3779B97F4A7C15) % 2**64)
        for place in range(size):
            if mixed((document + place * 0x9E3779B97F4A7C15) % 2**64) <= min(int(share * 2**64), 2**64 - 1):
                found.append((row, begin + place))
        begin += size
    return found


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2**64 - 1)), max_size=8),
    st.floats(0, 1),
    st.integers(0, 2**40),
    st.integers(0, 50),
)
def test_places_are_those_of_the_hash_written_out(
    documents: list[tuple[int, int]], share: float, seed: int, first: int
) -> None:
    sizes, ids = [size for size, _ in documents], [number for _, number in documents]
    offsets = first + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    rows, starts = excerpt_starts(offsets, np.array(ids, np.uint64), share, seed)
    assert list(zip(rows.tolist(), (starts - first).tolist(), strict=True)) == slow_starts(sizes, ids, share, seed)


def test_a_sample_far_larger_than_the_corpus_begins_an_excerpt_at_every_byte(tmp_path: Path) -> None:
    documents = ingested(["a", "Ünïcode 😀", "x" * 200], tmp_path)
    _, table = draw(documents, tmp_path / "out", length=8, sample_bytes=10**9)
    whole = [text.encode() for text in ("a", "Ünïcode 😀", "x" * 200)]
    expected = [list(text[place : place + 8]) for text in whole for place in range(len(text))]
    assert [ids[1:] for ids in table["input_ids"].to_pylist()] == expected


def test_any_number_of_workers_and_a_second_run_give_the_same_bytes(documents: Path, tmp_path: Path) -> None:
    settings = {"length": 32, "sample_bytes": 20_000, "seed": 5}
    one, _ = draw(documents, tmp_path / "one", 1, **settings)
    two, _ = draw(documents, tmp_path / "two", 2, **settings)
    assert one == two == draw(documents, tmp_path / "one", 1, **settings)[0]
    other, _ = draw(documents, tmp_path / "other", 1, **{**settings, "seed": 6})
    assert other["fingerprint"] != one["fingerprint"]


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    documents = ingested([], tmp_path)
    with pytest.raises(UserError, match="has no text"):
        draw(documents, tmp_path / "out")


@pytest.mark.parametrize(("name", "value"), [("length", 1), ("sample_bytes", 0), ("seed", -1)])
def test_impossible_settings_are_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} = {value}"):
        ExcerptConfig(**{name: value})
