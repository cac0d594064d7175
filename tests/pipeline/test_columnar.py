import gzip
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from seqmill.errors import UserError

Run = Callable[..., Any]

TEXTS = [f"text {i} é" for i in range(25)]
TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
]


def table(type_: pa.DataType = pa.string(), texts: list[Any] = TEXTS) -> pa.Table:  # noqa: B008  (immutable)
    values = pa.array([t.encode() if pa.types.is_binary(type_) and isinstance(t, str) else t for t in texts])
    return pa.table({"id": range(100, 100 + len(texts)), "text": values.cast(type_)})


def write_arrow_file(path: Path, data: pa.Table, rows: int) -> None:
    with pa.ipc.new_file(str(path), data.schema) as writer:
        writer.write_table(data, max_chunksize=rows)


def write_arrow_stream(path: Path, data: pa.Table, rows: int) -> None:
    with pa.ipc.new_stream(str(path), data.schema) as writer:
        writer.write_table(data, max_chunksize=rows)


def write_parquet(path: Path, data: pa.Table, rows: int) -> None:
    pq.write_table(data, path, row_group_size=rows)


WRITERS = {"a.parquet": write_parquet, "file.arrow": write_arrow_file, "stream.arrow": write_arrow_stream}


@pytest.mark.parametrize("unit_bytes", [1, 400, 1 << 20])
@pytest.mark.parametrize("name", WRITERS)
def test_tables_come_through_whole_or_cut_at_their_pieces(run: Run, tmp_path: Path, name: str, unit_bytes: int):
    WRITERS[name](tmp_path / name, table(), 4)
    found = run(tmp_path / name, unit_bytes=unit_bytes)
    assert found.texts == TEXTS
    assert found.rows == list(range(25))
    assert found.table["id"].to_pylist() == [str(i) for i in range(100, 125)]
    assert len(found.manifest["files"]) == {1: 7, 1 << 20: 1}.get(unit_bytes, len(found.manifest["files"]))


@pytest.mark.parametrize("type_", TEXT_TYPES, ids=str)
def test_every_type_of_text_column_is_read(run: Run, tmp_path: Path, type_: pa.DataType):
    pq.write_table(table(type_), tmp_path / "a.parquet", row_group_size=10)
    write_arrow_file(tmp_path / "b.arrow", table(type_), 10)
    assert run(tmp_path / "a.parquet").texts == TEXTS
    assert run(tmp_path / "b.arrow").texts == TEXTS


@pytest.mark.parametrize("type_", [pa.binary(), pa.string()], ids=str)
def test_invalid_utf8_and_nulls_are_quarantined_one_by_one(run: Run, tmp_path: Path, type_: pa.DataType):
    values = pa.array([b"one", b"\xff\xfe", None, b"two", b"\xc3"]).view(type_)
    pq.write_table(pa.table({"text": values, "id": list("abcde")}), tmp_path / "a.parquet")
    found = run(tmp_path / "a.parquet")
    assert found.texts == ["one", "two"]
    assert found.rows == [0, 3]
    assert found.table["id"].to_pylist() == ["a", "d"]
    assert found.bad == {"invalid UTF-8": 2, "text is null": 1}
    assert found.manifest["quarantined"]["bytes"] == 3
    samples = {entry["row"]: entry["sample"] for entry in found.quarantined()}
    assert samples == {1: "\\xff\\xfe", 2: "", 4: "\\xc3"}


