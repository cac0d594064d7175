"""The n-gram scorer against a model that counts every n-gram by itself and sums over all 256 bytes."""

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import offsets_and_bytes
from seqmill.tokenizers_ext.patching import (
    NgramConfig,
    PatchConfig,
    Patcher,
    Run,
    Scorer,
    add_scores,
    build_scorer,
    choose_bound,
    count_runs,
    empty_histogram,
    entropy_pieces,
    load_patcher,
    load_scorer,
    patch_lengths,
    save_patcher,
    save_scorer,
)
from seqmill.tokenizers_ext.patching import witten_bell as builder
from seqmill.tokenizers_ext.patching.scorer import make_slots

from . import oracle

STEP = 2.0**-13  # nats: the resolution of stored entropies
TEXTS = (
    st.text(st.sampled_from("aab é")).map(str.encode) | st.binary(max_size=30) | st.sampled_from([b"\0" * 9, b"ab" * 9])
)
ENGLISH = (
    b"the theory of the thing is that there is a thing; that is the theory. ",
    b"a theme then: these are those, those are these. ",
    "дом, домой и дома".encode(),
    b"",
    b"\x00\x00\x00\xff\xff\x00\x00\x00\xff",
)


def buffers(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    offsets, data = offsets_and_bytes(pa.array(documents, pa.large_binary()))
    return offsets, data[: offsets[-1]]


def trained(documents: Sequence[bytes], **config: int) -> Scorer:
    settings_ = NgramConfig(**config)
    return build_scorer(list(count_runs([buffers(documents)], settings_.order)), settings_)


def scores(scorer: Scorer, documents: Sequence[bytes], start: int = 0, stop: int | None = None) -> np.ndarray:
    offsets, data = buffers(documents)
    return scorer.entropies(data, offsets, start, len(data) if stop is None else stop)


def expected(model: oracle.Ngrams, scorer: Scorer, documents: Sequence[bytes]) -> list[float]:
    limits = (scorer.min_count, scorer.min_count_long)
    contexts = [model.longest(x[:j], *limits) for x in documents for j in range(len(x))]
    known = {context: oracle.entropy(model.distribution(context)) for context in set(contexts)}
    return [known[context] for context in contexts]


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=3), st.integers(3, 6), st.integers(1, 4))
@example(list(ENGLISH), [*ENGLISH[::-1], b"the dhoma"], 6, 2)
def test_entropies_are_those_of_the_whole_distributions(
    documents: list[bytes], others: list[bytes], order: int, min_count: int
) -> None:
    scorer = trained(documents, order=order, min_count=min_count)
    model = oracle.Ngrams(documents, order)
    found = scores(scorer, documents + others)
    np.testing.assert_allclose(found, expected(model, scorer, documents + others), rtol=0, atol=STEP / 2 + 1e-9)
    assert scorer.min_count_long == min_count


def test_every_context_has_a_distribution_that_sums_to_one() -> None:
    model = oracle.Ngrams(ENGLISH, 5)
    assert len(model.followers) > 100
    for context in [*model.followers, b"never seen"]:
        distribution = model.distribution(context)
        assert math.fsum(distribution) == pytest.approx(1, abs=1e-12)
        assert min(distribution) > 0


def test_the_probabilities_in_use_are_those_distributions() -> None:
    """Of contexts of up to one byte, which are kept as whole distributions while a scorer is built."""
    model = oracle.Ngrams(ENGLISH, 4)
    singles, pairs, _ = builder._survey(list(count_runs([buffers(ENGLISH)], 4)), 3)
    probabilities, _ = builder._short_contexts(singles, pairs)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(256), abs=1e-12)
    for byte in range(256):
        np.testing.assert_allclose(probabilities[byte], model.distribution(bytes([byte])), atol=1e-12)


