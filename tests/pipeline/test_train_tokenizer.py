import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pools import local
from seqmill.errors import UserError
from seqmill.pipeline import train_tokenizer as stage
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.sampling import source_shares
from seqmill.pipeline.train_tokenizer import MergedConfig, TokenizerConfig, train_tokenizer
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import BpeConfig, UnigramConfig, load, train_bpe
from seqmill.tokenizers_ext.training import WordCounts, train_unigram

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
FILES = ("tokenizer.json", "seqmill.json")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A glossary of 1,200 entries in several parts, and the declaration of human rights as a second source."""
    folder = tmp_path_factory.mktemp("train")
    rights = [{"text": path.read_text(), "kind": path.stem} for path in sorted((CORPUS / "udhr").glob("*.txt"))[:8]]
    (folder / "rights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rights))
    config = IngestConfig((str(CORPUS / "jargon.jsonl"), str(folder / "rights.jsonl")), unit_bytes=300_000)
    manifest = ingest(config, NormaliseConfig(), folder / "documents", LocalExecutor(1), Silent())
    assert len(manifest["files"]) > 2
    return folder / "documents"


@pytest.fixture
def train(documents: Path, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """Train into a folder and return the artifact's files."""

    def call(out: str = "out", workers: int = 1, **settings: Any) -> dict[str, bytes]:
        train_tokenizer(documents, TokenizerConfig(**settings), tmp_path / out, local(workers), Silent())
        return {name: (tmp_path / out / name).read_bytes() for name in FILES}

    return call


def texts_of(documents: Path) -> list[pa.ChunkedArray]:
    return [read_arrow(path)["text"] for path in sorted(documents.glob("part-*.arrow"))]


def test_a_vocabulary_learned_part_by_part_is_that_of_all_text_at_once(
    train: Callable[..., dict[str, bytes]], documents: Path
) -> None:
    batches = [chunk for column in texts_of(documents) for chunk in column.chunks]
    assert train(vocab_size=1500)["tokenizer.json"] == train_bpe(batches, 1500)


def test_any_number_of_workers_gives_the_same_bytes(train: Callable[..., dict[str, bytes]]) -> None:
    settings = {"vocab_size": 600, "sample_bytes": 400_000, "bpe": BpeConfig(superwords_from=500)}
    assert train("one", 1, **settings) == train("two", 2, **settings)


def test_a_unigram_learned_part_by_part_by_several_workers_is_that_of_all_text_at_once(
    train: Callable[..., dict[str, bytes]], documents: Path
) -> None:
    settings = UnigramConfig("cl100k", min_count=3)
    files = train("two", 2, kind="unigram", vocab_size=900, unigram=settings)
    words = WordCounts(1 << 40)
    for column in reversed(texts_of(documents)):
        for texts in column.chunks:
            words.add_texts(texts, "cl100k")
    assert files["tokenizer.json"] == train_unigram(words, 900, settings)
    built_from = json.loads(files["seqmill.json"])["built_from"]
    assert built_from["algorithm"] == "unigram"
    assert built_from["unigram"]["min_count"] == 3
    assert "bpe" not in built_from
    assert built_from["words"] == len(words)


def test_an_interrupted_training_goes_on_with_the_words_it_has_counted(
    train: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train("whole", vocab_size=700)
    counted: list[str] = []
    real = stage.count_words

    def killed_after_two(payload: dict[str, Any], out: Path) -> Any:
        if len(counted) == 2:
            raise KeyboardInterrupt
        counted.append(payload["part"])
        return real(payload, out)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "count_words", killed_after_two)
        with pytest.raises(KeyboardInterrupt):
            train("cut", vocab_size=700)
    assert not (tmp_path / "cut" / "tokenizer.json").exists()
    first_two = list(counted)
    with monkeypatch.context() as patched:
        patched.setattr(
            stage, "count_words", lambda payload, out: counted.append(payload["part"]) or real(payload, out)
        )
        assert train("cut", vocab_size=700) == whole
        assert not set(first_two) & set(counted[2:])
        done = len(counted)
        assert train("cut", vocab_size=700) == whole
    assert len(counted) == done  # a finished training counts nothing again
    assert not list((tmp_path / "cut" / ".state").glob("words-*"))


