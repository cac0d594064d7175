"""Where patches begin, against slow versions that read as the definitions do."""

import random
import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext.patching import PatchConfig, Patcher, patch_lengths
from seqmill.tokenizers_ext.patching.boundaries import SPACELIKE
from seqmill.tokenizers_ext.subword import SubwordEncoder

from . import oracle

TEXTS = st.text(st.sampled_from("ab 'é京\n🦆1")).map(str.encode) | st.binary(max_size=60)
DOCUMENTS = st.lists(TEXTS, max_size=5)
STREAMING = [
    PatchConfig("byte"),
    PatchConfig("static", size=3),
    PatchConfig("space"),
    PatchConfig("space", max_patch=2),
    PatchConfig("entropy", theta=2.0, entropies="given"),
    PatchConfig("entropy", rule="monotonic", theta_add=0.5, entropies="given"),
    PatchConfig("entropy", rule="both", theta=2.0, theta_add=0.25, max_patch=3, entropies="given"),
]
NAMES = ["byte", "static", "space", "space cut", "threshold", "monotonic", "both"]


def binary(documents: Sequence[bytes]) -> pa.Array:
    return pa.array(documents, pa.large_binary())


def cut(document: bytes, config: PatchConfig) -> list[bytes]:
    (found,) = patch_lengths(binary([document]), Patcher(config)).to_pylist()
    ends = np.cumsum(found, dtype=int)
    return [document[end - length : end] for end, length in zip(ends, found, strict=True)]


def made_up_entropies(document: bytes) -> list[float]:
    """Nats on a coarse grid, each a function of what stands before the byte alone, as a model's are."""
    return [zlib.crc32(document[:j]) % 23 / 4 for j in range(len(document))]


def scored(documents: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    entropies = [np.array(made_up_entropies(document), np.float64) for document in documents]
    flat = np.concatenate([np.empty(0), *entropies]).astype(kind.to_pandas_dtype())
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in entropies])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind))


def found_for(documents: Sequence[bytes], config: PatchConfig, kind: pa.DataType) -> list[list[int]]:
    given = scored(documents, kind) if config.entropies else None
    return patch_lengths(binary(documents), Patcher(config), given).to_pylist()


def expected_starts(document: bytes, config: PatchConfig) -> list[int]:
    if config.scheme == "byte":
        return list(range(len(document)))
    if config.scheme == "static":
        assert config.size
        return oracle.static_starts(document, config.size)
    if config.scheme == "space":
        return oracle.space_starts(document)
    return oracle.entropy_starts(made_up_entropies(document), config.rule, config.theta, config.theta_add)


@pytest.mark.parametrize("config", STREAMING, ids=NAMES)
@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.sampled_from([pa.float16(), pa.float32(), pa.float64()]))
@example([b"", b"a" * 200, b""], pa.float32())
def test_lengths_equal_the_definition_and_add_up(
    config: PatchConfig, documents: list[bytes], kind: pa.DataType
) -> None:
    found = found_for(documents, config, kind)
    wanted = [oracle.lengths(expected_starts(x, config), len(x), config.max_patch) for x in documents]
    assert found == wanted
    assert [sum(one) for one in found] == [len(x) for x in documents]
    assert all(0 < length <= config.max_patch for one in found for length in one)


@pytest.mark.parametrize("config", STREAMING, ids=NAMES)
@settings(max_examples=25, deadline=None)
@given(TEXTS)
def test_the_starts_of_a_prefix_are_those_of_the_whole_that_lie_in_it(config: PatchConfig, document: bytes) -> None:
    prefixes = [document[:i] for i in range(len(document) + 1)]
    starts = [{sum(one[:k]) for k in range(len(one))} for one in found_for(prefixes, config, pa.float32())]
    for i in range(len(document) + 1):
        assert starts[i] == {start for start in starts[-1] if start < i}


def test_a_slice_of_a_column_is_cut_as_its_documents_are() -> None:
    documents = [b"one two", b"", b"three, four", b"five"]
    for config in STREAMING:
        given = scored(documents, pa.float32()) if config.entropies else None
        whole = patch_lengths(binary(documents), Patcher(config), given)
        part = patch_lengths(binary(documents).slice(1, 2), Patcher(config), given and given.slice(1, 2))
        assert part.to_pylist() == whole.to_pylist()[1:3]
        assert whole.type == pa.list_(pa.uint16())


