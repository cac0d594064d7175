"""Beam search against transformers', against every continuation that there is, and against a search that recomputes
each hypothesis from its beginning."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from seqmill.errors import UserError
from seqmill.models import Beam, EngineSettings, Model, ModelConfig, beam_search, generate
from seqmill.models.attention import Segments
from seqmill.models.huggingface import export_huggingface
from seqmill.models.inference.beams import Searches
from seqmill.models.inference.cache import GONE
from seqmill.models.inference.hypotheses import BeamSettings

PROMPTS = ([3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3], [8, 4], [6, 2, 6, 4, 3, 3, 8, 3, 2], [7] * 33)
NEW = 8
STOPS = frozenset({2, 9, 15})


# so few ids that stop tokens are met often
SMALL = ModelConfig(vocab_size=20, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, tied_head=False)


@cache
def sharp(config: ModelConfig) -> Model:
    """Logits far from uniform."""
    model = Model(config, seed=1)
    with torch.no_grad():
        for table in (model.embedding.weight, model.head_weight):
            table.mul_(10.0)
    return model


@pytest.fixture(scope="module")
def small() -> Model:
    return sharp(SMALL)


@pytest.fixture(scope="module")
def theirs(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("exported")
    export_huggingface(small, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def assert_alike(found: Sequence[Beam], expected: Sequence[Beam]) -> None:
    assert [(beam.tokens, beam.finish) for beam in found] == [(beam.tokens, beam.finish) for beam in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def their_beams(
    model: Any, prompt: list[int], beams: int, length_penalty: float, stop_ids: frozenset[int]
) -> list[Beam]:
    output = model.generate(
        torch.tensor([prompt]),
        num_beams=beams,
        do_sample=False,
        num_return_sequences=beams,
        max_new_tokens=NEW,
        length_penalty=length_penalty,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = []
    for tokens, score in zip(
        output.sequences[:, len(prompt) :].tolist(), output.sequences_scores.tolist(), strict=True
    ):
        stop = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
        kept = tuple(tokens[:stop])
        length = len(kept) + (stop is not None)
        assert stop is not None or length == NEW
        found.append(Beam(kept, score * length**length_penalty, score, "length" if stop is None else "stop"))
    return found


@pytest.mark.parametrize(
    ("beams", "length_penalty", "stop_ids"),
    [
        (2, 1.0, frozenset()),
        (4, 1.0, STOPS),
        (3, 0.0, frozenset({9})),
        (5, 2.0, STOPS),
        (4, -1.0, frozenset({3, 11})),
    ],
)
def test_beams_and_scores_are_those_of_transformers(
    small: Model, theirs: Any, beams: int, length_penalty: float, stop_ids: frozenset[int]
) -> None:
    found = beam_search(small, PROMPTS, NEW, beams, length_penalty=length_penalty, stop_ids=stop_ids)
    for prompt, beams_of_prompt in zip(PROMPTS, found, strict=True):
        assert_alike(beams_of_prompt, their_beams(theirs, prompt, beams, length_penalty, stop_ids))
    finishes = {beam.finish for each in found for beam in each}
    assert finishes == ({"length", "stop"} if stop_ids else {"length"})


def test_one_beam_is_greedy_generation(small: Model) -> None:
    for stop_ids in (frozenset[int](), STOPS):
        found = beam_search(small, PROMPTS, NEW, 1, stop_ids=stop_ids)
        greedy = generate(small, PROMPTS, NEW, stop_ids=stop_ids)
        assert [[(beam.tokens, beam.finish) for beam in each] for each in found] == [
            [(each.tokens, each.finish)] for each in greedy
        ]


@cache
@torch.no_grad()
def next_log_p(model: Model, ids: tuple[int, ...]) -> list[float]:
    hidden = model(torch.tensor(ids), torch.arange(len(ids)), Segments.of([len(ids)]))
    return model.logits(hidden[-1:])[0].double().log_softmax(-1).tolist()


def test_a_search_as_wide_as_all_continuations_finds_the_best_of_them() -> None:
    model = sharp(replace(SMALL, vocab_size=5, layers=1))
    prompt = [1, 3, 2]
    totals = {}
    for tokens in itertools.product(range(5), repeat=3):
        totals[tokens] = sum(next_log_p(model, (*prompt, *tokens[:n]))[tokens[n]] for n in range(3))
    best = sorted(totals, key=lambda tokens: -totals[tokens])[:25]
    (found,) = beam_search(model, [prompt], 3, beams=25)
    assert_alike(found, [Beam(tokens, totals[tokens], totals[tokens] / 3, "length") for tokens in best])
    (all_found,) = beam_search(model, [prompt], 2, beams=40)
    assert len(all_found) == 25  # there are no more
    assert sum(torch.tensor([beam.log_probability for beam in all_found]).exp()) == pytest.approx(1.0, abs=1e-5)


def recomputed(model: Model, prompt: list[int], how: BeamSettings) -> list[Beam]:
    """Algorithm 1 of arXiv 1610.02424 over lists of tokens, with the whole vocabulary and without a cache."""
    live: list[list[tuple[float, float, tuple[int, ...]]]] = [[(0.0, 0.0, ())] for _ in range(how.groups)]
    finished: list[list[Beam]] = [[] for _ in range(how.groups)]
    for length in range(1, how.max_new_tokens + 1):
        chosen: list[int] = []
        for g in range(how.groups):
            candidates = []
            for augmented, total, tokens in live[g]:
                for token, log_p in enumerate(next_log_p(model, (*prompt, *tokens))):
                    cost = how.diversity * chosen.count(token)
                    candidates.append((augmented + log_p - cost, total + log_p, (*tokens, token)))
            candidates.sort(reverse=True)
            chosen_here = []
            next_live: list[tuple[float, float, tuple[int, ...]]] = []
            for place, (augmented, total, tokens) in enumerate(candidates):
                is_stop, is_last = tokens[-1] in how.stop_ids, length == how.max_new_tokens
                if place < how.width and (is_stop or is_last):
                    score = total / length**how.length_penalty
                    finished[g].append(
                        Beam(tokens[:-1] if is_stop else tokens, total, score, "stop" if is_stop else "length")
                    )
                    chosen_here.append(tokens[-1])
                elif not is_stop and not is_last and len(next_live) < how.width:
                    next_live.append((augmented, total, tokens))
                    chosen_here.append(tokens[-1])
            chosen += chosen_here
            finished[g] = sorted(finished[g], key=lambda beam: -beam.score)[: how.width]
            possible = [total / length**how.length_penalty for _, total, _ in next_live]
            is_done = len(finished[g]) == how.width and max(possible, default=0) <= finished[g][-1].score
            live[g] = [] if is_done else next_live
    return sorted((beam for each in finished for beam in each), key=lambda beam: -beam.score)


@pytest.mark.parametrize(
    "how",
    [
        {"beams": 4, "groups": 2, "diversity": 0.5},
        {"beams": 6, "groups": 3, "diversity": 1.0, "stop_ids": STOPS, "length_penalty": 0.5},
        {"beams": 4, "groups": 4, "diversity": 3.0, "stop_ids": frozenset({9})},
        {"beams": 6, "groups": 2, "diversity": 50.0, "stop_ids": STOPS},
        {"beams": 4, "groups": 1, "diversity": 2.0, "stop_ids": STOPS},
    ],
    ids=str,
)
def test_groups_find_what_recomputing_every_hypothesis_finds(small: Model, how: dict[str, Any]) -> None:
    settings = BeamSettings(max_new_tokens=NEW, **how)
    found = beam_search(small, PROMPTS, NEW, **how)
    for prompt, beams in zip(PROMPTS, found, strict=True):
        assert_alike(beams, recomputed(small, prompt, settings))


def test_groups_differ_the_more_the_more_diversity_costs(small: Model) -> None:
    plain = beam_search(small, PROMPTS, NEW, 2)
    same = beam_search(small, PROMPTS, NEW, 6, groups=3)
    assert [[beam.tokens for beam in each] for each in same] == [
        [beam.tokens for beam in each for _ in range(3)] for each in plain
    ]
    first_tokens = []
    for diversity in (0.0, 1.0, 100.0):
        found = beam_search(small, PROMPTS, NEW, 6, groups=6, diversity=diversity)
        first_tokens.append(sum(len({beam.tokens[0] for beam in each}) for each in found))
    assert first_tokens[0] == len(PROMPTS) < first_tokens[1] < first_tokens[2] == 6 * len(PROMPTS)


@pytest.mark.parametrize("variants", [{}, {"window": 6, "sinks": 2, "full_every": 2}], ids=str)
@pytest.mark.parametrize(
    ("settings", "prompts_at_once"),
    [
        (EngineSettings(max_batch=4, prefill_tokens=5, page_tokens=4), range(1, 2)),
        (EngineSettings(max_batch=14, prefill_tokens=11, page_tokens=1), range(3, 4)),
        (EngineSettings(page_tokens=4), range(6, 7)),
        (EngineSettings(page_tokens=4, cache_tokens=160), range(2, 6)),
    ],
    ids=["one prompt", "three", "all", "a small cache"],
)
def test_pages_come_back_as_hypotheses_die_and_all_in_the_end(
    variants: dict[str, Any], settings: EngineSettings, prompts_at_once: range
) -> None:
    """And neither the pages nor what is done at once changes what is found."""
    model = sharp(replace(SMALL, **variants))
    how = BeamSettings(max_new_tokens=NEW, beams=4, groups=2, diversity=0.7, stop_ids=STOPS)
    searches = Searches(model, PROMPTS, how, settings)
    cache = searches.cache
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)
    pages = [pool.free for pool in cache.pools]
    most = 0
    while searches.busy:
        searches.step()
        most = max(most, len(searches.live))
        for g, pool in enumerate(cache.pools):
            held = {
                page
                for search in searches.live
                for sequence in search.sequences.values()
                for page in sequence.tables[g]
                if page != GONE
            }
            assert len(pool) - pool.free == len(held)
    assert [pool.free for pool in cache.pools] == pages
    assert most in prompts_at_once
    for prompt, found in zip(PROMPTS, searches.found, strict=True):
        assert_alike(found, recomputed(model, prompt, how))


def test_a_prompt_is_held_once_by_all_its_beams(small: Model) -> None:
    searches = Searches(small, [[5] * 64], BeamSettings(max_new_tokens=8, beams=8), EngineSettings(page_tokens=8))
    for _ in range(6):
        searches.step()
    (pool,) = searches.cache.pools
    assert len(searches.live[0].sequences) == 8
    assert len(pool) - pool.free <= 8 + 8  # eight of the prompt, one of each beam


def test_no_prompts_and_one_token_are_searched_too(small: Model) -> None:
    assert beam_search(small, [], 5) == []
    (found,) = beam_search(small, [[4]], 1, beams=3)
    log_p = next_log_p(small, (4,))
    best = sorted(range(20), key=lambda token: -log_p[token])[:3]
    assert_alike(found, [Beam((token,), log_p[token], log_p[token], "length") for token in best])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beams": 0}, "beams = 0: must be 1 or more"),
        ({"groups": 0}, "groups = 0: must be 1 or more"),
        ({"beams": 4, "groups": 3}, "beams = 4, groups = 3: .* must divide beams"),
        ({"diversity": -0.5}, "diversity = -0.5: must be 0"),
        ({"diversity": float("nan")}, "diversity = nan"),
        ({"length_penalty": float("inf")}, "length_penalty = inf"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, 20]]}, "prompt 0 holds the id 20"),
        ({"beams": 65}, "beams = 65 is more than max_batch = 64"),
        (
            {"prompts": [[1], [1] * 100], "settings": EngineSettings(cache_tokens=128)},
            "prompt 1 of 100 tokens and 4 beams of 5 need 7 pages, and the cache has 4 pages of 32 tokens",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(small: Model, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        beam_search(small, **{"prompts": [[1]], "max_new_tokens": 5, **wrong})
