import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress.arithmetic import ArithmeticCoder, Coded, static_model
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel
from seqmill.errors import UserError


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=60))
def test_any_bytes_come_back(model: TreeModel, text: bytes) -> None:
    coder = ArithmeticCoder(model)
    coded = coder.encode(text)
    assert coder.decode(coded) == text
    assert coded.payload.tobytes() == b"".join(int(word).to_bytes(4) for word in coded.words)


def test_the_code_is_as_long_as_the_model_needs(model: TreeModel, documents: list[bytes], texts: Texts) -> None:
    text = documents[0][:4000]
    found = {}
    for name, by in (("model", model), ("static", static_model(texts))):
        rows = by.frequencies([text[max(at - 64, 0) : at] for at in range(len(text))])
        needed = (by.precision - np.log2(rows[np.arange(len(text)), list(text)])).sum()
        coded = ArithmeticCoder(by).encode(text)
        assert needed < coded.bits < needed * 1.001 + 64
        found[name] = coded.bits / len(text)
    assert found["model"] < 2.5 < 4 < found["static"] < 5.5


def test_bytes_that_the_sample_lacks_can_be_coded() -> None:
    coder = ArithmeticCoder(static_model(Texts.of([b"aaaa"])))
    text = random.Random(0).randbytes(200)
    assert coder.decode(coder.encode(text)) == text


def test_words_that_are_cut_off_or_damaged_are_refused(model: TreeModel, documents: list[bytes]) -> None:
    coder = ArithmeticCoder(model)
    coded = coder.encode(documents[0][:300])
    flipped = coded.words.copy()
    flipped[3] ^= 1
    for words in (coded.words[:-1], coded.words[:0], flipped[:-2]):
        with pytest.raises(UserError, match="no arithmetic code of 300 bytes"):
            coder.decode(Coded(words, 300))


def test_a_missing_library_is_named(model: TreeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(UserError, match=r"seqmill\[compress\]"):
        ArithmeticCoder(model).encode(b"a")
