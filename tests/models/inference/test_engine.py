"""Requests that come and go: what each gets is its own, and every page comes back."""

import random
from dataclasses import replace

import pytest
import torch

from seqmill.errors import UserError
from seqmill.models import Engine, EngineSettings, GeneratedSequence, Model, ModelConfig, Request, Sampling, generate
from seqmill.models.attention import Segments
from seqmill.models.inference.speculation import MOST_DRAFTED

SMALL = EngineSettings(max_batch=5, prefill_tokens=12, cache_tokens=96, page_tokens=4)


def finish_all(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def alone(model: Model, request: Request) -> list[GeneratedSequence]:
    """One request in an engine of its own, nothing shared, nothing cut."""
    engine = Engine(model, EngineSettings(prefix_cache=False))
    number = engine.submit(request)
    finish_all(engine)
    return engine.results(number) or []


@torch.no_grad()
def recomputed(model: Model, prompt: list[int], new: int) -> tuple[int, ...]:
    """Greedy tokens without any cache."""
    ids = list(prompt)
    for _ in range(new):
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), Segments.of([len(ids)]))
        ids.append(int(model.logits(hidden[-1:]).argmax()))
    return tuple(ids[len(prompt) :])


def free_pages(engine: Engine) -> list[int]:
    """When the engine forgets the prompts that it knows."""
    if engine._prefixes is not None:
        engine._prefixes.clear()
    return [pool.free for pool in engine._cache.pools]


@pytest.mark.parametrize("variants", [{}, {"window": 6, "sinks": 2, "full_every": 2}], ids=["full", "windowed"])
def test_500_requests_that_come_end_and_are_cancelled_leave_no_page_behind(
    config: ModelConfig, variants: dict[str, int]
) -> None:
    model = Model(replace(config, layers=2, **variants), seed=1)
    engine = Engine(model, SMALL)
    pages = free_pages(engine)
    chance = random.Random(0)
    beginnings = [[chance.randrange(100) for _ in range(20)] for _ in range(3)]
    running: dict[int, Request] = {}
    checked = submitted = 0
    while submitted < 500 or engine.busy:
        if submitted < 500 and chance.random() < 0.7:
            prompt = chance.choice(beginnings)[: chance.randrange(21)] + [
                chance.randrange(100) for _ in range(chance.randrange(1, 12))
            ]
            request = Request(
                prompt=prompt,
                max_new_tokens=chance.randrange(1, 9),
                samples=chance.choice([1, 1, 1, 2, 3]),
                sampling=chance.choice([Sampling(), Sampling(1.0), Sampling(0.7, top_k=5)]),
                seed=submitted,
                stop_ids=[chance.randrange(100)],
            )
            running[engine.submit(request)] = request
            submitted += 1
        if running and chance.random() < 0.05:
            cancelled = chance.choice(list(running))
            engine.cancel(cancelled)
            assert {each.finish for each in engine.results(cancelled) or []} >= {"cancelled"}
            del running[cancelled]
        for event in engine.step():
            if event.finish is None or event.request not in running:
                continue
            if (found := engine.results(event.request)) is not None:
                request = running.pop(event.request)
                if chance.random() < 0.1:
                    assert found == alone(model, request)
                    checked += 1
    assert not running
    assert checked > 20
    assert free_pages(engine) == pages
    assert engine.statistics.prompt_tokens > engine.statistics.reused_tokens
    assert (engine.statistics.reused_tokens > 1000) == (not variants)


