import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress.byte_model import check_frequencies
from seqmill.compress.counts_model import counts_model
from seqmill.compress.ngram_model import ngram_model
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import WHOLE, TreeModel
from seqmill.errors import UserError

GOLDEN_SAMPLE = [b"the cat sat on the mat, the hat on the cat", bytes(range(256)), b"\xff\xfe" * 9]
GOLDEN_CONTEXTS = [b"", b"t", b"th", b"the ", b"on the", b"zzz", b"\xff", b"\xff\xfe\xff"]
GOLDEN_NGRAM = "ff79e0013c0566abca2c1e5a32b6c505e633fc521911a60903af2969d7e655ba"
GOLDEN_COUNTS = "fb8e787f08eec0ea3b6664922d34e36543e132cbe35d2992440e9d4ec171590d"


def plain_frequencies(model: TreeModel, context: bytes) -> list[int]:
    """The mix of the module's first lines, written down over a dict of counts."""
    tree = model.tree
    strings = tree.strings()
    count = dict(zip(strings, tree.count.tolist(), strict=True))
    children: dict[bytes, dict[int, int]] = {string: {} for string in strings}
    for string in strings[1:]:
        children[string[:-1]][string[-1]] = count[string]
    context = context[-model.longest :] if model.longest else b""
    used = [b""]
    for size in range(1, len(context) + 1):
        if not children.get(context[-size:]):
            break
        used.append(context[-size:])
    if context not in used and children.get(context):
        used.append(context)
    shares = [WHOLE // 256] * 256
    for end in used:
        followed = children[end]
        different = sum(times > 0 for times in followed.values())
        left = count[end] - sum(followed.values()) + different
        if count[end] + different:
            mixed = [followed.get(byte, 0) * WHOLE + left * shares[byte] for byte in range(256)]
            shares = [share // (count[end] + different) for share in mixed]
    total = 1 << model.precision
    frequencies = [1 + share * (total - 256) // sum(shares) for share in shares]
    frequencies[shares.index(max(shares))] += total - sum(frequencies)
    return frequencies


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("abc\x00", max_size=30).map(str.encode), max_size=4),
    st.lists(st.text("abcd", max_size=8).map(str.encode), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 60),
    st.integers(8, 16),
)
def test_frequencies_are_those_of_the_mix_written_down(
    documents: list[bytes], contexts: list[bytes], order: int, nodes: int, precision: int
) -> None:
    model = ngram_model(Texts.of(documents), order, nodes, precision)
    found = model.frequencies(contexts)
    check_frequencies(found, precision)
    assert found.tolist() == [plain_frequencies(model, context) for context in contexts]


def test_counts_at_window_starts_know_the_whole_context_even_if_its_ends_never_began_a_window() -> None:
    documents = Texts.of([b"abX", b"abX", b"bY"])
    model = counts_model(documents, starts=np.array([0, 3, 6], np.int32))
    found = model.frequencies([b"ab", b"b"])
    assert found.argmax(axis=1).tolist() == [ord("X"), ord("Y")]
    assert found.tolist() == [plain_frequencies(model, b"ab"), plain_frequencies(model, b"b")]


def test_a_model_of_real_text_predicts_it(model: TreeModel) -> None:
    rows = model.frequencies([b"of th", b"the Unite", b"\xd0"])
    assert rows[0].argmax() == ord("e")
    assert rows[1].argmax() == ord("d")
    assert rows[2, 0x80:0xC0].sum() > 0.9 * 2**14  # a lead byte is followed by a continuation
    assert Fraction(int(rows[0, ord("e")]), 2**14) > Fraction(3, 4)


def golden_hashes() -> tuple[str, str]:
    texts = Texts.of(GOLDEN_SAMPLE)
    models = (ngram_model(texts, 6), counts_model(texts, precision=16))
    hashes = [
        hashlib.sha256(m.fingerprint.encode() + m.frequencies(GOLDEN_CONTEXTS).astype("<u4").tobytes()).hexdigest()
        for m in models
    ]
    return hashes[0], hashes[1]


def test_counts_and_frequencies_are_the_same_everywhere() -> None:
    assert golden_hashes() == (GOLDEN_NGRAM, GOLDEN_COUNTS)


def test_they_are_the_same_in_processes_of_one_thread_and_of_two() -> None:
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_tree_model as t; print(*t.golden_hashes())"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in ("1", "2")
    ]
    assert [run.communicate()[0].split() for run in runs] == [[GOLDEN_NGRAM, GOLDEN_COUNTS]] * 2


def test_a_model_is_read_as_it_was_written_and_damage_is_refused(tmp_path: Path, model: TreeModel) -> None:
    path = tmp_path / "model"
    model.save(path)
    assert TreeModel.load(path).fingerprint == model.fingerprint
    assert np.array_equal(TreeModel.load(path).frequencies([b"the "]), model.frequencies([b"the "]))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40] + b"\x00" + whole[41:], b"", b"other" + whole):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"no model of this format, or was damaged"):
            TreeModel.load(path)


def test_impossible_settings_are_refused(texts: Texts) -> None:
    with pytest.raises(UserError, match="order = 7"):
        ngram_model(texts, 7)
    with pytest.raises(UserError, match="precision = 17"):
        ngram_model(texts, 1, precision=17)
