from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from seqmill.cli.traps import app
from seqmill.errors import UserError
from seqmill.manifest import OutputFile, write_manifest
from seqmill.packing import PackedRows
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.pipeline.traps import InjectConfig, inject, verify_traps
from seqmill.pipeline.traps.table import read_traps
from seqmill.storage import read_arrow, read_json, write_arrow
from seqmill.tokenizers_ext.artifact import save_byte

from .conftest import HOST_BYTES

COPIES = 8 * (1 + 4 + 16)


def tokenized(documents: Path, tokenizer: Path, out: Path) -> Path:
    tokenize(documents, tokenizer, TokenizeConfig(), out, LocalExecutor(1), Silent())
    return out


@pytest.fixture(scope="module")
def tokens(injected: Path, tokenizer: Path) -> Path:
    return tokenized(injected, tokenizer, injected.parent / "tokens")


def packed_of(tokens: Path, out: Path, **config: object) -> Path:
    pack(tokens, PackConfig(**config), out, LocalExecutor(1), Silent())  # type: ignore[arg-type]
    return out


def spelled(ids: Iterable[int]) -> str:
    """One character per token, so that runs of tokens can be searched as text."""
    return "".join(chr(0x4E00 + int(id_)) for id_ in ids)


def edited(tokens: Path, out: Path, edit: Callable[[pa.Table], pa.Table]) -> Path:
    """A copy of a tokens folder with every part edited."""
    manifest = read_json(tokens / "manifest.json")
    files = []
    for file in manifest["files"]:
        table = edit(read_arrow(tokens / file["name"]))
        rows = write_arrow(out / file["name"], table.schema, table.to_batches())
        files.append(OutputFile.of(out, file["name"], rows))
    entries = {key: manifest[key] for key in manifest if key not in ("format_version", "kind", "fingerprint", "files")}
    write_manifest(out, "tokens", files, **entries)
    (out / "tokenizer").symlink_to(tokens / "tokenizer")
    return out


def test_every_copy_is_intact_in_tokens(injected: Path, tokens: Path) -> None:
    report = verify_traps(injected, tokens)
    assert report == {"copies": COPIES, "tokens": {"intact": COPIES, "changed": 0, "missing": 0}, "missing": []}


def test_every_copy_is_intact_in_bytes_of_a_byte_tokenizer(injected: Path, tmp_path: Path) -> None:
    save_byte(tmp_path / "bytes")
    tokens = tokenized(injected, tmp_path / "bytes", tmp_path / "tokens")
    assert verify_traps(injected, tokens)["tokens"] == {"intact": COPIES, "changed": 0, "missing": 0}


