from dataclasses import asdict
from typing import Any

import pytest

from seqmill.errors import UserError
from seqmill.pipeline.filters import PRESETS, FilterConfig, with_preset
from seqmill.pipeline.settings import build


def config(**table: Any) -> FilterConfig:
    return build(FilterConfig, with_preset(table), "filter")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_configurations_that_survive_a_round_trip(preset: str) -> None:
    made = config(preset=preset)
    assert build(FilterConfig, asdict(made), "filter") == made


def test_own_settings_stand_above_the_preset() -> None:
    made = config(preset="gopher", gopher_quality={"min_words": 20}, c4={"enabled": True})
    assert made.gopher_quality.enabled
    assert (made.gopher_quality.min_words, made.gopher_quality.max_words) == (20, 100_000)
    assert made.c4.enabled
    assert PRESETS["gopher"]["gopher_quality"] == {"enabled": True}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"preset": "gophr"}, "none, gopher, c4, fineweb"),
        ({"gopher_qualty": {}}, "did you mean 'gopher_quality'"),
        ({"gopher_quality": {"min_word": 3}}, "did you mean"),
        ({"gopher_quality": {"min_words": -1}}, "gopher_quality.min_words = -1"),
        ({"gopher_repetition": {"top_2_gram": 1.5}}, "between 0 and 1"),
        ({"length": {"min_words": 9, "max_words": 3}}, "above max_words = 3"),
        ({"language": {"keep": ["en"]}}, "enabled = true"),
        ({"language": {"enabled": True, "keep": ["English"]}}, "'English' is no language code"),
        ({"language": {"enabled": True, "min_score": 2.0}}, "between 0 and 1"),
        ({"mask": {"kinds": ["mail"]}}, "email, ip, phone"),
        ({"mask": {"kinds": ["phone"], "phone_regions": ["usa"]}}, "'usa' is no region"),
        ({"gopher_quality": 3}, "a table is needed"),
    ],
)
def test_impossible_settings_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        config(**table)