def test_prompts_of_one_step_share_the_pages_of_their_common_beginning(model: Model) -> None:
    common = list(range(70))
    prompts = [[*common, *([token] * (1 + token % 3))] for token in range(12)] + [common, common[:33]]
    expected = [recomputed(model, prompt, 5) for prompt in prompts]
    for budget in (16_384, 50):  # all in one step; the common beginning in two
        engine = Engine(model, EngineSettings(prefill_tokens=budget, page_tokens=4))
        numbers = [engine.submit(Request(prompt=prompt, max_new_tokens=5)) for prompt in prompts]
        finish_all(engine)
        assert [(engine.results(number) or [])[0].tokens for number in numbers] == expected
        assert engine.statistics.reused_tokens == 12 * 68 + 32  # all but the first prompt, up to 32 of the last
        assert free_pages(engine) == [engine.settings.cache_tokens or 65_536 // 4]


def test_a_prompt_that_was_seen_before_is_not_computed_again(model: Model) -> None:
    engine = Engine(model, EngineSettings(page_tokens=4))
    prompt = list(range(40, 60))
    for reused in (0, 16):
        before = engine.statistics.reused_tokens
        number = engine.submit(Request(prompt=prompt, max_new_tokens=3))
        finish_all(engine)
        assert (engine.results(number) or [])[0].tokens == recomputed(model, prompt, 3)
        assert engine.statistics.reused_tokens - before == reused


def test_nan_in_pages_that_nobody_uses_changes_nothing(model: Model) -> None:
    prompts = [[3] * 5, list(range(30)), [7]]
    expected = [sequence.tokens for sequence in generate(model, prompts, 12)]
    engine = Engine(model, EngineSettings(page_tokens=4))
    for tensor in (*engine._cache.keys, *engine._cache.values):
        tensor.fill_(torch.nan)
    numbers = [engine.submit(Request(prompt=prompt, max_new_tokens=12)) for prompt in prompts]
    finish_all(engine)
    assert [(engine.results(number) or [])[0].tokens for number in numbers] == expected


def test_another_request_changes_no_bit_of_what_a_request_sees(model: Model) -> None:
    """Of the same shape, so that kernels sum in the same order."""
    caches = []
    for other in (1, 2):
        engine = Engine(model, EngineSettings(page_tokens=4))
        engine.submit(Request(prompt=list(range(20)), max_new_tokens=6))
        engine.submit(Request(prompt=[other] * 20, max_new_tokens=6))
        engine.step()
        engine.step()
        caches.append(engine._cache.keys[0][:, :20].clone())
    assert torch.equal(*caches)


def test_samples_share_a_prompt_and_the_first_is_what_one_sample_gives(model: Model) -> None:
    prompts = [list(range(18)), [5], list(range(16))]
    settings = {"temperature": 1.5, "seed": 3}
    one = generate(model, prompts, 8, **settings)  # type: ignore[arg-type]
    engine_settings = EngineSettings(max_batch=4, page_tokens=4)
    several = generate(model, prompts, 8, samples=4, settings=engine_settings, **settings)  # type: ignore[arg-type]
    assert [several[4 * place] for place in range(3)] == one
    assert len({sequence.tokens for sequence in several}) == 12
    with pytest.raises(UserError, match="samples = 5 is more than max_batch = 4"):
        Engine(model, engine_settings).submit(Request(prompt=[1], max_new_tokens=1, samples=5))


def test_a_stop_text_ends_a_request_wherever_its_tokens_are_cut(model: Model) -> None:
    def decode(sequences: list[list[int]]) -> list[bytes]:
        return [b"".join(b"<%d>" % token for token in tokens) for tokens in sequences]

    prompts = [[1, 2], [3], [4, 5]]
    full = generate(model, prompts, 10)
    text = decode([list(full[1].tokens)])[0]
    stop = text[len(text) // 2 - 2 : len(text) // 2 + 3].decode()  # begins in one token and ends in another
    place = text.index(stop.encode())
    found = generate(model, prompts, 10, stop_texts=[stop, "never"], decode=decode)  # type: ignore[arg-type]
    assert found[1].finish == "stop"
    assert found[1].text == text[:place]
    assert found[1].tokens == full[1].tokens[: len(found[1].tokens)]
    assert decode([list(found[1].tokens)])[0].find(stop.encode()) == place
    assert decode([list(found[1].tokens[:-1])])[0].find(stop.encode()) == -1
    for place in (0, 2):
        assert stop.encode() in decode([list(full[place].tokens)])[0] or found[place].tokens == full[place].tokens
    with pytest.raises(UserError, match="stop_texts need `decode`"):
        Engine(model).submit(Request(prompt=[1], max_new_tokens=1, stop_texts=["a"]))


def test_a_request_with_stop_texts_tells_its_text_however_it_ended(model: Model) -> None:
    def decode(sequences: list[list[int]]) -> list[bytes]:
        return [b"".join(b"<%d>" % token for token in tokens) for tokens in sequences]

    engine = Engine(model, decode=decode, decodes_parts=True)  # type: ignore[arg-type]
    whole, cancelled, waiting = (
        engine.submit(Request(prompt=[1, 2], max_new_tokens=6, stop_texts=["never"], place=place)) for place in range(3)
    )
    engine.cancel(waiting)
    engine.step()
    engine.cancel(cancelled)
    finish_all(engine)
    for number, finish, tokens in ((whole, "length", 6), (cancelled, "cancelled", 1), (waiting, "cancelled", 0)):
        (found,) = engine.results(number) or []
        assert (found.finish, len(found.tokens)) == (finish, tokens)
        assert found.text == decode([list(found.tokens)])[0]


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("draft", [None, "recycle"])
def test_logits_of_a_few_rows_at_a_time_give_the_same_tokens(
    model: Model, rows: int, draft: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqmill.models.inference.speculation.marginal_cost", lambda model: 0.02)
    prompts = [[place, 7, place + 1] * 5 for place in range(6)]
    how = {"settings": EngineSettings(draft=draft), "temperature": 0.7, "top_k": 5, "samples": 2}
    at_once = generate(model, prompts, 12, **how)  # type: ignore[arg-type]
    monkeypatch.setattr("seqmill.models.inference.choosing.LOGITS_AT_ONCE", (rows + 1) * model.config.padded_vocab - 1)
    shapes = list[int]()
    logits = Model.logits
    monkeypatch.setattr(Model, "logits", lambda self, hidden: shapes.append(len(hidden)) or logits(self, hidden))
    assert generate(model, prompts, 12, **how) == at_once  # type: ignore[arg-type]
    most_of_one = 1 if draft is None else 1 + MOST_DRAFTED
    assert max(shapes) <= max(rows, most_of_one)
    assert len(shapes) > 12


def test_every_token_is_told_as_it_comes(model: Model) -> None:
    told: dict[int, list[int]] = {}
    found = generate(
        model,
        [[1], [2, 3]],
        6,
        temperature=1.0,
        samples=2,
        on_token=lambda at, token: told.setdefault(at, []).append(token),
    )
    assert [tuple(told[place]) for place in range(4)] == [sequence.tokens for sequence in found]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 0}, "max_batch = 0"),
        ({"prefill_tokens": 0}, "prefill_tokens = 0"),
        ({"page_tokens": 0}, "page_tokens = 0"),
        ({"cache_tokens": 31}, "cache_tokens = 31 is less than one page of 32 tokens"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EngineSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1, 3, 7, 8, 12, 15])