def test_what_the_vocabulary_was_made_from_is_written_down(train: Callable[..., dict[str, bytes]]) -> None:
    built_from = json.loads(train(vocab_size=400)["seqmill.json"])["built_from"]
    assert built_from["sample"]["documents"] == 1208
    assert built_from["words"] > 10_000
    assert built_from["occurrences_forgotten"] == built_from["words_too_long"] == 0


def test_a_small_source_can_be_lifted_in_the_sample(train: Callable[..., dict[str, bytes]], documents: Path) -> None:
    def built_from(alpha: float) -> dict[str, Any]:
        files = train(f"alpha-{alpha}", vocab_size=300, sample_bytes=150_000, source_alpha=alpha)
        return json.loads(files["seqmill.json"])["built_from"]

    texts = pa.concat_tables(read_arrow(path).select(["source", "text"]) for path in documents.glob("part-*.arrow"))
    sizes = dict.fromkeys(texts["source"].unique().to_pylist(), 0)
    for row in texts.to_pylist():
        sizes[row["source"]] += len(row["text"].encode())
    shares = built_from(0.0)["shares"]
    assert shares == pytest.approx(source_shares(sizes, 150_000, 0.0))
    assert min(shares.values()) < 0.9 * max(shares.values())
    assert "shares" not in built_from(1.0)


def test_merges_are_learned_on_top_of_a_tokenizer_that_exists(
    train: Callable[..., dict[str, bytes]], documents: Path, tmp_path: Path
) -> None:
    train("base", vocab_size=600)
    executor = LocalExecutor(1)
    merged = MergedConfig(str(tmp_path / "base"), 200, "word")
    config = TokenizerConfig(kind="merged", merged=merged)
    encoder = train_tokenizer(documents, config, tmp_path / "merged", executor, Silent())
    texts = pa.concat_arrays([chunk for column in texts_of(documents) for chunk in column.chunks])
    base = load(tmp_path / "base")
    assert encoder.vocab_size == 800
    assert len(encoder.encode(texts).flatten()) < 0.92 * len(base.encode(texts).flatten())
    assert encoder.decode(encoder.encode(texts)).equals(texts.cast(pa.large_binary()))
    with pytest.raises(UserError, match="needs tokenizer"):
        TokenizerConfig(kind="merged")


def test_words_that_do_not_fit_the_memory_are_left_out_and_said(
    train: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage, "MB", 10_000)
    files = train("tight", vocab_size=300, memory_mb=64)
    built_from = json.loads(files["seqmill.json"])["built_from"]
    assert built_from["occurrences_forgotten"] > 0
    assert "raise tokenizer.memory_mb" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "wordpiece"}, "bpe, unigram, merged, equal-info, byte, kmer"),
        ({"vocab_size": 100}, "at least 257"),
        ({"vocab_size": 400, "bpe": BpeConfig(superwords_from=500)}, "no id would be left"),
        ({"kind": "unigram", "vocab_size": 256}, "at least 257"),
        ({"source_alpha": 1.5}, "between 0"),
        ({"memory_mb": 1}, "64 or more"),
        ({"sample_bytes": 0}, "at least 1 byte"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenizerConfig(**settings)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_text_without_words_is_refused_with_the_way_out(kind: str, tmp_path: Path) -> None:
    (tmp_path / "dna.txt").write_text("ACGT" * 5_000)
    out = tmp_path / "documents"
    ingest(IngestConfig((str(tmp_path / "dna.txt"),)), NormaliseConfig(), out, LocalExecutor(1), Silent())
    with pytest.raises(UserError, match="'kmer' for DNA"):
        train_tokenizer(out, TokenizerConfig(kind, 300), tmp_path / "t", LocalExecutor(1), Silent())
