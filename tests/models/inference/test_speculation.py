"""Drafts change how many passes it takes, and no token."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.models import Engine, EngineSettings, GeneratedSequence, Model, ModelConfig, Request, Sampling
from seqmill.models.inference.drafting import DRAFTERS, Draft
from seqmill.models.inference.policy import CachePolicy
from seqmill.models.inference.speculation import Speculation, marginal_cost

NEW = 40


class Knowing:
    """Proposes trees of which one path is right for some tokens, since it knows what will come; a source and a drafter
    in one."""

    top_k = 3

    def __init__(self, texts: dict[tuple[int, ...], tuple[int, ...]], chance: np.random.Generator) -> None:
        self.texts, self.chance = texts, chance
        self.told: list[tuple[int, int]] = []

    def open(self, prompt: Sequence[int]) -> "Knowing":
        one = Knowing(self.texts, self.chance)
        one.rest = list(self.texts[tuple(prompt)])
        one.told = self.told
        return one

    def propose(self, most: int) -> Draft:
        tokens, parents, known = [], [], [-1]
        for _ in range(int(self.chance.integers(0, most + 1))):
            depth = len(known) - 1
            if self.chance.random() < 0.6 and depth < len(self.rest):
                tokens.append(self.rest[depth])
                parents.append(known[-1])
                known.append(len(tokens) - 1)
            else:
                tokens.append(int(self.chance.integers(100)))
                parents.append(int(self.chance.integers(-1, len(tokens) - 1)) if len(tokens) > 1 else -1)
        return Draft(np.array(tokens, np.int64), np.array(parents, np.int64))

    def observe(self, tokens: Sequence[int], successors: np.ndarray | None) -> None:
        assert successors is not None
        assert successors.shape == (len(tokens), 3)
        self.told += zip(tokens, successors[:, 0].tolist(), strict=True)
        assert self.rest[: len(tokens)] == list(tokens)
        del self.rest[: len(tokens)]

    def close(self) -> None:
        pass


def run(engine: Engine, requests: Sequence[Request]) -> list[GeneratedSequence]:
    pages = [pool.free for pool in engine._cache.pools]
    numbers = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
    found = [sequence for number in numbers for sequence in engine.results(number) or []]
    if engine._prefixes is not None:
        engine._prefixes.clear()
    assert [pool.free for pool in engine._cache.pools] == pages
    return found


@pytest.fixture
def free_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts that cost nothing: as many are proposed as fit."""
    monkeypatch.setattr(Speculation, "token_cost", lambda *_: 1e-3)
    monkeypatch.setattr("seqmill.models.inference.drafting.throttle.RequestThrottle.limit", lambda *_: 31)


@pytest.mark.usefixtures("free_drafts")
@pytest.mark.parametrize(
    "variants", [{}, {"window": 40, "sinks": 2, "full_every": 2}, {"window": 5}], ids=["full", "windowed", "narrow"]
)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=40)], ids=["greedy", "sampled"])
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000))
def test_verified_trees_give_the_tokens_that_come_one_by_one(
    config: ModelConfig, variants: dict[str, int], sampling: Sampling, seed: int
) -> None:
    model = Model(replace(config, **variants), seed=2)
    chance = np.random.default_rng(seed)
    prompts = [chance.integers(0, 100, int(chance.integers(1, 30))).tolist() for _ in range(4)]
    stops = chance.integers(0, 100, 1).tolist()
    requests = [
        Request(prompt=prompt, max_new_tokens=NEW, sampling=sampling, seed=place, stop_ids=stops)
        for place, prompt in enumerate(prompts)
    ]
    small = EngineSettings(page_tokens=4, max_batch=3)
    expected = run(Engine(model, small), requests)
    texts = {tuple(prompt): sequence.tokens for prompt, sequence in zip(prompts, expected, strict=True)}
    knowing = Knowing(texts, chance)
    engine = Engine(model, small, drafts=knowing)
    assert run(engine, requests) == expected
    assert engine.statistics.accepted_tokens > 0 or sum(map(len, texts.values())) < 20
    assert engine.statistics.accepted_tokens < engine.statistics.drafted_tokens
    if sampling.temperature == 0:
        assert all(token == likeliest for token, likeliest in knowing.told)


@pytest.mark.usefixtures("free_drafts")
@pytest.mark.parametrize("draft", list(DRAFTERS))
def test_every_drafter_saves_passes_on_a_text_that_repeats_itself(model: Model, draft: str) -> None:
    requests = [Request(prompt=[1, 2, 3, 4] * 3, max_new_tokens=NEW), Request(prompt=[7] * 5, max_new_tokens=NEW)]
    plain = Engine(model, EngineSettings(max_batch=1, page_tokens=4))
    expected = run(plain, requests * 2)
    engine = Engine(model, EngineSettings(max_batch=1, page_tokens=4, draft=draft))
    assert run(engine, requests * 2) == expected
    assert engine.statistics.new_tokens == plain.statistics.new_tokens
    assert engine.statistics.steps < 0.8 * plain.statistics.steps


def test_samples_of_a_request_draft_each_for_itself(model: Model) -> None:
    requests = [Request(prompt=[1, 2, 3] * 4, max_new_tokens=NEW, samples=3, sampling=Sampling(1.0))]
    expected = run(Engine(model, EngineSettings(page_tokens=4)), requests)
    assert run(Engine(model, EngineSettings(page_tokens=4, draft="suffix")), requests) == expected


def test_a_token_costs_more_where_a_pass_is_already_full(model: Model) -> None:
    shared = Speculation(DRAFTERS["copy"](), None, 0.1)  # type: ignore[arg-type]
    assert shared.token_cost(1) == pytest.approx(0.1)
    assert shared.token_cost(11) == pytest.approx(0.1 / (2.0 / 11))
    assert shared.token_cost(10_000) == pytest.approx(1.0, abs=0.01)
    assert 1e-4 <= marginal_cost(model) < 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft": "oracle"}, "draft = 'oracle': must be copy, recycle, suffix"),
    ],
)
def test_impossible_speculation_is_refused(settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        EngineSettings(**settings)


def test_a_mean_of_what_was_let_go_and_drafts_do_not_go_together(model: Model) -> None:
    policy = CachePolicy(window=4, has_mean=True)
    given = [(EngineSettings(draft="copy", policy=policy), None), (EngineSettings(policy=policy), DRAFTERS["copy"]())]
    for chosen, drafts in given:
        with pytest.raises(UserError, match="leave out draft or has_mean"):
            Engine(model, chosen, drafts=drafts)