def test_a_sample_that_ends_early_leaves_the_others_all_pages_that_they_were_promised(model: Model, seed: int) -> None:
    """The sample that goes on has copied the last page of the prompt, which the one that ended was to copy."""
    engine = Engine(model, EngineSettings(page_tokens=4, cache_tokens=52))
    several = Request(
        prompt=[1, 2, 3, 4, 5], max_new_tokens=21, samples=2, sampling=Sampling(1.0), stop_ids=range(2), seed=seed
    )
    first = engine.submit(several)
    while engine.busy and (len(engine._live) != 1 or len(engine._live[0].tokens) < 18):
        engine.step()
    second = engine.submit(Request(prompt=[7] * 25, max_new_tokens=3))
    finish_all(engine)
    assert engine.results(first) == alone(model, several)
    assert len(engine.results(second) or []) == 1


def test_no_more_sequences_live_at_once_than_were_allowed(model: Model) -> None:
    engine = Engine(model, EngineSettings(max_batch=5))
    for place in range(4):
        engine.submit(Request(prompt=[place + 1], max_new_tokens=4, samples=4 - place, place=place))
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, len(engine._live))
    assert 4 <= most <= 5


@pytest.mark.parametrize("failing", ["hidden", "logits"])
def test_a_step_that_fails_leaves_nothing_behind(model: Model, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in a request that was let in because it fits, found its beginning among the pages that this step was to
    fill, and was left to the next step because the budget did not last."""
    prompts = [[60], list(range(1, 14)), [*range(1, 9), 50, 51, 52, 53, 54, 55], [61, 62]]
    samples = [1, 2, 1, 1]
    expected = [recomputed(model, prompt, 6) for prompt in prompts]
    engine = Engine(model, EngineSettings(page_tokens=4, prefill_tokens=17))
    numbers = [engine.submit(Request(prompt=prompts[0], max_new_tokens=6))]
    engine.step()
    numbers += [
        engine.submit(Request(prompt=prompt, max_new_tokens=6, samples=count))
        for prompt, count in zip(prompts[1:], samples[1:], strict=True)
    ]
    with monkeypatch.context() as broken:
        broken.setattr(Model, failing, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    finish_all(engine)
    found = [[each.tokens for each in engine.results(number) or []] for number in numbers]
    assert found == [[tokens] * count for tokens, count in zip(expected, samples, strict=True)]
    assert engine.statistics.prompt_tokens == sum(map(len, prompts))
    assert free_pages(engine) == [65_536 // 4]


def test_a_cancelled_request_tells_how_long_its_prompt_was(model: Model) -> None:
    engine = Engine(model, EngineSettings(prefill_tokens=2))
    waiting = [engine.submit(Request(prompt=[1, 2, 3], max_new_tokens=3, samples=2)) for _ in range(2)]
    engine.step()
    for number in waiting:
        engine.cancel(number)
        assert engine.results(number) == [GeneratedSequence((), "cancelled", 3)] * 2
        with pytest.raises(KeyError):
            engine.cancel(number)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_texts": ["a", ""]}, "stop_texts: an empty text"),
        ({"first_ids": range(5, 5)}, r"first_ids = range\(5, 5\)"),
        ({"first_ids": range(90, 101)}, "must be some ids of the vocabulary"),
        ({"place": -1}, "place = -1"),
    ],
)
def test_an_impossible_request_is_refused(model: Model, settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        Engine(model).submit(Request(prompt=[1], max_new_tokens=1, **settings))
