import os
from pathlib import Path

import fsspec
import pytest

from seqmill.errors import UserError
from seqmill.pipeline.sources import Discovery, discover, refuse_overlap


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")


def names(found: Discovery) -> list[str]:
    return [file.name for file in found.files]


def test_directories_are_read_recursively_and_sorted_by_name(tmp_path: Path):
    make(tmp_path, "b.jsonl", "a/z.jsonl", "a/b/c.parquet", "c.txt.gz")
    found = discover([str(tmp_path)])
    assert names(found) == ["a/b/c.parquet", "a/z.jsonl", "b.jsonl", "c.txt.gz"]
    assert [file.ordinal for file in found.files] == [0, 1, 2, 3]
    assert [(file.format, file.compression) for file in found.files][2:] == [("jsonl", ""), ("text", "gzip")]


def test_hidden_and_unfinished_files_are_left_out(tmp_path: Path):
    make(tmp_path, "a.jsonl", ".b.jsonl", "_c.jsonl", "d.jsonl.tmp", ".git/e.jsonl", "_old/f.jsonl", "_SUCCESS")
    assert names(discover([str(tmp_path)])) == ["a.jsonl"]
    assert names(discover([f"{tmp_path}/*"])) == ["a.jsonl"]


def test_a_hidden_folder_above_the_inputs_hides_nothing(tmp_path: Path):
    make(tmp_path, ".cache/_data/a.jsonl")
    assert names(discover([str(tmp_path / ".cache/_data")])) == ["a.jsonl"]
    assert names(discover([str(tmp_path / ".cache/_data/a.jsonl")])) == ["a.jsonl"]


def test_names_do_not_depend_on_where_the_inputs_lie(tmp_path: Path):
    for root in (tmp_path / "here", tmp_path / "far/away"):
        make(root, "en/a.jsonl", "de/b.jsonl", "c.jsonl")
    here, far = (
        discover([f"{root}/en", f"{root}/d*", f"{root}/c.jsonl"]) for root in (tmp_path / "here", tmp_path / "far/away")
    )
    assert names(here) == names(far) == ["c.jsonl", "de/b.jsonl", "en/a.jsonl"]


def test_a_relative_input_gives_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make(tmp_path, "data/en/a.jsonl")
    monkeypatch.chdir(tmp_path / "data")
    assert discover(["en"]).files == discover([str(tmp_path / "data/en")]).files


def test_globs_match_across_folders(tmp_path: Path):
    make(tmp_path, "x/1/a.jsonl", "x/2/a.jsonl", "x/2/b.txt")
    assert names(discover([f"{tmp_path}/x/**/*.jsonl"])) == ["1/a.jsonl", "2/a.jsonl"]


def test_a_file_named_twice_is_read_once(tmp_path: Path):
    make(tmp_path, "a.jsonl")
    assert names(discover([str(tmp_path), f"{tmp_path}/a.jsonl", f"{tmp_path}/*.jsonl"])) == ["a.jsonl"]


def test_a_named_file_is_a_source_of_its_own_and_found_ones_take_their_folder(tmp_path: Path):
    make(tmp_path, "raw/wiki/0.jsonl", "raw/wiki/1.jsonl", "raw/books/x.txt", "news.v2.jsonl.zst")
    inputs = [str(tmp_path / "raw"), str(tmp_path / "news.v2.jsonl.zst")]
    assert [file.source for file in discover(inputs).files] == ["news.v2", "books", "wiki", "wiki"]
    assert [file.source for file in discover([str(tmp_path / "raw/wiki/*.jsonl")]).files] == ["wiki", "wiki"]


def test_files_of_unknown_extension_are_listed_and_left_out(tmp_path: Path):
    make(tmp_path, "a.jsonl", "LICENSE", "b.parquet.gz")
    found = discover([str(tmp_path)])
    assert (names(found), found.skipped) == (["a.jsonl"], ("LICENSE", "b.parquet.gz"))


def test_a_forced_format_takes_every_extension(tmp_path: Path):
    make(tmp_path, "a.log", "b.jsonl")
    assert [(file.name, file.format) for file in discover([str(tmp_path)], "text").files] == [
        ("a.log", "text"),
        ("b.jsonl", "text"),
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("missing.jsonl", "missing.jsonl does not exist"),
        ("*.parquet", r"\*.parquet matches no file"),
        ("empty", "empty matches no file"),
        ("a.xyz", "does not fit this file; name a format"),
        ("only", "no files to read; 1 files have an unknown extension, such as b.xyz"),
        ("nothing://x", "cannot open 'nothing://x'"),
    ],
)
def test_an_input_that_gives_nothing_is_an_error_that_names_it(tmp_path: Path, given: str, words: str):
    make(tmp_path, "a.xyz", "only/b.xyz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        discover([given if "://" in given else f"{tmp_path}/{given}"])


def test_the_stamp_changes_with_the_file(tmp_path: Path):
    make(tmp_path, "a.jsonl")
    before = discover([str(tmp_path)]).files[0]
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    after = discover([str(tmp_path)]).files[0]
    assert before.stamp != after.stamp
    assert after.stamp == "1"


def test_urls_are_walked_like_folders():
    memory = fsspec.filesystem("memory")
    memory.pipe({"/sources/a/x.jsonl": b"1", "/sources/b.txt": b"22", "/sources/.hidden": b""})
    try:
        found = discover(["memory://sources"])
        assert [(file.name, file.path, file.size) for file in found.files] == [
            ("a/x.jsonl", "memory://sources/a/x.jsonl", 1),
            ("b.txt", "memory://sources/b.txt", 2),
        ]
        assert all(file.stamp for file in found.files)
        assert names(discover(["memory://sources/*/*.jsonl"])) == ["a/x.jsonl"]
    finally:
        memory.rm("/sources", recursive=True)


def test_inputs_on_two_file_systems_keep_apart(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/two/a.jsonl": b"1"})
    make(tmp_path, "a.jsonl")
    try:
        assert names(discover(["memory://two", str(tmp_path)])) == ["file/a.jsonl", "memory/a.jsonl"]
    finally:
        memory.rm("/two", recursive=True)


def test_output_inside_an_input_is_refused_from_the_first_run_on(tmp_path: Path):
    make(tmp_path, "a.jsonl")
    with pytest.raises(UserError, match="lies inside the input"):
        refuse_overlap([str(tmp_path)], (), tmp_path / "out")


def test_input_inside_the_output_is_refused(tmp_path: Path):
    make(tmp_path, "out/a.jsonl")
    files = discover([f"{tmp_path}/out/a.jsonl"]).files
    with pytest.raises(UserError, match="which this stage rewrites"):
        refuse_overlap([f"{tmp_path}/out/a.jsonl"], files, tmp_path / "out")