def test_no_documents_have_no_patches() -> None:
    for documents in ([], [b""], [b"", b""]):
        assert patch_lengths(binary(documents), Patcher(PatchConfig())).to_pylist() == [[] for _ in documents]


def test_the_predicate_is_the_one_of_space_byte() -> None:
    assert [bool(one) for one in SPACELIKE] == [oracle.spacelike(byte) for byte in range(256)]
    assert [bool(SPACELIKE[byte]) for byte in b"09AZaz/:@[`{ "] == [False] * 6 + [True] * 7
    assert [bool(SPACELIKE[byte]) for byte in (0x7F, 0x80, 0xBF, 0xC0, 0xFF)] == [True, False, False, True, True]


def test_spaces_cut_mixed_text_where_the_rule_says() -> None:
    text = "don't stop, 3.14 naïve 東京"
    found = cut(text.encode(), PatchConfig("space"))
    # a letter of several bytes ends a patch with its first one; ", " is one run: only its comma follows a letter
    assert found == [
        b"d", b"on'", b"t ", b"stop,", b" 3.", b"14 ", b"na\xc3", b"\xafve ", b"\xe6\x9d\xb1\xe4",
        b"\xba\xac",
    ]  # fmt: skip


def test_a_chinese_character_is_a_patch() -> None:
    text = "人人生而自由，在尊严和权利上一律平等。"
    (found,) = patch_lengths(pa.array([text]), Patcher(PatchConfig("space"))).to_pylist()
    assert found == [1] + [3] * (len(text) - 1) + [2]


