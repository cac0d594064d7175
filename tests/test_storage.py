import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash

from seqmill.errors import UserError
from seqmill.manifest import OutputFile, open_manifest, write_manifest
from seqmill.storage import (
    atomic_path,
    canonical_json,
    fingerprint,
    hash_file,
    only_writer,
    read_arrow,
    read_json,
    read_metadata,
    remove_temporary_files,
    with_metadata,
    write_arrow,
    write_json,
)

SCHEMA = pa.schema({"n": pa.int64()})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with suppress(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "part.arrow.123.tmp").write_text("half")
    (tmp_path / "part.arrow").write_text("whole")
    remove_temporary_files(tmp_path)
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["part.arrow"]


def test_arrow_files_come_back_with_their_metadata(tmp_path: Path) -> None:
    schema = with_metadata(SCHEMA.with_metadata({"other": "kept"}), "numbers", origin="test")
    batches = [pa.record_batch([pa.array([1, 2])], schema=schema), pa.record_batch([pa.array([3])], schema=schema)]
    assert write_arrow(tmp_path / "a.arrow", schema, batches) == 3
    table = read_arrow(tmp_path / "a.arrow")
    assert table["n"].to_pylist() == [1, 2, 3]
    described = {"format_version": 1, "kind": "numbers", "origin": "test"}
    assert read_metadata(table.schema) == {**described, "fingerprint": fingerprint(["numbers", {"origin": "test"}])}
    assert table.schema.metadata[b"other"] == b"kept"
    assert read_metadata(SCHEMA) == {}


def test_a_truncated_arrow_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, SCHEMA, [pa.record_batch([pa.array(range(1000))], schema=SCHEMA)])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="run its stage again"):
        read_arrow(path)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_files_are_hashed_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(b"x" * size)
    assert hash_file(tmp_path / "f") == xxhash.xxh3_128_hexdigest(b"x" * size)


def test_fingerprints_see_values_and_not_their_order() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_json_that_was_edited_badly_is_a_clear_error(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, "é"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, "é"]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


WRITE_A_MEGABYTE = """
import sys
from pathlib import Path
import pyarrow as pa
from seqmill.storage import write_arrow, write_json
from seqmill.errors import UserError
schema = pa.schema({"n": pa.int64()})
try:
    if sys.argv[2] == "arrow":
        write_arrow(Path(sys.argv[1]), schema, [pa.record_batch([pa.array(range(130_000))], schema=schema)])
    else:
        write_json(Path(sys.argv[1]), list(range(200_000)))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["arrow", "json"])
def test_a_full_disk_is_a_user_error_that_leaves_no_file(tmp_path: Path, kind: str) -> None:
    limit = 1 << 16  # bytes a file may have: writing beyond fails as a full disk does
    found = subprocess.run(
        [sys.executable, "-c", WRITE_A_MEGABYTE, str(tmp_path / "out"), kind],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "File too large" in found.stdout
    assert "Nothing was left under a final name" in found.stdout
    assert list(tmp_path.iterdir()) == []


HOLD = "import sys, time; from pathlib import Path; from seqmill.storage import only_writer\n"
HOLD += "with only_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another seqmill process"), only_writer(tmp_path):
            pass
        holder.kill()
    with only_writer(tmp_path):
        pass


def finished_folder(folder: Path) -> Path:
    for name in ("part-00000.arrow", "part-00001.arrow", "part-00009.arrow"):
        write_arrow(folder / name, SCHEMA, [pa.record_batch([pa.array([1])], schema=SCHEMA)])
    files = [OutputFile.of(folder, name, 1) for name in ("part-00000.arrow", "part-00001.arrow")]
    write_manifest(folder, "documents", files, totals={"documents": 2})
    return folder


def test_a_manifest_lists_files_and_removes_parts_of_earlier_runs(tmp_path: Path) -> None:
    manifest = open_manifest(finished_folder(tmp_path), "documents")
    assert [file["name"] for file in manifest["files"]] == ["part-00000.arrow", "part-00001.arrow"]
    assert manifest["totals"] == {"documents": 2}
    assert not (tmp_path / "part-00009.arrow").exists()


def test_folders_that_do_not_match_their_manifest_are_refused(tmp_path: Path) -> None:
    folder = finished_folder(tmp_path)
    with pytest.raises(UserError, match="holds documents, but tokens are needed"):
        open_manifest(folder, "tokens")
    os.truncate(folder / "part-00001.arrow", 10)
    with pytest.raises(UserError, match=r"part-00001.arrow: the manifest lists \d+ bytes, found 10"):
        open_manifest(folder)
    (folder / "part-00001.arrow").unlink()
    with pytest.raises(UserError, match="found no"):
        open_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="its stage did not finish"):
        open_manifest(folder)
    write_json(folder / "manifest.json", {"format_version": 99})
    with pytest.raises(UserError, match="format version 99"):
        open_manifest(folder)