def test_kept_columns_of_every_type_become_strings(run: Run, tmp_path: Path):
    columns = {
        "text": ["one", "two"],
        "source": ["web", None],
        "score": [1.5, None],
        "flag": [True, False],
        "day": [date(2024, 1, 2), None],
        "tags": [["a"], []],
        "raw": pa.array([b"ok", b"\xff"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    found = run(tmp_path / "mine.parquet", keep_fields=("score", "flag", "day", "tags", "raw", "absent"))
    assert found.table.drop_columns(["doc_id", "text"]).to_pydict() == {
        "id": [None, None],
        "source": ["web", "mine"],
        "score": ["1.5", None],
        "flag": ["true", "false"],
        "day": ["2024-01-02", None],
        "tags": ['["a"]', "[]"],
        "raw": ["ok", "\\xff"],
        "absent": [None, None],
    }


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_text_column_is_an_error_that_lists_the_columns(run: Run, tmp_path: Path, name: str):
    WRITERS[name](tmp_path / name, pa.table({"body": ["x"], "id": [1]}), 4)
    with pytest.raises(UserError, match=r"no single column 'text' \(ingest.text_field\); its columns are body, id"):
        run(tmp_path / name)


def test_a_text_column_of_another_type_is_an_error_that_names_it(run: Run, tmp_path: Path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: column 'text' has type int64"):
        run(tmp_path / "a.parquet")


@pytest.mark.parametrize("unit_bytes", [1, 1 << 20])
@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_table_is_damage_that_is_counted(run: Run, tmp_path: Path, name: str, unit_bytes: int):
    WRITERS[name](tmp_path / name, table(), 4)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    found = run(tmp_path / name, unit_bytes=unit_bytes)
    assert found.texts == TEXTS[: len(found.texts)]
    assert sum(found.bad.values()) == 1
    (damage,) = found.manifest["quarantined"]["damaged_files"]
    assert damage["file"] == name
    assert str(tmp_path) not in str(found.manifest)


def test_a_parquet_page_of_garbage_keeps_the_row_groups_before_it(run: Run, tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, row_group_size=5, compression="zstd", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(3).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = run(path)
    assert found.texts == TEXTS[: len(found.texts)]
    assert sum(found.bad.values()) == 1


def test_a_compressed_parquet_file_is_refused(run: Run, tmp_path: Path):
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match="does not fit this file"):
        run(tmp_path / "a.parquet.gz")


def test_output_of_this_stage_can_be_read_again(run: Run, tmp_path: Path):
    pq.write_table(table(), tmp_path / "a.parquet")
    first = run(tmp_path / "a.parquet", keep_fields=("absent",))
    second = run(first.out)
    assert second.texts == TEXTS
    assert second.table["id"].to_pylist() == [str(i) for i in range(100, 125)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(25))})
    whole.select([3, 1, 24, 0]).save_to_disk(str(tmp_path / "hf/chosen"))
    datasets.DatasetDict({"train": whole, "test": whole.select(range(2))}).save_to_disk(str(tmp_path / "hf/both"))
    return tmp_path / "hf"


def test_a_saved_dataset_is_read_in_the_order_of_its_indices(run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("seqmill.pipeline.columnar.SLICE_ROWS", 2)
    for unit_bytes in (1, 1 << 20):
        found = run(saved / "chosen", unit_bytes=unit_bytes)
        assert found.texts == [TEXTS[i] for i in (3, 1, 24, 0)]
        assert found.rows == [0, 1, 2, 3]
        assert set(found.table["source"].to_pylist()) == {"chosen"}
        assert len(found.manifest["files"]) == (2 if unit_bytes == 1 else 1)


def test_saved_datasets_and_their_splits_are_found_in_folders(run: Run, saved: Path):
    found = run(saved)
    assert [source["name"] for source in found.manifest["inputs"]] == ["both/test", "both/train", "chosen"]
    assert found.texts == TEXTS[:2] + TEXTS + [TEXTS[i] for i in (3, 1, 24, 0)]
    assert found.table["source"].to_pylist() == ["both"] * 27 + ["chosen"] * 4


def test_indices_that_lie_apart_from_the_data_are_respected(run: Run, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": TEXTS, "extra": TEXTS})
    whole.shuffle(seed=1).filter(lambda row: row["text"] != TEXTS[4]).save_to_disk(str(tmp_path / "hf"))
    expected = datasets.load_from_disk(str(tmp_path / "hf"))["text"]
    assert run(tmp_path / "hf").texts == list(expected)
    with pytest.raises(UserError, match="its columns are text, extra"):
        run(tmp_path / "hf", text_field="body")
