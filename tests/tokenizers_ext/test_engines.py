"""Ids must not depend on how text is cut into calls, on when gigatoken is built anew, or on the process."""

import json
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext import engines
from seqmill.tokenizers_ext.engines import LINE_PATTERNS, Limits, NativeEngine, can_cut_lines
from seqmill.tokenizers_ext.subword import SubwordEncoder
from tokenizer_functions import encode_texts

TINY = Limits(call_bytes=16, look_bytes=100, cache_bytes=-(1 << 60))
TEXT = st.text(st.sampled_from([*"abZ9 .'s\n\n\r\t/", "é", "日", "\u0301", "\u2028"]), max_size=120)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def with_pattern(tokenizer_json: bytes, pattern: str) -> bytes:
    description = json.loads(tokenizer_json)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    description["normalizer"] = {"type": "NFC"}
    return json.dumps(description).encode()


@pytest.fixture(scope="session")
def tokenizers(tokenizer_json: bytes) -> list[bytes]:
    """GPT-2's pattern, then the others that may be cut at line ends."""
    return [tokenizer_json, *(with_pattern(tokenizer_json, pattern) for pattern in LINE_PATTERNS)]


@pytest.fixture(scope="session")
def pairs(tokenizers: list[bytes]) -> list[tuple[SubwordEncoder, SubwordEncoder]]:
    """Each tokenizer with the usual and with tiny limits; the self-check at load has the usual ones."""
    pairs = [(SubwordEncoder(one), SubwordEncoder(one)) for one in tokenizers]
    for _, tiny in pairs:
        assert isinstance(tiny._engine, NativeEngine)
        tiny._engine._limits, tiny._engine.most_bytes = TINY, TINY.call_bytes
    return pairs


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=5), which=st.integers(0, 3), start=st.integers(0, 2))
def test_ids_do_not_depend_on_the_limits(
    pairs: list[tuple[SubwordEncoder, SubwordEncoder]], texts: list[str], which: int, start: int
) -> None:
    usual, tiny = pairs[which]
    column = pa.array(texts, pa.large_string()).slice(start)
    assert tiny.encode(column).equals(usual.encode(column))


def test_long_documents_are_cut_at_line_ends_and_gigatoken_is_built_anew(
    tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    built: list[int] = []
    encode, renew = NativeEngine.encode, NativeEngine._renew

    def seen(self: NativeEngine, offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths.append(int(offsets[-1] - offsets[0]))
        return encode(self, offsets, data)

    def renewed(self: NativeEngine) -> None:
        built.append(1)
        renew(self)

    encoder = SubwordEncoder(tokenizer_json, limits=Limits(call_bytes=4096, look_bytes=20_000, cache_bytes=-(1 << 60)))
    monkeypatch.setattr(NativeEngine, "encode", seen)
    monkeypatch.setattr(NativeEngine, "_renew", renewed)
    document = "The quick brown fox\n  jumps over the lazy dog\n" * 4000
    ids = encoder.encode(pa.array([document]))
    assert max(lengths) < 4096 + 100
    assert sum(lengths) == len(document)
    assert len(built) == len(document) // 20_000 - 1
    assert encoder.decode(ids).to_pylist() == [document.encode()]


def test_gigatoken_stays_while_memory_does_not_grow(tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SubwordEncoder(tokenizer_json, limits=Limits(look_bytes=1, cache_bytes=1000))
    engine = encoder._engine
    assert isinstance(engine, NativeEngine)
    first = engine._native
    monkeypatch.setattr(engines, "resident_bytes", lambda: engine._resident + 1000)
    for _ in range(5):
        encoder.encode(pa.array(["the fox"]))
    assert engine._native is first
    monkeypatch.setattr(engines, "resident_bytes", lambda: 0)  # where the system does not tell
    for _ in range(1 + 1000 // (6 * len("the fox")) + 1):
        encoder.encode(pa.array(["the fox"]))
    assert engine._native is not first


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {**BYTE_LEVEL, "use_regex": True, "add_prefix_space": True}},
        {"pre_tokenizer": BYTE_LEVEL},
        {"pre_tokenizer": None},
        {"added_tokens": [{"content": "x", "lstrip": False, "rstrip": True, "special": False}]},
        {"added_tokens": [{"content": "a\nb", "lstrip": False, "rstrip": False, "special": False}]},
    ],
)
def test_documents_stay_whole_where_a_line_end_may_matter(tokenizers: list[bytes], change: dict[str, object]) -> None:
    assert all(can_cut_lines(json.loads(one), parse_special=False) for one in tokenizers)
    assert not can_cut_lines({**json.loads(tokenizers[0]), **change}, parse_special=False)


def test_threads_that_share_an_encoder_get_the_same_ids(tokenizer_json: bytes) -> None:
    encoder = SubwordEncoder(tokenizer_json, limits=Limits(call_bytes=512, look_bytes=512, cache_bytes=-(1 << 60)))
    column = pa.array([f"document {k} of the lazy dogs, {'fox ' * (k % 50)}" for k in range(400)])
    expected = encoder.encode(column)
    found: list[pa.ListArray] = []
    threads = [threading.Thread(target=lambda: found.append(encoder.encode(column))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.equals(expected) for one in found] == [True] * 4


def test_a_spawned_worker_gives_the_same_ids(tokenizer_json: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    texts = [f"the quick {k}" for k in range(50)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found, parallel = pool.submit(encode_texts, tmp_path, texts).result()
    assert found == SubwordEncoder(tokenizer_json).encode(pa.array(texts)).to_pylist()
    assert not parallel


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_of_a_used_encoder_does_not_hang(tokenizer_json: bytes) -> None:
    encoder = SubwordEncoder(tokenizer_json)
    column = pa.array(["the quick fox"] * 2000)
    expected = encoder.encode(column)
    child = os.fork()
    if child == 0:
        os._exit(0 if encoder.encode(column).equals(expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_text_that_is_no_utf8_is_refused_by_a_tokenizer_of_characters() -> None:
    words = {"model": {"type": "WordLevel", "vocab": {"the": 0, "[UNK]": 1}, "unk_token": "[UNK]"}}
    encoder = SubwordEncoder(json.dumps(words).encode())
    assert encoder.engine == "tokenizers"
    with pytest.raises(UserError, match="valid UTF-8 only"):
        encoder.encode(pa.array([b"the", b"\xff"], pa.binary()))