def test_nothing_known_is_eight_bits_and_certainty_is_almost_none() -> None:
    assert scores(trained([]), [b"abc"]) == pytest.approx([math.log(256)] * 3, abs=STEP)
    sure = trained([b"abcdefgh" * 5000])
    assert scores(sure, [b"abcdefgh" * 4])[8:].max() < 0.01


def test_a_context_never_crosses_documents() -> None:
    scorer = trained(ENGLISH * 5, min_count=1)
    together = scores(scorer, list(ENGLISH))
    np.testing.assert_array_equal(together, np.concatenate([scores(scorer, [document]) for document in ENGLISH]))
    parted = oracle.Ngrams([b"ab", b"cd"], 3)
    assert not parted.seen(b"bc")
    np.testing.assert_allclose(
        scores(trained([b"ab", b"cd"], order=3, min_count=1), [b"bcx"])[2],
        oracle.entropy(parted.distribution(b"c")),
        atol=STEP,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 90))
def test_a_part_of_a_batch_is_scored_as_in_the_whole(a: int, b: int, piece: int) -> None:
    documents = [*ENGLISH, ENGLISH[0] * 2]
    scorer = trained(documents, min_count=1)
    whole = scores(scorer, documents)
    start, stop = sorted((min(a, len(whole)), min(b, len(whole))))
    np.testing.assert_array_equal(scores(scorer, documents, start, stop), whole[start:stop])
    offsets, data = buffers(documents)
    pieces = list(entropy_pieces(data, offsets, scorer, piece))
    joined = [one.entropy[one.start - one.first :] for one in pieces]
    np.testing.assert_array_equal(np.concatenate(joined), whole)
    assert all(one.first == max(0, one.start - 1) for one in pieces)
    longer = np.concatenate([data, data])  # a buffer may hold more than its documents, and begin before them
    later = np.concatenate([one.entropy[one.start - one.first :] for one in entropy_pieces(longer, offsets, scorer)])
    np.testing.assert_array_equal(later, whole)
    rest = [one.entropy[one.start - one.first :] for one in entropy_pieces(data, offsets[1:], scorer, piece)]
    np.testing.assert_array_equal(np.concatenate(rest), whole[offsets[1] :])


@pytest.mark.parametrize("run_events", [1, 7, 50, 10_000])
def test_the_scorer_is_the_same_however_the_counting_was_divided(
    run_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = NgramConfig(min_count=2)
    whole = trained(ENGLISH * 3, min_count=2)
    batches = [buffers(ENGLISH[:1]), buffers(ENGLISH[1:]), buffers(ENGLISH * 2)]
    runs = list(count_runs(batches, config.order, run_events))
    random.Random(run_events).shuffle(runs)
    monkeypatch.setattr(builder, "RANGE_ROWS", run_events)
    divided = build_scorer(runs, config)
    assert sum(int(run.counts.sum()) for run in runs) == 3 * sum(map(len, ENGLISH))
    np.testing.assert_array_equal(divided.slots, whole.slots)
    np.testing.assert_array_equal(divided.short, whole.short)


@pytest.mark.parametrize("range_rows", [20, 1 << 20])
def test_a_small_budget_keeps_the_most_frequent_contexts(range_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "RANGE_ROWS", range_rows)
    documents = ENGLISH * 3
    model = oracle.Ngrams(documents, 6)
    counts = sorted(model.seen(context) for context in model.followers if len(context) > 2)
    small = trained(documents, min_count=2, table_bytes=8 * 64)
    assert len(small.slots) <= 64
    kept = [count for count in counts if count >= small.min_count_long]
    assert small.contexts == len(kept) <= 42 < sum(count >= small.min_count_long - 1 for count in counts)
    np.testing.assert_allclose(scores(small, ENGLISH), expected(model, small, ENGLISH), rtol=0, atol=STEP)


def test_counts_beyond_32_bits_are_exact() -> None:
    (run,) = count_runs([buffers(ENGLISH)], 6)
    many = Run(run.events, run.counts * np.uint64(2**38))
    scorer = build_scorer([many, many, many], NgramConfig(min_count=3 * 2**38 * 4))
    small = trained(ENGLISH * 1, min_count=4)
    assert scorer.contexts == small.contexts > 0
    assert scores(scorer, [b"the the"])[5] < scores(small, [b"the the"])[5]  # less is left to bytes never seen


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(1, 2**43 - 1), max_size=200))
def test_the_table_holds_every_key_once_and_is_never_too_full(keys: set[int]) -> None:
    entries = np.array(sorted(keys), np.uint64)
    slots = make_slots(entries, np.arange(len(keys)).astype(np.uint16))
    assert sorted(int(slot) >> 16 for slot in slots if slot) == sorted(keys)
    assert len(keys) <= len(slots) * 2 / 3 <= max(4 / 3, 2 * len(keys) + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_scorer(tmp_path / "scorer", trained(ENGLISH * 3, min_count=2), {"documents": 15})
    return tmp_path


def test_an_artifact_scores_as_it_did(folder: Path) -> None:
    loaded = load_scorer(folder / "scorer")
    np.testing.assert_array_equal(scores(loaded, ENGLISH), scores(trained(ENGLISH * 3, min_count=2), ENGLISH))
    described = json.loads((folder / "scorer" / "scorer.json").read_text())
    assert (described["order"], described["contexts"]) == (6, loaded.contexts)
    assert described["trained_on"] == {"documents": 15}


@pytest.mark.parametrize("name", ["short.arrow", "long.arrow"])
def test_a_changed_scorer_is_refused(folder: Path, name: str) -> None:
    path = folder / "scorer" / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=f"{name}: scorer.json records sha256"):
        load_scorer(folder / "scorer")
    path.unlink()
    with pytest.raises(UserError, match="found nothing"):
        load_scorer(folder / "scorer")


