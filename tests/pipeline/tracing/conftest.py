"""Runs up to packed rows over texts of many scripts, with each kind of tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from seqmill.compress.dictionary import Dictionary
from seqmill.manifest import OutputFile, write_manifest
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.storage import with_metadata, write_arrow
from seqmill.tokenizers_ext import KmerConfig, save_byte, save_equal_info, save_kmer, save_subword, train_bpe

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 8,
    "Die Würde des Menschen ist unantastbar. Ελληνικά και Русский текст. " * 4,
    "",
    "👩\u200d👧 e\u0301\u0301 日本語テキスト" * 9,
    "x",
    "人人生而自由，在尊严和权利上一律平等。" * 3,
    *(f"document {k} says {'so ' * (k % 13)}" for k in range(30)),
]
SINGLES = [bytes([byte]) for byte in range(256)]
TABLES = [
    Dictionary.from_strings([*SINGLES, b"the ", b"he qu", b"fox ", b" \xd0", b"\xe4\xba\xba"]),
    Dictionary.from_strings([*SINGLES, "日本".encode(), "人人生".encode(), b"e\xcc\x81", b"do", b"so "]),
]
MAKERS: dict[str, Callable[[Path], Any]] = {
    "byte": save_byte,
    "bpe": lambda folder: save_subword(folder, train_bpe([TEXTS], 400), {}),
    "equal-info": lambda folder: save_equal_info(folder, TABLES[:1], "longest", {}),
    "equal-info of two tables": lambda folder: save_equal_info(folder, TABLES, "longest", {}),
    "k-mers": lambda folder: save_kmer(folder, KmerConfig(k=3, remainder="pad")),
}


@dataclass(frozen=True)
class Made:
    """Folders, and the texts by doc_id."""

    root: Path
    texts: dict[int, bytes] = field(default_factory=dict)

    @property
    def packed(self) -> Path:
        return self.root / "packed"


def write_documents(folder: Path, texts: list[str], ids: list[int]) -> None:
    fields = {"doc_id": pa.uint64(), "id": pa.string(), "text": pa.large_string(), "source": pa.string()}
    schema = with_metadata(pa.schema(fields), "documents")
    files = []
    for part in range(2):
        rows = [
            {"doc_id": one, "id": f"name-{one & 0xFFFF}", "text": text, "source": "web"}
            for one, text in list(zip(ids, texts, strict=True))[part::2]
        ]
        name = f"part-{part:05d}.arrow"
        write_arrow(folder / name, schema, pa.Table.from_pylist(rows, schema).to_batches(max_chunksize=7))
        files.append(OutputFile.of(folder, name, len(rows)))
    totals = {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
    write_manifest(folder, "documents", files, totals=totals)


def make(
    root: Path,
    kind: str = "byte",
    config: PackConfig = PackConfig(seq_len=32),  # noqa: B008
    texts: list[str] = TEXTS,
    ids: list[int] | None = None,
) -> Made:
    """Documents in two parts, tokens and rows in `root`, as a run lays them out."""
    ids = ids or [((k % 3) << 40) + k for k in range(len(texts))]
    write_documents(root / "documents", texts, ids)
    MAKERS[kind](root / "tokenizer")
    executor, progress = LocalExecutor(1), Silent()
    tokenize(root / "documents", root / "tokenizer", TokenizeConfig(), root / "tokens", executor, progress)
    pack(root / "tokens", config, root / "packed", executor, progress)
    return Made(root, {one: text.encode() for one, text in zip(ids, texts, strict=True)})


@pytest.fixture(scope="session")
def by_kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A run with a tokenizer of this kind, made once."""
    made: dict[str, Made] = {}

    def get(kind: str) -> Made:
        if kind not in made:
            made[kind] = make(tmp_path_factory.mktemp("trace"), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Made]:
    return make


@pytest.fixture(scope="session")
def kinds() -> list[str]:
    return list(MAKERS)
