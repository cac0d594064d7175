import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from damage import flip_token, flipped_bits
from seqmill.errors import UserError
from seqmill.manifest import OutputFile, open_manifest, write_manifest
from seqmill.packing import PackedRows, ValidationReport, validate
from seqmill.packing.schema import hash_rows
from seqmill.packing.validation.report import Findings
from seqmill.packing.validation.shards import Shard
from seqmill.storage import read_arrow, read_json, write_arrow, write_json

LENGTHS = [0, 1, 15, 16, 17, 1600, 3, 3, 3, 40, 0, 31, 8, 8, 2, 5, 100, 7]
SECOND = "part-00001.arrow"
BOTH = ("manifest", "totals")  # an edited manifest no longer matches its fingerprint either


def kinds(report: ValidationReport) -> set[str]:
    return {violation.invariant for violation in report.violations}


def edit(folder: Path, change: Callable[[list[dict[str, Any]]], None], *, rehash: bool = True) -> None:
    """Rewrite the second shard after `change` of its rows, with a manifest and row hashes that fit the new bytes."""
    path = folder / SECOND
    table = read_arrow(path)
    rows = table.to_pylist()
    change(rows)
    for row in rows if rehash else []:
        ids, cu = np.array(row["input_ids"], np.uint16), np.array(row["cu_seqlens"], np.int32)
        row["xxh3"] = hash_rows(ids, np.array([0, len(ids)]), cu, np.array([0, len(cu)]))[0]
    schema = table.schema
    del table
    write_arrow(path, schema, pa.Table.from_pylist(rows, schema).to_batches(max_chunksize=4))
    manifest = read_json(folder / "manifest.json")
    files = [OutputFile(**file) for file in manifest["files"]]
    files[1] = OutputFile.of(folder, SECOND, len(rows))
    entries = {name: manifest[name] for name in ("pack", "totals", "drops")}
    write_manifest(folder, "packed", files, **entries)


def busiest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda row: len(row["seq_lengths"]))


@pytest.mark.parametrize("overflow", ["split", "truncate", "drop"])
@pytest.mark.parametrize("capacity", [1, 7, 16, 17, 2000])
def test_what_the_writer_writes_is_valid(pack: Callable, overflow: str, capacity: int) -> None:
    packed = pack(LENGTHS, capacity, overflow)
    for report in (validate(packed.folder), validate(str(packed.folder), packed.corpus.folder)):
        assert report.ok, str(report)
        assert (report.files, report.rows, report.tokens) == (2, packed.plan.rows, packed.plan.tokens)
        assert str(report).endswith("valid")


def test_a_dataset_of_no_rows_is_valid(pack: Callable) -> None:
    packed = pack([0, 0], 4)
    report = validate(packed.folder, packed.corpus.folder)
    assert report.ok, str(report)
    assert report.rows == 0


def test_an_edit_that_changes_nothing_stays_valid(pack: Callable) -> None:
    """The tests below edit shards in this way; they would prove nothing if the way itself broke something."""
    packed = pack(LENGTHS, 16)
    edit(packed.folder, lambda rows: None)
    assert validate(packed.folder, packed.corpus.folder).ok


