import json
from collections.abc import Callable
from pathlib import Path

import pytest

from seqmill.storage import read_arrow


def write(path: Path) -> None:
    prose = "The people of the town have to be there with us, and that is why Ann 8.8.8.8 came along today. " * 2
    texts = [prose + " ".join(f"word{k}" for k in range(60)), "too short", "- a\n" * 80]
    path.write_text("".join(json.dumps({"id": str(k), "text": text}) + "\n" for k, text in enumerate(texts)))


def test_the_verb_filters_masks_and_prints_why(seqmill_here: Callable[..., tuple[int, str, str]]) -> None:
    write(Path("raw.jsonl"))
    flags = ("filter", "raw.jsonl", "--out", "out", "--preset", "gopher", "--mask", "ip,email", "--workers", "1")
    code, out, err = seqmill_here(*flags, "--json", "--quiet")
    figures = json.loads(out)
    assert (code, err) == (0, "")
    assert {"documents", "bytes", "quarantined", "seconds", "funnel", "by_source", "masked"} <= figures.keys()
    reasons = figures["funnel"][0]["reasons"]
    assert reasons["gopher: few words"]["documents"] == 1
    assert reasons["gopher: short words"]["documents"] == 1
    assert figures["documents"] == 1
    assert figures["masked"]["raw"]["ip"]["items"] == 2
    (text,) = read_arrow(Path("out/part-00000.arrow"))["text"].to_pylist()
    assert "Ann <IP> came" in text

    code, out, _ = seqmill_here(*flags, "--quiet", "--set", "gopher_quality.min_words=2")
    assert code == 0
    assert "gopher: few stop words: 1 documents, 9 bytes" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--preset", "best"), "none, gopher, c4, fineweb"),
        (("--mask", "name"), "email, ip, phone"),
        (("--set", "gopher_quality.min_word=3"), "did you mean"),
        (("--set", "min_words"), "table.key=value"),
        (("--languages", "en", "--min-language-score", "7"), "between 0 and 1"),
    ],
)
def test_bad_flags_are_one_line(
    seqmill_here: Callable[..., tuple[int, str, str]], flags: tuple[str, ...], message: str
) -> None:
    write(Path("raw.jsonl"))
    code, out, err = seqmill_here("filter", "raw.jsonl", "--out", "out", *flags)
    assert (code, out) == (2, "")
    assert err.startswith("seqmill: ")
    assert err.count("\n") == 1
    assert message in err
