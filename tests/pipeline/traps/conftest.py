"""Documents, a tokenizer and traps, made once: real text in several parts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.train_tokenizer import TokenizerConfig, train_tokenizer
from seqmill.pipeline.traps import InjectConfig, MakeConfig, inject, make_traps
from seqmill.storage import read_arrow, read_json
from seqmill.tokenizers_ext import load

CORPUS = Path(__file__).parents[3] / "examples" / "corpus"
HOST_BYTES = 1500


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An English glossary of 2,000 entries in several parts, most of them too short to hold a trap."""
    out = tmp_path_factory.mktemp("traps") / "documents"
    config = IngestConfig((str(CORPUS / "jargon.jsonl"),), unit_bytes=300_000)
    manifest = ingest(config, NormaliseConfig(), out, LocalExecutor(1), Silent())
    assert len(manifest["files"]) > 1
    return out


@pytest.fixture(scope="session")
def tokenizer(documents: Path) -> Path:
    out = documents.parent / "tokenizer"
    train_tokenizer(documents, TokenizerConfig(vocab_size=2048, sample_bytes=200_000), out, LocalExecutor(1), Silent())
    return out


@pytest.fixture(scope="session")
def encode(tokenizer: Path) -> Callable[[str], list[int]]:
    encoder = load(tokenizer)
    return lambda text: encoder.encode(pa.array([text]))[0].as_py()


@pytest.fixture(scope="session")
def traps_file(documents: Path, tokenizer: Path) -> Path:
    """24 traps of 20 tokens and 24 of 40, half of them members."""
    out = documents.parent / "traps.parquet"
    config = MakeConfig(lengths=(20, 40), count=24, buckets=4, perplexity=(20.0, 220.0), max_jaccard=0.25, seed=3)
    make_traps(tokenizer, out, config, documents)
    return out


@pytest.fixture(scope="session")
def injected(documents: Path, traps_file: Path) -> Path:
    """The documents with each member 1, 4 or 16 times in one of them."""
    out = documents.parent / "injected"
    config = InjectConfig((1, 4, 16), HOST_BYTES, seed=5)
    inject(documents, traps_file, config, out, LocalExecutor(1), Silent())
    return out


@pytest.fixture(scope="session")
def table_of() -> Callable[[Path], pa.Table]:
    """All rows of a finished folder, in order."""

    def read(folder: Path) -> pa.Table:
        files = read_json(folder / "manifest.json")["files"]
        return pa.concat_tables(read_arrow(folder / file["name"]) for file in files)

    return read


@pytest.fixture
def documents_of(tmp_path: Path) -> Callable[..., Path]:
    """documents_of(texts): a documents folder of these texts."""

    def make(texts: list[str], **config: Any) -> Path:
        raw, out = tmp_path / "raw.jsonl", tmp_path / "documents"
        raw.write_text("".join(json.dumps({"id": f"d{k}", "text": text}) + "\n" for k, text in enumerate(texts)))
        ingest(IngestConfig((str(raw),), **config), NormaliseConfig(), out, LocalExecutor(1), Silent())
        return out

    return make
