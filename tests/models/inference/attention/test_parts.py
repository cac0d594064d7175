"""Parts of attention, by any way of computing them, are those of one plain softmax."""
# ruff: noqa: N803 (the axes are capital letters)

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqmill.models import Model, ModelConfig
from seqmill.models.attention import Pattern
from seqmill.models.inference.attention import step as step_module
from seqmill.models.inference.attention.gathered import attend_fused, attend_gathered
from seqmill.models.inference.attention.merge import merge
from seqmill.models.inference.attention.spans import shared_spans
from seqmill.models.inference.attention.step import Piece, Step
from seqmill.models.inference.cache import GONE, KVCache


def plain(q_QHE: Tensor, k_LKE: Tensor, v_LKE: Tensor, mask_QL: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, one query and one head at a time."""
    queries, heads, width = q_QHE.shape
    out, lse = torch.zeros(queries, heads, width), torch.full((queries, heads), -torch.inf)
    for query in range(queries):
        for head in range(heads):
            of = head * k_LKE.shape[1] // heads
            seen = mask_QL[query].nonzero()[:, 0]
            scores = k_LKE[seen, of].double() @ q_QHE[query, head].double() / width**0.5
            if len(seen):
                lse[query, head] = scores.logsumexp(0)
                out[query, head] = scores.softmax(0) @ v_LKE[seen, of].double()
    return out, lse


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def test_a_gathered_part_is_the_plain_softmax_over_the_keys_of_its_mask() -> None:
    q, k, v = random(2, 5, 6, 8), random(2, 11, 3, 8), random(2, 11, 3, 8, seed=1)
    mask = random(2, 5, 11, seed=2) > 0
    mask[1, 2] = False
    out, lse = attend_gathered(q, k, v, mask)
    for piece in range(2):
        expected, expected_lse = plain(q[piece], k[piece], v[piece], mask[piece])
        torch.testing.assert_close(out[piece], expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(lse[piece], expected_lse, atol=1e-6, rtol=1e-5)
    assert not out[1, 2].any()


def test_queries_in_parts_attend_as_all_of_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, mask = random(2, 7, 4, 8), random(2, 9, 2, 8), random(2, 9, 2, 8, seed=1), random(2, 7, 9) > 0
    whole = [attend_gathered(q, k, v, each) for each in (mask, None)]
    monkeypatch.setattr("seqmill.models.inference.attention.gathered._MOST_SCORES", 2 * 4 * 9 * 3)
    for expected, each in zip(whole, (mask, None), strict=True):
        torch.testing.assert_close(attend_gathered(q, k, v, each), expected)


@pytest.mark.parametrize(
    ("queries", "keys", "is_causal"), [(7, 7, True), (5, 11, False), (300, 300, True), (1, 1, True)]
)
def test_a_fused_part_is_the_gathered_one(queries: int, keys: int, is_causal: bool) -> None:
    q, k, v = random(queries, 6, 8), random(keys, 3, 8), random(keys, 3, 8, seed=1)
    mask = torch.ones(1, queries, keys, dtype=torch.bool)
    expected = attend_gathered(q[None], k[None], v[None], mask.tril() if is_causal else mask)
    for found, each in zip(attend_fused(q, k, v, is_causal), expected, strict=True):
        torch.testing.assert_close(found, each[0], atol=1e-6, rtol=1e-5)
    halves = attend_fused(*(x.bfloat16() for x in (q, k, v)), is_causal)
    torch.testing.assert_close(halves[0], expected[0][0], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("cuts", [[0, 11], [0, 4, 11], [0, 1, 2, 11], [0, 0, 11, 11]])
def test_parts_merge_into_the_softmax_over_all_keys(cuts: list[int]) -> None:
    q, k, v, mask = random(5, 6, 8), random(11, 3, 8), random(11, 3, 8, seed=1), random(5, 11, seed=2) > 0
    mask[3] = False
    found = torch.zeros(5, 6, 8), torch.full((5, 6), -torch.inf)
    for low, high in pairwise(cuts):
        out, lse = attend_gathered(q[None], k[None, low:high], v[None, low:high], mask[None, :, low:high])
        found = merge(*found, out[0], lse[0])
    expected, expected_lse = plain(q, k, v, mask)
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[1], expected_lse, atol=1e-6, rtol=1e-5)
    assert not found[0].isnan().any()


def filled(cache: KVCache, lengths: list[int], new: list[int], parents: list[list[int] | None]) -> list[Piece]:
    """Pieces behind sequences of these lengths, their pages in no order, and NaN wherever nothing was written."""
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)
    sequences = [cache.open() for _ in lengths]
    for step in range(max(lengths) + max(new)):
        for sequence, length, count in zip(sequences, lengths, new, strict=True):
            if step < length + count:
                cache.reserve(sequence, 1)
                for group in range(len(cache.groups)):
                    slot = torch.from_numpy(cache.slots(group, sequence, np.array([sequence.length])))
                    for tensor in (cache.keys[group], cache.values[group]):
                        tensor[:, slot] = torch.randn(len(tensor), 1, tensor.shape[2])
                cache.commit(sequence, 1) if step < length else None
                if step >= length:
                    sequence.length += 1
    for sequence, length in zip(sequences, lengths, strict=True):
        sequence.length = length
    return [
        Piece(sequence, np.zeros(count, np.int64), None if tree is None else np.array(tree))
        for sequence, count, tree in zip(sequences, new, parents, strict=True)
    ]


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(4), Pattern(6, 3), Pattern(1)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_on_pages_and_gathered_keys_see_what_each_token_may_see(
    config: ModelConfig, pattern: Pattern, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("seqmill.models.inference.attention.paged._THREAD_KEYS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    shape = ModelConfig(**{**config.to_json(), "window": pattern.window, "sinks": pattern.sinks})
    cache = KVCache(shape, [40], 4)
    lengths, new = [9, 1, 22, 0, 5, 16], [1, 3, 2, 1, 6, 4]
    pieces = filled(cache, lengths, new, [None, None, None, None, [-1, 0, 0, 1, 2, 4], [-1, 0, 0, 0]])
    pieces[3] = Piece(pieces[3].sequence, pieces[3].tokens, np.array([-1]))  # small, though nothing is before it
    step = Step.of(Model(shape), cache, pieces, "sdpa")
    assert list(step.pieces) == pieces
    q = random(sum(new), config.heads, config.head_dim)
    begins = np.zeros(len(pieces), np.int64)
    for layer in range(config.layers):
        place = cache.places(layer)[0]
        k, v = cache.read(place)
        results = [make(0, pieces, begins, 0)(layer, place, q, k, v) for make in (step._paged, step._gathered)]
        row = 0
        for piece, length, count in zip(pieces, lengths, new, strict=True):
            own = [
                [
                    (piece.parents is None and other <= token)
                    or (piece.parents is not None and is_ancestor(piece.parents, token, other))
                    for other in range(count)
                ]
                for token in range(count)
            ]
            places = np.arange(length + count)
            known = np.concatenate([places[:length], length + piece.depths])
            at = torch.from_numpy(length + piece.depths)[:, None]
            mask = pattern.visible(at, torch.from_numpy(known))
            mask[:, length:] &= torch.tensor(own)
            table = np.array(piece.sequence.tables[0])
            is_there = torch.from_numpy(table[places // 4] != GONE)
            assert not (mask & ~is_there).any()  # nothing that is still seen was given back
            slots = torch.from_numpy(np.where(is_there, cache.slots(0, piece.sequence, places), 0))
            expected, lse = plain(q[row : row + count], k[:, slots].transpose(0, 1), v[:, slots].transpose(0, 1), mask)
            for out, found_lse in results:
                torch.testing.assert_close(out[row : row + count], expected, atol=2e-6, rtol=1e-5)
                torch.testing.assert_close(found_lse[row : row + count], lse, atol=2e-6, rtol=1e-5)
            row += count


def is_ancestor(parents: np.ndarray, token: int, other: int) -> bool:
    while token > other:
        token = int(parents[token])
    return token == other


@given(lengths=st.lists(st.integers(1, 40), max_size=12))
def test_pieces_that_are_gathered_together_fill_half_of_the_room_at_least(lengths: list[int]) -> None:
    classes = step_module._of_like_lengths([np.arange(length) for length in lengths])
    assert sorted(nth for chosen in classes for nth in chosen) == list(range(len(lengths)))
    assert all(2 * lengths[nth] >= max(lengths[other] for other in chosen) for chosen in classes for nth in chosen)
    assert len(classes) <= 6  # halves of 40, as far as they go


def test_shared_pages_are_spans_and_the_rest_is_left_to_each_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqmill.models.inference.attention.spans.LEAST_SAVED", 1)
    tables = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7], [8], [1, 2, 3, 4], []]
    spans, begins = shared_spans(tables, [4, 5, 3, 1, 4, 0], 4)
    assert sorted(spans) == [((0, 1, 2, 4), (1, 2)), ((0, 1, 4), (3,)), ((0, 4), (4,))]
    assert begins.tolist() == [4, 3, 2, 0, 4, 0]
    assert shared_spans(tables, [1, 1, 0, 0, 0, 0], 4)[1].tolist() == [1, 1, 0, 0, 0, 0]  # only what is filled
    monkeypatch.setattr("seqmill.models.inference.attention.spans.LEAST_SAVED", 24)
    spans, begins = shared_spans(tables, [4, 5, 3, 1, 4, 0], 4)
    assert spans == [((0, 1, 2, 4), (1, 2))]
    assert begins.tolist() == [2, 2, 2, 0, 2, 0]


def test_families_are_spans_although_what_all_share_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqmill.models.inference.attention.spans.LEAST_SAVED", 20)
    tables = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 8], [1, 9, 10, 11, 12, 13], [1, 9, 10, 11, 12, 14]]
    spans, begins = shared_spans(tables, [6, 6, 2, 6, 6], 4)
    assert sorted(spans) == [((0, 1), (1, 2, 3, 4, 5)), ((3, 4), (1, 9, 10, 11, 12))]
    assert begins.tolist() == [5, 5, 0, 5, 5]


@given(
    paths=st.lists(st.lists(st.integers(0, 1), max_size=7), max_size=8),
    fewer=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    least=st.integers(1, 40),
)
def test_spans_cover_every_beginning_once_and_leave_nothing_that_is_worth_one(
    paths: list[list[int]], fewer: list[int], least: int
) -> None:
    pages: dict[tuple[int, ...], int] = {}  # a path -> its last page
    tables = [[pages.setdefault(tuple(path[: end + 1]), len(pages)) for end in range(len(path))] for path in paths]
    full = [max(0, len(path) - less) for path, less in zip(paths, fewer, strict=False)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("seqmill.models.inference.attention.spans.LEAST_SAVED", least)
        spans, begins = shared_spans(tables, full, 4)
    for piece, table in enumerate(tables):
        covered = sorted(page for span in spans if piece in span.pieces for page in span.pages)
        assert covered == sorted(table[: begins[piece]])
        assert begins[piece] <= full[piece]
    assert all((len(span.pieces) - 1) * len(span.pages) * 4 >= least for span in spans)
    for path in pages:
        sharing = [k for k, each in enumerate(paths) if tuple(each[: len(path)]) == path and full[k] >= len(path)]
        known = {int(begins[k]) for k in sharing}
        if len(sharing) > 1 and len(known) == 1 and min(known) < len(path):
            assert (len(sharing) - 1) * (len(path) - min(known)) * 4 < least
