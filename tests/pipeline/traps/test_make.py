from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.pipeline.traps import MakeConfig, make_traps
from seqmill.pipeline.traps.make import cut_to_length
from seqmill.pipeline.traps.table import read_traps
from seqmill.pipeline.traps.words import WordModel
from seqmill.storage import hash_file, read_json
from seqmill.tokenizers_ext import load
from seqmill.tokenizers_ext.artifact import save_byte

SMALL = MakeConfig(lengths=(15,), count=8, buckets=2, perplexity=(20.0, 220.0), max_jaccard=0.3)


Encode = Callable[[str], list[int]]


def test_traps_have_their_exact_length_also_behind_a_space(traps_file: Path, tokenizer: Path, encode: Encode) -> None:
    encoder = load(tokenizer)
    traps = read_traps(traps_file).to_pylist()
    assert {trap["tokens"] for trap in traps} == {20, 40}
    for trap in traps:
        ids = encode(trap["text"])
        assert len(ids) == trap["tokens"]
        assert encoder.decode(pa.array([ids], pa.list_(pa.uint16())))[0].as_py() == trap["text"].encode()
        assert encode(f" {trap['text']}")[-len(ids) + 1 :] == ids[1:]
        assert trap["text"] == " ".join(trap["text"].split())


def test_no_two_traps_are_alike(traps_file: Path, encode: Encode) -> None:
    sets = [set(encode(text)) for text in read_traps(traps_file)["text"].to_pylist()]
    assert max(len(a & b) / len(a | b) for a, b in combinations(sets, 2)) <= 0.25


def test_buckets_hold_what_the_word_model_says(traps_file: Path, documents: Path) -> None:
    model = WordModel.of_documents(documents, 16_000_000, 8192, seed=3)
    for trap in read_traps(traps_file).to_pylist():
        assert model.perplexity(trap["text"]) == pytest.approx(trap["perplexity"])
        assert 20 + 50 * trap["bucket"] <= trap["perplexity"] < 70 + 50 * trap["bucket"]
    buckets = read_json(traps_file.with_suffix(".json"))["buckets"]
    assert [(each["tokens"], each["from"], each["to"]) for each in buckets[:2]] == [(20, 20, 70), (20, 70, 120)]
    assert all(each["made"] == each["wanted"] == 6 for each in buckets)


def test_members_are_half_of_each_length_and_as_hard_to_foresee(traps_file: Path) -> None:
    traps = read_traps(traps_file).to_pylist()
    for length in (20, 40):
        alike = sorted((t for t in traps if t["tokens"] == length), key=lambda trap: trap["perplexity"])
        pairs = zip(alike[::2], alike[1::2], strict=True)
        assert all(first["member"] != second["member"] for first, second in pairs)
    assert {trap["copies"] for trap in traps} == {0}
    assert [trap["trap_id"] for trap in traps] == list(range(48))


def test_the_manifest_names_what_the_traps_were_made_of(traps_file: Path, documents: Path, tokenizer: Path) -> None:
    manifest = read_json(traps_file.with_suffix(".json"))
    assert manifest["xxh3_128"] == hash_file(traps_file)
    assert manifest["tokenizer"]["fingerprint"] == load(tokenizer).fingerprint
    assert manifest["source"]["reference"] == read_json(documents / "manifest.json")["fingerprint"]
    assert "Dirichlet" in manifest["source"]["perplexity"]
    assert manifest["totals"] == {"traps": 48, "members": 24, "wanted": 48}


def test_the_seed_decides_every_byte(documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    def made(name: str, seed: int) -> bytes:
        config = MakeConfig(**{**SMALL.__dict__, "seed": seed})
        make_traps(tokenizer, tmp_path / name, config, documents)
        return (tmp_path / name).read_bytes()

    assert made("a.parquet", 1) == made("b.parquet", 1)
    assert made("a.parquet", 1) != made("c.parquet", 2)


def test_buckets_that_cannot_be_filled_are_named(documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    wide = MakeConfig(lengths=(15,), count=6, buckets=3, perplexity=(1.0, 1e6), max_jaccard=1.0, rounds=12)
    low, *others = make_traps(tokenizer, tmp_path / "traps.parquet", wide, documents)["buckets"]
    assert low["made"] == low["wanted"] == 2
    assert [each["made"] for each in others] == [0, 0]
    assert [each["wanted"] for each in others] == [2, 2]


def test_bytes_are_too_alike_and_the_refusal_says_so(documents: Path, tmp_path: Path) -> None:
    save_byte(tmp_path / "bytes")
    with pytest.raises(UserError, match=r"1 of 8 traps of 60 tokens .* --max-jaccard \(now 0.3\)"):
        make_traps(
            tmp_path / "bytes", tmp_path / "t.parquet", MakeConfig(**{**SMALL.__dict__, "lengths": (60,)}), documents
        )
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize("both", [True, False])
def test_exactly_one_source_of_text_is_needed(both: bool, documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either --reference"):
        make_traps(tokenizer, tmp_path / "t.parquet", SMALL, *([documents, documents] if both else []))


def test_texts_are_cut_between_words_or_not_at_all(tokenizer: Path, encode: Encode) -> None:
    encoder = load(tokenizer)
    text = "the program that was written in a language of the machine"
    words = text.split()
    sizes = {len(encode(" ".join(words[:n]))): " ".join(words[:n]) for n in range(1, len(words) + 1)}
    for length in range(2, max(sizes) + 3):
        found = [cut for cut, _ in cut_to_length([text, ""], length, encoder)]
        assert found == ([sizes[length]] if length in sizes else [])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths": ()}, "--lengths"),
        ({"lengths": (1,)}, "2 tokens or more"),
        ({"lengths": (5, 5)}, "different lengths"),
        ({"count": 7}, "even number"),
        ({"buckets": 0}, "--buckets 0"),
        ({"perplexity": (100.0, 1.0)}, "--perplexity 100-1"),
        ({"perplexity": (0.5, 1.5)}, "1 <= lower"),
        ({"max_jaccard": 1.5}, "--max-jaccard 1.5"),
        ({"rounds": 0}, "--rounds 0"),
        ({"words": 1}, "--words 1"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_impossible_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MakeConfig(**changed)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="traps make"):
        read_traps(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="traps make"):
        read_traps(tmp_path / "text.parquet")
