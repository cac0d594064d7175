"""Checks of documents and tokens: what a stage writes is valid, and every damage is noticed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from damage import flipped_bits
from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, OutputFile, write_manifest
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.inspection import inspect_folder
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.pipeline.validation import validate_documents, validate_tokens
from seqmill.storage import read_arrow, read_json, with_metadata, write_arrow, write_json
from seqmill.tokenizers_ext import save_byte

TEXTS = ["one", "", "Würde 👩\u200d👧", "x" * 300, *(f"document {k}" for k in range(20))]
PART = "part-00000.arrow"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A tokens folder of bytes, beside the documents folder that it was made of."""
    fields = {"doc_id": pa.uint64(), "id": pa.string(), "text": pa.large_string(), "source": pa.string()}
    schema = with_metadata(pa.schema(fields), "documents")
    rows = [{"doc_id": 3 * k, "id": str(k), "text": text, "source": "web"} for k, text in enumerate(TEXTS)]
    documents, tokens = tmp_path / "documents", tmp_path / "tokens"
    write_arrow(documents / PART, schema, pa.Table.from_pylist(rows, schema).to_batches())
    totals = {"documents": len(TEXTS), "bytes": sum(len(text.encode()) for text in TEXTS)}
    write_manifest(documents, "documents", [OutputFile.of(documents, PART, len(rows))], totals=totals)
    save_byte(tmp_path / "bytes")
    tokenize(documents, tmp_path / "bytes", TokenizeConfig(), tokens, LocalExecutor(1), Silent())
    return tokens


@pytest.fixture
def documents(tokens: Path) -> Path:
    return tokens.parent / "documents"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a column of the part, as Python values, with a manifest that fits the new bytes."""
    path = folder / PART
    table = read_arrow(path)
    columns = table.to_pydict()
    change(columns)
    arrays = [
        pa.array(columns[name], type_) for name, type_ in zip(table.schema.names, table.schema.types, strict=True)
    ]
    schema = table.schema
    rewrite(folder, pa.Table.from_arrays(arrays, schema=schema))


def rewrite(folder: Path, table: pa.Table) -> None:
    manifest = read_json(folder / MANIFEST)
    rows = write_arrow(folder / PART, table.schema, table.to_batches(max_chunksize=5))
    entries = {k: v for k, v in manifest.items() if k not in ("format_version", "kind", "fingerprint", "files")}
    write_manifest(folder, manifest["kind"], [OutputFile.of(folder, PART, rows)], **entries)


def faults(folder: Path) -> list[str]:
    return inspect_folder(folder, check=True)[1]


def test_what_the_stages_write_is_valid_and_counted(tokens: Path, documents: Path) -> None:
    report, counted = validate_documents(documents), validate_tokens(tokens)
    assert report.ok, str(report)
    assert counted.ok, str(counted)
    assert report.rows == counted.rows == len(TEXTS)
    assert counted.tokens == sum(len(text.encode()) + 1 for text in TEXTS)
    figures, found = inspect_folder(tokens, check=True)
    assert (figures["files"], figures["rows"], figures["tokens"], found) == (1, len(TEXTS), counted.tokens, [])


def test_an_edit_that_changes_nothing_stays_valid(tokens: Path, documents: Path) -> None:
    for folder in (tokens, documents):
        edit(folder, lambda columns: None)
        assert faults(folder) == []


TOKENS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a token of the vocabulary's size": (
        lambda columns: columns["input_ids"][7].append(258),
        "I3: part-00000.arrow, row 7: a token is not below the vocabulary of 258",
    ),
    "a size that is missing": (
        lambda columns: columns["num_bytes"].__setitem__(1, None),
        "column 'num_bytes' has nulls",
    ),
    "tokens that are missing": (lambda columns: columns["input_ids"].__setitem__(1, None), "'input_ids' has nulls"),
    "a null among tokens": (lambda columns: columns["input_ids"][0].__setitem__(1, None), "'input_ids' has nulls"),
    "an id that is there twice": (
        lambda columns: columns["doc_id"].__setitem__(0, columns["doc_id"][3]),
        "several documents have the id 9, with different numbers of tokens",
    ),
    "a source that is not listed": (
        lambda columns: columns["source"].__setitem__(4, "elsewhere"),
        "schema: part-00000.arrow, row 4: a source that the manifest does not list",
    ),
    "a lost token": (lambda columns: columns["input_ids"][3].pop(), "totals: manifest.json: tokens is"),
}


@pytest.mark.parametrize("name", TOKENS)
def test_every_inconsistency_of_tokens_is_named(tokens: Path, name: str) -> None:
    change, expected = TOKENS[name]
    edit(tokens, change)
    assert any(expected in fault for fault in faults(tokens)), faults(tokens)


def test_ids_of_copies_may_repeat(tokens: Path) -> None:
    def copy(columns: dict[str, Any]) -> None:
        for column in columns.values():
            column[5] = column[6]

    edit(tokens, copy)
    assert not any("several documents" in fault for fault in faults(tokens))


def test_texts_that_are_no_utf8_are_named(documents: Path) -> None:
    path = documents / PART
    content = path.read_bytes()
    place = content.index("Würde".encode()) + 2
    path.unlink()
    path.write_bytes(content[:place] + b"?" + content[place + 1 :])
    manifest = read_json(documents / MANIFEST)
    manifest["files"] = [OutputFile.of(documents, PART, len(TEXTS)).__dict__]
    write_json(documents / MANIFEST, manifest)
    assert any("UTF8" in fault for fault in faults(documents)), faults(documents)


def test_a_lost_document_and_another_layout_are_named(documents: Path) -> None:
    rewrite(documents, read_arrow(documents / PART).slice(1))
    assert any(f"documents is {len(TEXTS)}, the rows have {len(TEXTS) - 1}" in fault for fault in faults(documents))
    rewrite(documents, read_arrow(documents / PART).drop_columns(["source"]))
    assert any("column 'source' has type None, string is needed" in fault for fault in faults(documents))


def test_tokens_of_another_tokenizer_are_named(tokens: Path) -> None:
    table = read_arrow(tokens / PART)
    rewrite(tokens, table.cast(with_metadata(table.schema.remove_metadata(), "tokens", tokenizer="another")))
    assert any("the metadata says tokenizer 'another'" in fault for fault in faults(tokens))
    (tokens / "tokenizer" / "seqmill.json").write_text("{}")
    assert any(fault.startswith("tokenizer: tokenizer/: it cannot be loaded") for fault in faults(tokens))


def test_every_flipped_bit_is_noticed_and_none_crashes(tokens: Path, documents: Path) -> None:
    def is_noticed(folder: Path) -> bool:
        try:
            return bool(faults(folder))
        except UserError:
            return True

    for folder in (tokens, documents):
        assert [place for place in flipped_bits(folder, 40, 1, (MANIFEST, PART)) if not is_noticed(folder)] == []
        assert not is_noticed(folder)


def test_other_folders_are_refused(tmp_path: Path, tokens: Path) -> None:
    with pytest.raises(UserError, match="holds tokens, but documents are validated here"):
        validate_documents(tokens)
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        inspect_folder(tmp_path, check=True)
    write_json(tmp_path / MANIFEST, {"kind": "sketches"})
    with pytest.raises(UserError, match="holds 'sketches', which no check is known for; validate documents, tokens"):
        inspect_folder(tmp_path, check=True)
