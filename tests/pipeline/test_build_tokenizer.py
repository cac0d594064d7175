"""Dictionaries built by the stage, against the builders called by hand on the same documents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pools import local
from seqmill.compress.builders.counts import counts
from seqmill.compress.builders.reest import reest
from seqmill.compress.texts import Texts
from seqmill.errors import UserError
from seqmill.pipeline.build_tokenizer import EqualInfoConfig
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.train_tokenizer import TokenizerConfig, train_tokenizer
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import load
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
TINY_TRANSFORMER = Path(__file__).parents[1] / "compress" / "data" / "tiny-transformer.arrow"


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Declarations of human rights in eight languages, cut into paragraphs, in several parts."""
    folder = tmp_path_factory.mktemp("build")
    paragraphs = [
        {"text": paragraph, "source": path.stem}
        for path in sorted((CORPUS / "udhr").glob("*.txt"))[:8]
        for paragraph in path.read_text().split("\n\n")
    ]
    (folder / "rights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in paragraphs))
    config = IngestConfig((str(folder / "rights.jsonl"),), unit_bytes=60_000)
    manifest = ingest(config, NormaliseConfig(), folder / "documents", LocalExecutor(1), Silent())
    assert len(manifest["files"]) > 1
    return folder / "documents"


@pytest.fixture
def build(documents: Path, tmp_path: Path) -> Callable[..., EqualInfoEncoder]:
    def call(out: str = "out", workers: int = 1, **settings: Any) -> EqualInfoEncoder:
        config = TokenizerConfig(kind="equal-info", equal_info=EqualInfoConfig(**settings))
        encoder = train_tokenizer(documents, config, tmp_path / out, local(workers), Silent())
        assert isinstance(encoder, EqualInfoEncoder)
        return encoder

    return call


def texts_of(documents: Path) -> pa.Array:
    columns = [read_arrow(path)["text"] for path in sorted(documents.glob("part-*.arrow"))]
    return pa.concat_arrays([chunk for column in columns for chunk in column.chunks])


def windows(encoder: EqualInfoEncoder, texts: pa.Array) -> int:
    return len(encoder.encode(texts).flatten())


@pytest.mark.parametrize(
    "settings",
    [
        {"builder": "pairs"},
        {"builder": "pairs", "parse": "fewest", "rounds": 1},
        {"builder": "counts"},
        {"builder": "topn", "rounds": 1},
        {"builder": "stopcell", "rounds": 0},
        {"builder": "topn", "model": "ngram"},
        {"builder": "stopcell", "model": "transformer", "byte_model": str(TINY_TRANSFORMER)},
    ],
    ids=lambda settings: "-".join(str(value) for name, value in settings.items() if name != "byte_model"),
)
def test_every_builder_makes_a_lossless_tokenizer_of_so_many_strings(
    build: Callable[..., EqualInfoEncoder], documents: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    encoder = build(window=10, **settings)
    texts = texts_of(documents)
    assert encoder.strings == 1024
    assert encoder.decode(encoder.encode(texts)).cast(pa.large_string()).equals(texts)
    assert load(tmp_path / "out").fingerprint == encoder.fingerprint
    built_from = json.loads((tmp_path / "out" / "seqmill.json").read_text())["built_from"]
    assert built_from["sample"]["documents"] == len(texts)
    assert built_from["corpus"] == Texts.of([text.encode() for text in texts.to_pylist()]).fingerprint
    assert ("byte_model" in built_from) == (settings.get("model") == "transformer")


def test_the_stage_builds_what_its_builder_builds(build: Callable[..., EqualInfoEncoder], documents: Path) -> None:
    texts = Texts.of([text.encode() for text in texts_of(documents).to_pylist()])
    expected = reest(texts, lambda texts, starts: counts(texts, 10, starts=starts), 2)
    assert build(window=10, builder="counts", rounds=2).tables[0].fingerprint == expected.fingerprint


def test_strings_fitted_to_their_use_need_fewer_windows_than_prefixes(
    build: Callable[..., EqualInfoEncoder], documents: Path
) -> None:
    texts = texts_of(documents)
    fitted = windows(build("pairs", window=11, builder="pairs"), texts)
    fewest = windows(build("fewest", window=11, builder="pairs", parse="fewest"), texts)
    assert fewest < fitted < windows(build("counts", window=11, builder="counts"), texts)


def test_more_workers_and_a_second_run_give_the_same_bytes(
    build: Callable[..., EqualInfoEncoder], tmp_path: Path
) -> None:
    for out, workers in (("one", 1), ("two", 2), ("two", 1)):
        build(out, workers, window=9, tables=2)
    for name in ("dictionary.bin", "seqmill.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_tables_of_groups_need_fewer_windows_than_one_for_all(
    build: Callable[..., EqualInfoEncoder], documents: Path
) -> None:
    texts = texts_of(documents)
    one, four = build("one", window=10), build("four", window=10, tables=4)
    assert len(four.tables) == 4
    assert four.decode(four.encode(texts)).cast(pa.large_string()).equals(texts)
    assert windows(four, texts) < windows(one, texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 21}, "window = 21 bits: dictionaries have windows of 8 to 20"),
        ({"window": 7}, "window = 7 bits"),
        ({"builder": "best"}, "builder = 'best': choose one of pairs, counts, topn, stopcell"),
        ({"model": "lstm"}, "model = 'lstm': choose one of counts, ngram, transformer"),
        ({"model": "ngram"}, "model = 'ngram' goes with builder = topn or stopcell; 'pairs' counts the sample itself"),
        ({"builder": "topn", "model": "ngram", "rounds": 2}, "rounds = 2: a model of kind 'ngram' is not learned anew"),
        ({"byte_model": "model.arrow"}, "byte_model = 'model.arrow' goes with model = 'transformer', not 'counts'"),
        ({"window": 19}, "window = 19 with builder = 'pairs': its long strings would not fit"),
        ({"rounds": -1}, "rounds = -1: 0 or more"),
        ({"parse": "optimal"}, "parse = 'optimal': choose one of longest, fewest"),
        ({"tables": 33}, "tables = 33: between 1 and 32"),
        ({"tables": 0}, "tables = 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EqualInfoConfig(**settings)


def test_a_sample_of_too_few_strings_makes_a_smaller_dictionary_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "small.jsonl").write_text('{"text": "one fish, two fish"}\n')
    inputs = IngestConfig((str(tmp_path / "small.jsonl"),))
    ingest(inputs, NormaliseConfig(), tmp_path / "in", LocalExecutor(1), Silent())
    config = TokenizerConfig(kind="equal-info", equal_info=EqualInfoConfig(window=12))
    encoder = train_tokenizer(tmp_path / "in", config, tmp_path / "out", LocalExecutor(1), Silent())
    assert 260 < encoder.vocab_size < 280
    assert "the sample has 18 bytes, too few for 4096 strings that occur twice" in caplog.text


def test_a_model_that_is_not_there_is_refused(build: Callable[..., EqualInfoEncoder]) -> None:
    with pytest.raises(UserError, match=r"byte_model = 'nowhere.arrow': there is no such file"):
        build(window=10, builder="topn", model="transformer", byte_model="nowhere.arrow")
