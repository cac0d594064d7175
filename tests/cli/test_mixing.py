import json
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]


def write(path: str, source: str, count: int) -> None:
    lines = [json.dumps({"id": f"{source}{k}", "text": "word " * (k + 1), "source": source}) for k in range(count)]
    Path(path).write_text("\n".join(lines) + "\n")


QUIET = ("--workers", "1", "--quiet")


def test_mixtures_of_folders_and_of_raw_files(seqmill_here: Call) -> None:
    write("web.jsonl", "web", 20)
    write("books.jsonl", "books", 10)
    for name in ("web", "books"):
        assert seqmill_here("ingest", f"{name}.jsonl", "--out", name, *QUIET)[0] == 0
    flags = ("--weights", "web=0.25,books=0.75", "--target-documents", "40", "--parameters", "800000000", *QUIET)
    code, out, err = seqmill_here("mix", "web", "books", "--out", "mixed", *flags, "--json")
    figures = json.loads(out)
    assert (code, err) == (0, "")
    assert {"documents", "bytes", "quarantined", "seconds", "funnel", "by_source", "repeated"} <= figures.keys()
    assert figures["documents"] == 40
    assert figures["by_source"]["books"]["epochs"] == 3.0
    assert figures["repeated"]["documents"] == 20
    assert figures["damage_band"]["harmful"] == []

    code, out, _ = seqmill_here("mix", "web", "books", "--out", "mixed", *flags)
    assert "books" in out
    assert "75.00%" in out
    assert "epochs harm a model of 800,000,000 parameters most" in out
    code, out, _ = seqmill_here(
        "mix", "web.jsonl", "--out", "raw", "--epochs", "web=100", "--parameters", "800000000", *QUIET
    )
    assert (code, "warning: web is seen 100.0 times, inside this band" in out) == (0, True)


def test_a_holdout(seqmill_here: Call) -> None:
    write("web.jsonl", "web", 20)
    code, out, err = seqmill_here("split", "web.jsonl", "--out", "halves", "--fraction", "0.25", "--json", *QUIET)
    figures = json.loads(out)
    assert (code, err) == (0, "")
    assert (figures["documents"], figures["train_documents"], figures["holdout_documents"]) == (20, 15, 5)
    assert json.loads(Path("halves/holdout/manifest.json").read_text())["totals"]["documents"] == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("mix", "web.jsonl", "--weights", "web"), "'web' is wrong; write each source once"),
        (("mix", "web.jsonl", "--weights", "web=1,web=2"), "'web=2' is wrong"),
        (("mix", "web.jsonl", "--target-tokens", "3", "--target-bytes", "3"), "exclude each other"),
        (("mix", "web.jsonl", "--epochs", "books=1"), "no source 'books'"),
        (("mix", "web.jsonl", "--memory", "0"), "memory_mb = 0"),
        (("mix", "web.jsonl", "done"), "web.jsonl has no manifest.json, other inputs have"),
        (("split", "web.jsonl"), "either a fraction or a number"),
        (("split", "web.jsonl", "--documents", "21"), "there are 20"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(seqmill_here: Call, flags: tuple[str, ...], message: str) -> None:
    write("web.jsonl", "web", 20)
    if "done" in flags:
        seqmill_here("ingest", "web.jsonl", "--out", "done", *QUIET)
    code, out, err = seqmill_here(*flags, "--out", "out", *QUIET)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