def test_a_flipped_byte_of_a_token_is_named_with_its_row(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    flip_token(packed.folder / SECOND, 3)
    report = validate(packed.folder)
    assert [v.invariant for v in report.violations if v.row is None] == ["I10"]
    assert "does not match the hash in the manifest" in str(report)


def test_a_changed_row_is_named_even_if_the_manifest_fits(pack: Callable) -> None:
    packed = pack([16] * 20, 16)

    def change(rows: list[dict[str, Any]]) -> None:
        rows[3]["input_ids"][5] ^= 1

    first = open_manifest(packed.folder)["files"][0]["rows"]
    edit(packed.folder, change, rehash=False)
    report = validate(packed.folder)
    assert [(v.invariant, v.file, v.row, v.count) for v in report.violations] == [("I10", SECOND, first + 3, 1)]
    assert f"{SECOND}, row {first + 3}: the row does not match its hash" in str(report)


CHANGES: dict[str, tuple[set[str], Callable[[dict[str, Any]], None]]] = {
    "cu_seqlens start at 1": ({"I1"}, lambda row: row["cu_seqlens"].__setitem__(0, 1)),
    "cu_seqlens repeat": ({"I1"}, lambda row: row["cu_seqlens"].__setitem__(1, 0)),
    "cu_seqlens end early": ({"I1"}, lambda row: row["cu_seqlens"].__setitem__(-1, row["cu_seqlens"][-1] - 1)),
    "cu_seqlens are missing": ({"I1"}, lambda row: row["cu_seqlens"].clear()),
    "cu_seqlens cut elsewhere": ({"I2"}, lambda row: row["cu_seqlens"].__setitem__(1, row["cu_seqlens"][1] - 1)),
    "one seq_length": ({"I2"}, lambda row: row["seq_lengths"].__setitem__(0, 1)),
    "one doc_id too many": ({"I2"}, lambda row: row["doc_id"].append(1)),
    "max_seqlen": ({"I2"}, lambda row: row.__setitem__("max_seqlen", 0)),
    "n_tokens": ({"I2"}, lambda row: row.__setitem__("n_tokens", 1)),
    "sum_sq": ({"I2"}, lambda row: row.__setitem__("sum_sq", 1)),
    "a token of the vocabulary's size": ({"I3"}, lambda row: row["input_ids"].__setitem__(1, 50_000)),
    "a document's offset": ({"I4"}, lambda row: row["doc_offset"].__setitem__(0, 1)),
    "another document's id": ({"I4"}, lambda row: row["doc_id"].__setitem__(0, row["doc_id"][1])),
    "an invented next token": ({"I5", "I6"}, lambda row: row["next_token"].__setitem__(0, 12)),
    "a document's targets": ({"I11"}, lambda row: row["doc_targets"].__setitem__(0, 77)),
    "n_loss_tokens": ({"I6"}, lambda row: row.__setitem__("n_loss_tokens", 0)),
    "row_id": ({"I7"}, lambda row: row.__setitem__("row_id", 0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_inconsistency_is_named(pack: Callable, name: str) -> None:
    packed = pack([5, 6, 4] * 12, 16)
    expected, change = CHANGES[name]
    place: list[int] = []

    def apply(rows: list[dict[str, Any]]) -> None:
        target = busiest(rows)
        assert len(target["seq_lengths"]) >= 3
        place.append(target["row_id"])
        change(target)

    edit(packed.folder, apply)
    report = validate(packed.folder)
    assert expected <= kinds(report)
    assert place[0] in {violation.row for violation in report.violations if violation.invariant in expected}
    assert all(violation.file in (SECOND, "manifest.json", "part-00000.arrow") for violation in report.violations)


def test_a_lost_next_token_is_named(pack: Callable) -> None:
    packed = pack([100] * 4, 16)

    def change(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["next_token"] != [-1])
        row["next_token"] = [-1]
        row["n_loss_tokens"] -= 1

    edit(packed.folder, change)
    assert kinds(validate(packed.folder)) == {"I5", "totals"}


def test_rows_beyond_the_capacity_are_named(pack: Callable) -> None:
    packed = pack([16, 5], 16)
    manifest = read_json(packed.folder / "manifest.json")
    manifest["pack"]["capacity"] = 15
    write_json(packed.folder / "manifest.json", manifest)
    assert "I1" in kinds(validate(packed.folder))


def test_list_offsets_that_do_not_begin_at_zero_are_named(pack: Callable) -> None:
    """Checked on the batch itself: Arrow's own writer moves offsets to 0, other writers need not."""
    packed = pack(LENGTHS, 16)
    batch = read_arrow(packed.folder / "part-00000.arrow").to_batches()[0]
    ids = batch.column("input_ids")
    padded = pa.concat_arrays([pa.array([1, 2], pa.uint16()), ids.values])
    moved = pa.ListArray.from_arrays(pa.array(ids.offsets.to_numpy() + 2), padded)
    columns = [moved if name == "input_ids" else batch.column(name) for name in batch.schema.names]
    pack_entry = open_manifest(packed.folder)["pack"]
    for checked, expected in ((batch, []), (pa.record_batch(columns, schema=batch.schema), ["I8"])):
        findings = Findings()
        Shard("part-00000.arrow", 0, pack_entry, findings, None).check(checked, 0)
        assert [violation.invariant for violation in findings.violations] == expected


def test_a_missing_shard_is_named(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    (packed.folder / SECOND).unlink()
    report = validate(packed.folder)
    assert any(v.file == SECOND and "the file is missing" in v.detail for v in report.violations)
    assert {"I10", "totals"} <= kinds(report)


def test_a_shard_missing_from_the_manifest_is_named(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    manifest = read_json(packed.folder / "manifest.json")
    del manifest["files"][1]
    write_json(packed.folder / "manifest.json", manifest)
    assert {"I4", "totals"} <= kinds(validate(packed.folder))


def test_a_truncated_shard_is_named(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    path = packed.folder / SECOND
    path.write_bytes(path.read_bytes()[:-1000])
    assert any(v.file == SECOND and v.invariant == "I10" for v in validate(packed.folder).violations)


def test_another_layout_is_named(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    path = packed.folder / SECOND
    table = read_arrow(path).drop_columns(["pos_start"])
    batches = table.to_batches()
    write_arrow(path, table.schema, batches)
    assert {"I10", "schema"} <= kinds(validate(packed.folder))


@pytest.mark.parametrize("entry", ["rows", "tokens", "loss_tokens", "segments", "sum_sq", "min_seqlen", "max_seqlen"])
def test_wrong_totals_are_named(pack: Callable, entry: str) -> None:
    packed = pack(LENGTHS, 16)
    manifest = read_json(packed.folder / "manifest.json")
    manifest["totals"][entry] += 1
    write_json(packed.folder / "manifest.json", manifest)
    report = validate(packed.folder)
    assert [(v.invariant, v.file) for v in report.violations] == [(name, "manifest.json") for name in BOTH]
    assert f"{entry} is {manifest['totals'][entry]}" in str(report)


@pytest.mark.parametrize("entry", ["tokens", "documents", "documents_empty", "tokens_in", "documents_in"])
def test_a_wrong_drop_record_is_named(pack: Callable, entry: str) -> None:
    packed = pack(LENGTHS, 16, "drop")
    manifest = read_json(packed.folder / "manifest.json")
    manifest["drops"][entry] += 1
    write_json(packed.folder / "manifest.json", manifest)
    assert kinds(validate(packed.folder)) == set(BOTH)


def test_documents_are_compared_with_the_tokens_folder(pack: Callable) -> None:
    """The same lengths in another order: each folder is consistent by itself, together they are not."""
    packed, longer, fewer = pack([5, 9, 30], 16), pack([5, 10, 30], 16), pack([5, 9], 16)
    assert validate(longer.folder).ok
    assert kinds(validate(packed.folder, longer.corpus.folder)) == {"I4"}
    assert "is not in the tokens folder" in str(validate(packed.folder, fewer.corpus.folder))
    assert "is in no row and not in the drop record" in str(validate(fewer.folder, packed.corpus.folder))


def test_changed_tokens_are_found_by_comparing_with_the_tokens_folder(pack: Callable) -> None:
    packed = pack([16] * 20, 16)
    edit(packed.folder, lambda rows: rows[3]["input_ids"].__setitem__(5, rows[3]["input_ids"][5] ^ 1))
    assert validate(packed.folder).ok
    assert kinds(validate(packed.folder, packed.corpus.folder)) == {"I4"}


def test_folders_that_cannot_be_validated_are_refused(pack: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        validate(tmp_path)
    with pytest.raises(UserError, match="holds tokens, but packed are validated"):
        validate(pack([3], 4).corpus.folder)


def is_noticed(folder: Path) -> bool:
    try:
        return not validate(folder).ok
    except UserError:
        return True


@pytest.mark.parametrize("buckets", [None, (4, "longest", "carry_to_packer")], ids=["rows", "buckets"])
def test_every_flipped_bit_is_noticed_and_none_crashes(pack: Callable, buckets: tuple[Any, ...] | None) -> None:
    packed = pack(LENGTHS, 16, buckets=buckets)
    assert not is_noticed(packed.folder)
    missed = [place for place in flipped_bits(packed.folder, 60) if not is_noticed(packed.folder)]
    assert missed == []
    assert not is_noticed(packed.folder)


def test_offsets_far_outside_the_tokens_are_refused_by_arrow_before_anything_follows_them(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    path = packed.folder / SECOND
    offsets = read_arrow(path)["input_ids"].chunk(0).offsets.to_numpy()
    content = bytearray(path.read_bytes())
    place = content.index(offsets.tobytes()) + 4
    content[place : place + 4] = (1 << 30).to_bytes(4, "little")
    path.unlink()
    path.write_bytes(content)
    details = [violation.detail for violation in validate(packed.folder).violations]
    assert any("the file cannot be read" in detail and "offset" in detail for detail in details)


def test_a_shard_from_before_doc_targets_is_named_by_readers_and_by_the_validator(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    table = read_arrow(packed.folder / SECOND).drop_columns("doc_targets")
    write_arrow(packed.folder / SECOND, table.schema, table.to_batches())
    manifest = read_json(packed.folder / "manifest.json")
    files = [OutputFile(**manifest["files"][0]), OutputFile.of(packed.folder, SECOND, len(table))]
    write_manifest(packed.folder, "packed", files, **{name: manifest[name] for name in ("pack", "totals", "drops")})
    with pytest.raises(UserError, match=f"{SECOND} has no column doc_targets: an earlier version wrote it; pack again"):
        PackedRows(packed.folder)
    assert "schema" in kinds(validate(packed.folder))


def test_a_part_that_the_manifest_does_not_list_is_named(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    (packed.folder / "part-00007.arrow").touch()
    (violation,) = validate(packed.folder).violations
    assert str(violation) == "manifest: part-00007.arrow: the file is not in the manifest (1 in this file)"


def test_entries_that_make_no_sense_end_the_checks_of_a_damaged_manifest(pack: Callable) -> None:
    packed = pack(LENGTHS, 16)
    manifest = read_json(packed.folder / "manifest.json")
    manifest["drops"]["dokuments"] = manifest["drops"].pop("documents")
    write_json(packed.folder / "manifest.json", manifest)
    assert "an entry that makes no sense: KeyError 'documents'" in str(validate(packed.folder))
    manifest["files"][0]["raws"] = manifest["files"][0].pop("rows")
    write_json(packed.folder / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"does not list its files as seqmill does \(.*'raws'\)"):
        validate(packed.folder)


def test_shards_of_other_settings_are_named(pack: Callable) -> None:
    """All hashes are right; only the metadata of the file tells that it comes from another run."""
    packed, other = pack([16] * 20, 16), pack([16] * 20, 16, seed=1)
    shutil.copy(other.folder / SECOND, packed.folder / SECOND)
    edit(packed.folder, lambda rows: None)
    assert "schema" in kinds(validate(packed.folder))
