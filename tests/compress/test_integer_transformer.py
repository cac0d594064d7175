import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integer_decoder import PlainDecoder
from seqmill.compress.byte_model import check_frequencies
from seqmill.compress.integer_transformer import IntegerTransformer, require_exact_products
from seqmill.compress.integer_weights import IntegerWeights, read_weights
from seqmill.errors import UserError

TINY = Path(__file__).parent / "data" / "tiny-transformer.arrow"
TEXT = "The quick brown fox; naïve café 漢字 \x00\xff".encode() + bytes(range(0, 256, 5))
GOLDEN = "e4b0be8b8ece48138b39dc1bf16737e36b5c75d1b1f59b766bd8266185230d2a"  # for weights of make_tiny_transformer.py


@pytest.fixture(scope="module")
def weights() -> IntegerWeights:
    return read_weights(TINY)


@pytest.fixture(scope="module")
def model(weights: IntegerWeights) -> IntegerTransformer:
    return IntegerTransformer(weights)


@pytest.fixture(scope="module")
def plain(weights: IntegerWeights) -> PlainDecoder:
    return PlainDecoder(weights)


def prefixes(text: bytes) -> list[bytes]:
    return [text[:length] for length in range(len(text) + 1)]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=8), st.integers(8, 16))
def test_frequencies_are_those_of_plain_integer_arithmetic(
    weights: IntegerWeights, plain: PlainDecoder, context: bytes, precision: int
) -> None:
    found = IntegerTransformer(weights, precision).frequencies([context])
    assert found[0].tolist() == plain.frequencies(context, precision)


def test_the_longest_context_too_gives_what_plain_integer_arithmetic_gives(
    model: IntegerTransformer, plain: PlainDecoder
) -> None:
    context = TEXT[: model.longest_context]
    assert len(context) == 31
    assert model.frequencies([context])[0].tolist() == plain.frequencies(context, 14)


def test_every_byte_has_a_frequency_and_they_add_up(model: IntegerTransformer) -> None:
    found = model.frequencies(prefixes(TEXT))
    assert found.dtype == np.uint32
    check_frequencies(found, model.precision)


def test_it_has_learned_english(model: IntegerTransformer) -> None:
    likely = model.frequencies([b"th", b"of th", b"wh"]).argmax(axis=1)
    assert bytes(likely.tolist()[1:2]) == b"e"
    assert set(bytes(likely.tolist())) <= set(b"eaoi ")
    uniform = model.frequencies([b"the president of "])[0].astype(float) / 2**14
    assert -(uniform * np.log2(uniform)).sum() < 5.5


@pytest.mark.parametrize("rows", [1, 3, 7, 1024])
def test_a_full_pass_a_cached_one_and_one_in_chunks_agree(weights: IntegerWeights, rows: int) -> None:
    contexts = prefixes(TEXT[:31])
    full = IntegerTransformer(weights).frequencies(contexts)
    chunked = IntegerTransformer(weights, rows_per_pass=rows)
    np.testing.assert_array_equal(chunked.frequencies(contexts), full)
    cached = IntegerTransformer(weights, rows_per_pass=rows)
    one_by_one = np.concatenate([cached.frequencies([context]) for context in contexts])
    np.testing.assert_array_equal(one_by_one, full)
    backwards = IntegerTransformer(weights, rows_per_pass=rows).frequencies(contexts[::-1])
    np.testing.assert_array_equal(backwards[::-1], full)


def test_a_cache_that_is_full_begins_anew_and_changes_nothing(weights: IntegerWeights) -> None:
    rng = np.random.default_rng(3)
    contexts = [rng.integers(97, 101, rng.integers(0, 12)).astype(np.uint8).tobytes() for _ in range(300)]
    contexts += contexts[:50]
    small = IntegerTransformer(weights, cache_bytes=0)
    np.testing.assert_array_equal(small.frequencies(contexts), IntegerTransformer(weights).frequencies(contexts))
    assert small.frequencies([]).shape == (0, 256)