def test_what_is_no_scorer_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="is no scorer of entropies"):
        load_scorer(tmp_path / "nothing")
    described = json.loads((folder / "scorer" / "scorer.json").read_text())
    (folder / "scorer" / "scorer.json").write_text(json.dumps({**described, "order": 9}))
    with pytest.raises(UserError, match="order 9"):
        load_scorer(folder / "scorer")


def test_a_patcher_whose_scorer_was_replaced_is_refused(folder: Path) -> None:
    save_patcher(folder / "patcher", PatchConfig("entropy", theta=1.5), folder / "scorer")
    patcher = load_patcher(folder / "patcher")
    assert (patcher.config.theta, patcher.config.max_patch) == (1.5, 64)
    assert (
        patch_lengths(pa.array([ENGLISH[0]]), patcher).to_pylist()
        == patch_lengths(
            pa.array([ENGLISH[0]]), Patcher(PatchConfig("entropy", theta=1.5), trained(ENGLISH * 3, min_count=2))
        ).to_pylist()
    )
    save_scorer(folder / "patcher" / "scorer", trained(ENGLISH), {})
    with pytest.raises(UserError, match="patches would differ"):
        load_patcher(folder / "patcher")
    with pytest.raises(UserError, match="is no patcher"):
        load_patcher(folder)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"order": 2}, "order = 2: choose 3 to 6"),
        ({"order": 7}, "do not fit the 64 bits"),
        ({"min_count": 0}, "at least 1"),
        ({"sample_bytes": 0}, "at least 1 byte"),
        ({"table_bytes": 15}, "at least 16 are needed"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_impossible_settings_are_refused(settings_: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NgramConfig(**settings_)


def scored_patches(documents: Sequence[bytes], scorer: Scorer, config: PatchConfig) -> list[list[int]]:
    return patch_lengths(pa.array(documents, pa.large_binary()), Patcher(config, scorer)).to_pylist()


RULES = [{"theta": 1.0}, {"rule": "monotonic", "theta_add": 0.1}, {"rule": "both", "theta": 0.8, "theta_add": 0.0}]


@pytest.mark.parametrize("rule", RULES, ids=["threshold", "monotonic", "both"])
def test_entropy_patches_equal_a_slow_loop_and_look_at_nothing_ahead(rule: dict[str, object]) -> None:
    scorer = trained(ENGLISH * 4, min_count=2)
    config = PatchConfig("entropy", max_patch=9, **rule)  # type: ignore[arg-type]
    documents = [b"the theme that is there, thing ", *ENGLISH]
    found = scored_patches(documents, scorer, config)
    exact = [np.round(np.array(one) / STEP) * STEP for one in entropies_of(documents, scorer)]
    for document, h, lengths in zip(documents, exact, found, strict=True):
        starts = oracle.entropy_starts(h.tolist(), config.rule, config.theta, config.theta_add)
        assert lengths == oracle.lengths(starts, len(document), 9)
    assert sum(map(len, found)) > 2 * len(documents)
    whole = set(itertools.accumulate(found[0], initial=0))
    prefixes = [documents[0][:i] for i in range(1, len(documents[0]))]
    for prefix, lengths in zip(prefixes, scored_patches(prefixes, scorer, config), strict=True):
        starts = list(itertools.accumulate(lengths, initial=0))[:-1]
        assert starts == sorted(start for start in whole if start < len(prefix))


def entropies_of(documents: Sequence[bytes], scorer: Scorer) -> list[list[float]]:
    model = oracle.Ngrams(ENGLISH * 4, scorer.order)
    return [expected(model, scorer, [document]) for document in documents]


@pytest.mark.parametrize(
    ("rule", "target"), [({}, 2.5), ({}, 6.0), ({"rule": "monotonic"}, 5.0), ({"rule": "both", "theta_add": -0.5}, 3.0)]
)
def test_a_chosen_bound_is_the_quantile_that_makes_patches_so_long(rule: dict[str, object], target: float) -> None:
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 9))) for _ in range(200)]
    document = " ".join(draw.choices(words, k=4000)).encode()
    scorer = trained([document])
    config = PatchConfig("entropy", target_bytes=target, **rule)  # type: ignore[arg-type]
    offsets, data = buffers([b"", document, b"ab"])
    histograms, decided = [], 0
    for piece in entropy_pieces(data, offsets, scorer, 1000):
        histograms.append(empty_histogram())
        decided += add_scores(histograms[-1], config, offsets, piece)
    assert decided == len(document) - 2
    bound = choose_bound(np.sum(histograms, axis=0), decided, config)

    h = scores(scorer, [document]).astype(np.float64)
    least = config.theta_add if config.rule == "both" and config.theta_add is not None else -math.inf
    compared = np.diff(h)[1:] if config.rule == "monotonic" else h[2:]
    compared = compared[np.diff(h)[1:] > least]
    assert (compared > bound).sum() <= decided / target < (compared > bound - STEP).sum()
    name = "theta_add" if config.rule == "monotonic" else "theta"
    resolved = PatchConfig("entropy", **{**rule, name: bound})  # type: ignore[arg-type]
    (found,) = scored_patches([document], scorer, resolved)
    assert len(document) / len(found) == pytest.approx(target, rel=0.05)


def test_a_bound_that_cannot_be_had_is_refused() -> None:
    config = PatchConfig("entropy", rule="both", theta_add=5.0, target_bytes=4.0)
    offsets, data = buffers([ENGLISH[0]])
    histogram, decided = empty_histogram(), 0
    for piece in entropy_pieces(data, offsets, trained(ENGLISH)):
        decided += add_scores(histogram, config, offsets, piece)
    with pytest.raises(UserError, match=r"no theta leads to patches of 4\.0 bytes"):
        choose_bound(histogram, decided, config)
    with pytest.raises(UserError, match="no document of three bytes or more"):
        choose_bound(empty_histogram(), 0, config)
    with pytest.raises(UserError, match="choose the bound first"):
        scored_patches([b"abc"], trained(ENGLISH), config)
