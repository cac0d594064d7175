import json
import sys
from pathlib import Path

import pytest

from seqmill.cli import main
from seqmill.storage import read_arrow

SHARED = " ".join(f"clause {k} of the terms" for k in range(11, 21)) + ". "


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["seqmill", "substrings", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_verb_cuts_what_raw_files_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"First. {SHARED}", f"{SHARED}Second.", SHARED]
    Path("raw.jsonl").write_text(
        "".join(json.dumps({"id": str(k), "text": text}) + "\n" for k, text in enumerate(texts))
    )
    flags = ("raw.jsonl", "--out", "out", "--workers", "1", "--json", "--quiet")
    assert call(monkeypatch, *flags, "--min-bytes", "100") == 0
    figures = json.loads(capsys.readouterr().out)
    assert {key: figures[key] for key in ("documents", "spans", "duplicate_documents")} == {
        "documents": 2,
        "spans": 2,
        "duplicate_documents": 2,
    }
    assert read_arrow(Path("out/part-00000.arrow"))["text"].to_pylist() == [f"First. {SHARED}", "Second."]
    assert call(monkeypatch, *flags, "--action", "annotate", "--min-bytes", "200", "--memory", "64") == 0
    capsys.readouterr()
    assert read_arrow(Path("out/part-00000.arrow"))["duplicate_bytes"].to_pylist() == [0, len(SHARED), len(SHARED)]


def test_impossible_settings_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "raw.jsonl", "--out", "out", "--min-bytes", "3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seqmill: substrings.min_bytes = 3")
