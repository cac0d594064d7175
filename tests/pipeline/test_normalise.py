import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.pipeline.funnel import Funnel
from seqmill.pipeline.normalise import NormaliseConfig, Normaliser, composed, with_unix_newlines

TEXTS = st.lists(st.text(max_size=20) | st.text("a\u0301\u0327\u1100\u1161 \r\n", max_size=8), max_size=8)


def batch(texts: list[str]) -> pa.RecordBatch:
    return pa.record_batch({"row": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.large_string())})


def normalised(texts: list[str], **settings: object) -> tuple[list[str], dict]:
    normaliser = Normaliser(NormaliseConfig(**settings), Funnel("normalise"))
    result = normaliser(batch(texts))
    return result.column("text").to_pylist(), normaliser.stats()


@given(TEXTS)
def test_nfc_is_what_unicodedata_says(texts: list[str]):
    assert composed(pa.array(texts, pa.large_string())).to_pylist() == [unicodedata.normalize("NFC", t) for t in texts]


@given(TEXTS)
def test_newlines_become_lf_and_nothing_else_changes(texts: list[str]):
    expected = [t.replace("\r\n", "\n").replace("\r", "\n") for t in texts]
    assert with_unix_newlines(pa.array(texts, pa.large_string())).to_pylist() == expected


@given(TEXTS, st.sampled_from(["none", "nfc"]), st.sampled_from(["keep", "lf"]), st.integers(1, 12))
def test_every_document_and_byte_is_accounted_for(texts: list[str], form: str, newlines: str, min_bytes: int):
    rewritten = texts
    if newlines == "lf":
        rewritten = [t.replace("\r\n", "\n").replace("\r", "\n") for t in rewritten]
    if form == "nfc":
        rewritten = [unicodedata.normalize("NFC", t) for t in rewritten]
    kept = [t for t in rewritten if t and not t.isspace() and len(t.encode()) >= min_bytes]
    found, stats = normalised(texts, unicode=form, newlines=newlines, min_bytes=min_bytes)
    assert found == kept
    assert (stats["documents_in"], stats["bytes_in"]) == (len(texts), sum(len(t.encode()) for t in texts))
    assert (stats["documents_out"], stats["bytes_out"]) == (len(kept), sum(len(t.encode()) for t in kept))


def test_by_default_no_byte_changes():
    texts = ["a\r\nb", "e\u0301", " x "]
    assert normalised(texts)[0] == texts


def test_composition_can_lengthen_a_text_and_the_funnel_says_so():
    texts, stats = normalised(["\u0958"], unicode="nfc")  # a composition exclusion: one character becomes two
    assert texts == ["\u0915\u093c"]
    assert stats["reasons"] == {"rewritten": {"documents": 0, "bytes": -3}}
    assert stats["rewritten_documents"] == 1


def test_a_dropped_document_counts_with_the_bytes_it_came_with():
    _, stats = normalised(["\r\n", "ab\r\n", "abcdef"], newlines="lf", min_bytes=5)
    assert stats["reasons"] == {"empty": {"documents": 1, "bytes": 2}, "short": {"documents": 1, "bytes": 4}}
    assert stats["rewritten_documents"] == 0


def test_other_columns_stay_beside_their_text():
    result = Normaliser(NormaliseConfig(), Funnel("normalise"))(batch(["a", "", "b", "\u3000", "c"]))
    assert result.column("row").to_pylist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unicode": "nfkc"}, "normalise.unicode = 'nfkc': choose one of none, nfc"),
        ({"newlines": "crlf"}, "normalise.newlines = 'crlf': choose one of keep, lf"),
        ({"min_bytes": 0}, "normalise.min_bytes = 0: use at least 1"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, words: str):
    with pytest.raises(UserError, match=words):
        NormaliseConfig(**settings)