def test_long_contexts_are_seen_from_a_block_of_half_the_reach_on(model: IntegerTransformer) -> None:
    reach, block = model.longest_context, 15
    text = TEXT[:80]
    assert len(text) == 80
    for length, unseen in ((reach, 0), (reach + 1, block), (reach + block, block), (reach + block + 1, 2 * block)):
        seen = text[unseen:length]
        np.testing.assert_array_equal(model.frequencies([text[:length]]), model.frequencies([seen]))
        assert len(seen) <= reach
    assert (model.frequencies([b"x" * 10_000]) > 0).all()


def extreme(weights: IntegerWeights, seed: int) -> IntegerWeights:
    """All weights -127 or 127, the largest multipliers, shifts so small that every step saturates."""
    rng = np.random.default_rng(seed)
    changed = dict(weights.tensors)
    for name in weights.shape.matrices():
        changed[name] = rng.choice(np.array([-127, 127], np.int8), changed[name].shape)
        changed[f"{name}.multipliers"] = np.full_like(changed[f"{name}.multipliers"], 2**16 - 1)
        changed[f"{name}.shift"] = np.array([int(rng.integers(1, 24))])
    changed["embedding"] = rng.choice(np.array([-(2**26) + 1, 2**26 - 1], np.int32), changed["embedding"].shape)
    return replace(weights, tensors=changed)


@pytest.mark.parametrize("seed", range(3))
def test_saturated_numbers_neither_wrap_nor_divide_by_zero(weights: IntegerWeights, seed: int) -> None:
    wild = extreme(weights, seed)
    model, plain = IntegerTransformer(wild), PlainDecoder(wild)
    for context in (b"", b"ab", b"\xff\xfe\xfd\xfc\x00"):
        assert model.frequencies([context])[0].tolist() == plain.frequencies(context, 14)


def test_weights_of_nothing_but_zeros_give_every_byte_the_same(weights: IntegerWeights) -> None:
    nothing = {
        name: np.zeros_like(tensor) if name == "embedding" or name in weights.shape.matrices() else tensor
        for name, tensor in weights.tensors.items()
    }
    assert set(IntegerTransformer(replace(weights, tensors=nothing)).frequencies([b"", b"ab"]).flat) == {64}


def golden_hash(path: Path) -> str:
    """sha256 of frequencies in batches large enough for BLAS to divide them among threads."""
    rng = np.random.default_rng(0)
    contexts = [TEXT[first : first + size] for first in range(60) for size in range(31)]
    contexts += [rng.integers(0, 256, size).astype(np.uint8).tobytes() for size in range(40)]
    return hashlib.sha256(IntegerTransformer.open(path).frequencies(contexts).astype("<u4").tobytes()).hexdigest()


@pytest.mark.parametrize(("threads", "processor"), [(1, {}), (2, {"OPENBLAS_CORETYPE": "Prescott"})])
def test_frequencies_are_the_same_for_any_number_of_threads_and_on_any_processor(
    threads: int, processor: dict[str, str]
) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {
        **os.environ,
        **dict.fromkeys(names, str(threads)),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    environment |= processor  # its matrix products add up in another order
    code = "import test_integer_transformer as t; print(t.golden_hash(t.TINY))"
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == GOLDEN


def test_the_fingerprint_tells_weights_and_precision_apart(weights: IntegerWeights) -> None:
    other = dict(weights.tensors)
    other["head"] = other["head"] // 2
    models = [
        IntegerTransformer(weights, 14),
        IntegerTransformer(weights, 13),
        IntegerTransformer(replace(weights, tensors=other), 14),
    ]
    assert len({model.fingerprint for model in models}) == 3
    assert IntegerTransformer.open(TINY).fingerprint == models[0].fingerprint


def test_an_impossible_precision_is_refused(weights: IntegerWeights) -> None:
    with pytest.raises(UserError, match="precision = 17"):
        IntegerTransformer(weights, 17)


def in_bfloat16(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product whose parts keep 8 bits, as some matrix libraries do on request."""
    return sum((np.outer(a[:, k], b[k]).view(np.uint32) & 0xFFFF0000).view(np.float32) for k in range(len(b)))


def test_a_matrix_library_that_rounds_is_refused() -> None:
    require_exact_products()
    with pytest.raises(UserError, match="rounds float32 products"):
        require_exact_products(in_bfloat16)
