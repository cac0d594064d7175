"""The benchmark of shared prefixes and drafts: ways that are compared go on with the same tokens."""

from pathlib import Path

import pytest

from seqmill.errors import UserError
from seqmill.pipeline.bench import benchmark_module

bench = benchmark_module("generation")


@pytest.mark.wide
def test_every_way_goes_on_with_the_same_tokens() -> None:
    told = bench.run(model="tiny", documents=8)
    assert told["notes"] == []
    shown = {(row["case"], row["system"]): row["value"] for row in told["rows"]}
    assert shown["tiny, shared-prefix: prompts, beside for every prompt", "seqmill, once"] > 2
    assert {system for case, system in shown if "editing" in case} == {
        "seqmill, none", "seqmill, copy", "seqmill, recycle", "seqmill, suffix",
    }  # fmt: skip
    assert shown["tiny, plain: tokens of a pass", "seqmill, none"] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cases": ["other"]}, "there is no case 'other'; choose from shared-prefix, editing, plain"),
        ({"documents": 0}, "--documents 0"),
        ({"device": "tpu"}, "--device tpu"),
        ({"model": "huge"}, "--model huge"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        bench.run(**settings)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(UserError, match="more than 2048 are needed"):
        bench.run(data=tmp_path / "short.txt")