@pytest.mark.parametrize("alphabet", ["ACGT", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"])
def test_text_without_boundaries_is_cut_at_the_longest_patch(alphabet: str) -> None:
    text = "".join(random.Random(5).choices(alphabet, k=1000))
    (found,) = patch_lengths(pa.array([text]), Patcher(PatchConfig("space", max_patch=64))).to_pylist()
    assert found == [1] + [64] * 15 + [39]
    (found,) = patch_lengths(pa.array(["A" * 200_001]), Patcher(PatchConfig("space", max_patch=65_535))).to_pylist()
    assert found == [1, 65_535, 65_535, 65_535, 3395]


def test_the_examples_of_the_package_hold() -> None:
    assert cut(b"abcd", PatchConfig("byte")) == [b"a", b"b", b"c", b"d"]
    assert cut(b"abcdefgh", PatchConfig("static", size=3)) == [b"abc", b"def", b"gh"]
    assert cut(b"don't stop", PatchConfig("space")) == [b"d", b"on'", b"t ", b"stop"]
    assert [len(one) for one in cut("日本".encode(), PatchConfig("space"))] == [1, 3, 2]
    entropies = pa.array([[2.0, 2, 1, 3, 3, 1]], pa.list_(pa.float32()))
    rules: list[tuple[dict[str, object], list[int]]] = [
        ({"theta": 2.5}, [1, 2, 1, 2]),
        ({"rule": "monotonic", "theta_add": 0.5}, [1, 2, 3]),
        ({"rule": "both", "theta": 2.5, "theta_add": 0.5}, [1, 2, 3]),
    ]
    for settings_, lengths in rules:
        patcher = Patcher(PatchConfig("entropy", entropies="given", **settings_))  # type: ignore[arg-type]
        assert patch_lengths(binary([b"abcdef"]), patcher, entropies).to_pylist() == [lengths]


def test_tokens_are_patches(tokenizer_json: bytes) -> None:
    encoder = SubwordEncoder(tokenizer_json)
    texts = ["The quick brown fox naïve 東京 🦆", "", "don't stop" * 3, "<|endoftext|>"]
    config = PatchConfig("bpe", tokenizer="given", max_patch=5)
    found = patch_lengths(pa.array(texts), Patcher(config, tokenizer=encoder)).to_pylist()
    ids = encoder.encode(pa.array(texts)).to_pylist()
    pieces = [[len(encoder.decode(pa.array([[i]], pa.list_(pa.uint16())))[0].as_py()) for i in one] for one in ids]
    starts = [[sum(one[:k]) for k in range(len(one))] for one in pieces]
    sizes = [len(text.encode()) for text in texts]
    assert found == [oracle.lengths(start, size, 5) for start, size in zip(starts, sizes, strict=True)]
    assert [sum(one) for one in found] == sizes


def test_tokens_of_a_prefix_may_begin_elsewhere(tokenizer_json: bytes) -> None:
    patcher = Patcher(PatchConfig("bpe", tokenizer="given"), tokenizer=SubwordEncoder(tokenizer_json))
    text = "The quick brown fox jumps over the lazy dog."
    found = patch_lengths(pa.array([text[:i] for i in range(len(text) + 1)]), patcher).to_pylist()
    starts = [{sum(one[:k]) for k in range(len(one))} for one in found]
    assert any(starts[i] != {start for start in starts[-1] if start < i} for i in range(len(text)))


def test_tokens_that_do_not_add_up_to_a_text_are_refused(tokenizer_json: bytes) -> None:
    encoder = SubwordEncoder(tokenizer_json)
    patcher = Patcher(PatchConfig("bpe", tokenizer="given"), tokenizer=encoder)
    patcher.token_lengths[encoder.encode(pa.array(["a"]))[0][0].as_py()] = 2  # as a normaliser would have it
    with pytest.raises(UserError, match="the tokens of document 1 of the batch do not add up"):
        patch_lengths(pa.array(["", "a"]), patcher)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (None, "without a model"),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32())), "document 0 of the batch: 2 entropies for 3"),
        (pa.array([[1.0, 2.0, 3.0]] * 2, pa.list_(pa.float32())), "a batch of 1 documents: 2 entropies for 1"),
        (pa.array([[1.0, 2.0, float("nan")]], pa.list_(pa.float32())), "1 values are NaN or infinite"),
        (pa.array([[1.0, None, 2.0]], pa.list_(pa.float32())), "1 entropies are null"),
        (pa.array([[1, 2, 3]], pa.list_(pa.int32())), "lists of float16 or float32 are needed"),
        (pa.array([1.0], pa.float32()), "lists of float16 or float32 are needed"),
    ],
)
def test_entropies_that_do_not_fit_are_refused(column: pa.Array | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        patch_lengths(binary([b"abc"]), Patcher(PatchConfig("entropy", theta=1.0, entropies="given")), column)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"scheme": "words"}, "choose one of byte, static, space, bpe, entropy"),
        ({"max_patch": 0}, "max_patch = 0: between 1 and 65535"),
        ({"max_patch": 65_536}, "max_patch = 65536: between 1 and 65535"),
        ({"scheme": "static"}, "needs patching.size"),
        ({"scheme": "static", "size": 0}, "size = 0: between 1 byte"),
        ({"scheme": "static", "size": 65}, "patching.max_patch = 64"),
        ({"size": 4}, "patching.size = 4 is of scheme 'static', not of 'space'"),
        ({"theta": 1.0}, "is of scheme 'entropy'"),
        ({"scheme": "bpe"}, "needs patching.tokenizer"),
        ({"scheme": "entropy"}, "needs patching.theta, or patching.target_bytes; given: none"),
        ({"scheme": "entropy", "rule": "up"}, "choose one of threshold, monotonic, both"),
        ({"scheme": "entropy", "theta": float("nan")}, "theta = nan: a finite number"),
        ({"scheme": "entropy", "theta": -0.1}, "theta = -0.1: from 0"),
        ({"scheme": "entropy", "theta": 5.6}, "no patch would begin"),
        ({"scheme": "entropy", "rule": "monotonic", "theta_add": float("inf")}, "theta_add = inf: a finite number"),
        ({"scheme": "entropy", "theta": 1.0, "target_bytes": 4.0}, "given: patching.target_bytes and patching.theta"),
        ({"scheme": "entropy", "theta": 1.0, "theta_add": 1.0}, "needs patching.theta, or"),
        ({"scheme": "entropy", "rule": "both", "theta": 1.0}, "needs patching.theta and patching.theta_add, or"),
        ({"scheme": "entropy", "target_bytes": 1.0}, "more than 1 byte"),
        ({"scheme": "entropy", "target_bytes": 65.0}, "patching.max_patch = 64 at most"),
        ({"scheme": "entropy", "theta": 1.0, "model": "m", "entropies": "e"}, "leave one of them out"),
    ],
)
def test_impossible_settings_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PatchConfig(**settings_)  # type: ignore[arg-type]