def test_every_fuzzy_copy_is_found(documents: Path, traps_file: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = InjectConfig((2, 8), HOST_BYTES, fuzzy=3)
    inject(documents, traps_file, config, tmp_path / "traps", LocalExecutor(1), Silent(), tokenizer)
    tokens = tokenized(tmp_path / "traps", tokenizer, tmp_path / "tokens")
    packed = packed_of(tokens, tmp_path / "packed", seq_len=4096)
    report = verify_traps(tmp_path / "traps", tokens, packed)
    assert report["copies"] == report["tokens"]["intact"] == report["packed"]["intact"] == 12 * 2 + 12 * 8


def test_rows_split_as_many_copies_as_a_search_of_the_rows_does_not_find(
    injected: Path, tokens: Path, encode: Callable[[str], list[int]], tmp_path: Path
) -> None:
    packed = packed_of(tokens, tmp_path, seq_len=96)
    rows = PackedRows(packed)
    segments = []
    for row in map(rows.row, range(rows.rows)):
        letters = spelled(row["input_ids"])
        segments += [letters[start:stop] for start, stop in pairwise(row["cu_seqlens"])]
    members = read_traps(injected / "traps.parquet").filter(pa.compute.field("member"))["text"].to_pylist()
    runs = [spelled(encode(f" {text}")) for text in members]
    whole = sum(segment.count(run) for segment in segments for run in runs)
    assert 0 < whole < COPIES
    report = verify_traps(injected, tokens, packed)
    assert report["packed"] == {"intact": whole, "split": COPIES - whole, "missing": 0}
    assert report["missing"] == []


@pytest.mark.parametrize("overflow", ["truncate", "drop"])
def test_copies_that_packing_drops_are_missing(overflow: str, injected: Path, tokens: Path, tmp_path: Path) -> None:
    packed = packed_of(tokens, tmp_path, seq_len=700, overflow=overflow)
    report = verify_traps(injected, tokens, packed)
    assert report["tokens"]["missing"] == 0
    assert sum(report["packed"].values()) == COPIES
    assert report["packed"]["missing"] > 0
    assert report["packed"]["split"] == 0 or overflow == "truncate"
    assert {each["from"] for each in report["missing"]} == {"packed"}


def test_documents_without_their_traps_have_none_of_the_copies(
    injected: Path, documents: Path, tokenizer: Path, tmp_path: Path
) -> None:
    report = verify_traps(injected, tokenized(documents, tokenizer, tmp_path))
    assert report["tokens"]["missing"] == COPIES
    assert len(report["missing"]) == 10


def test_a_document_that_is_gone_takes_its_copies_with_it(injected: Path, tokens: Path, tmp_path: Path) -> None:
    first = pq.read_table(injected / "injections.parquet").to_pylist()[-1]
    gone = pa.scalar(first["doc_id"], pa.uint64())
    less = edited(tokens, tmp_path, lambda table: table.filter(pa.compute.not_equal(table["doc_id"], gone)))
    lost = sum(row["doc_id"] == first["doc_id"] for row in pq.read_table(injected / "injections.parquet").to_pylist())
    report = verify_traps(injected, less)
    assert report["tokens"] == {"intact": COPIES - lost, "changed": 0, "missing": lost}
    assert {each["trap_id"] for each in report["missing"]} == {first["trap_id"]}


def test_copies_in_other_tokens_of_the_same_bytes_are_changed_and_not_missing(
    injected: Path, tokens: Path, encode: Callable[[str], list[int]], tmp_path: Path
) -> None:
    """The first token of a trap, " word", becomes " " and what is left of it."""
    trap = next(t for t in read_traps(injected / "traps.parquet").to_pylist() if t["copies"] == 16)
    run = encode(f" {trap['text']}")
    apart = encode(" ") + encode(trap["text"].split()[0][:1]) + encode(trap["text"][1:])

    def split_first(table: pa.Table) -> pa.Table:
        lists = []
        for ids in table["input_ids"].to_pylist():
            starts = [k for k in range(len(ids)) if ids[k : k + len(run)] == run]
            for start in reversed(starts):
                ids[start : start + len(run)] = apart
            lists.append(ids)
        column = pa.array(lists, table.schema.field("input_ids").type)
        return table.set_column(table.schema.get_field_index("input_ids"), table.schema.field("input_ids"), column)

    report = verify_traps(injected, edited(tokens, tmp_path, split_first))
    assert report["tokens"] == {"intact": COPIES - 16, "changed": 16, "missing": 0}


def test_a_folder_without_traps_is_refused(documents: Path, tokens: Path) -> None:
    with pytest.raises(UserError, match="documents without traps"):
        verify_traps(documents, tokens)


def test_the_verb_exits_with_1_when_a_copy_is_missing(
    injected: Path, documents: Path, tokens: Path, tokenizer: Path, tmp_path: Path
) -> None:
    arguments = ["verify", str(injected), "--tokens"]
    found = CliRunner().invoke(app, [*arguments, str(tokens)])
    assert found.exit_code == 0
    assert f"copies {COPIES}, tokens intact {COPIES}, tokens changed 0, tokens missing 0" in found.stdout
    found = CliRunner().invoke(app, [*arguments, str(tokenized(documents, tokenizer, tmp_path)), "--json"])
    assert found.exit_code == 1
    assert f'"missing": {COPIES}' in found.stdout
