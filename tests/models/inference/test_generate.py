"""Packed prefill and ragged decode against recomputing every prompt from its beginning, one at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seqmill.errors import UserError
from seqmill.models import EngineSettings, Model, ModelConfig, generate, score
from seqmill.models.attention import Segments
from seqmill.models.inference.sampling import Draws, Sampling, pick_tokens

PROMPT_LENGTHS = (7, 1, 30, 7, 2, 64, 1, 15)
NEW = 20


@pytest.fixture
def prompts(model: Model) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.vocab_size
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@torch.no_grad()
def logits_of(model: Model, ids: list[int]) -> torch.Tensor:
    return model.logits(model(torch.tensor(ids), torch.arange(len(ids)), Segments.of([len(ids)])))


def recomputed(model: Model, prompt: list[int], new: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize(("max_batch", "prefill_tokens"), [(64, 16_384), (3, 16_384), (64, 10), (1, 1), (2, 40)])
def test_greedy_tokens_are_those_of_full_recomputation_one_prompt_at_a_time(
    model: Model, prompts: list[list[int]], max_batch: int, prefill_tokens: int
) -> None:
    found = generate(model, prompts, NEW, settings=EngineSettings(max_batch=max_batch, prefill_tokens=prefill_tokens))
    assert [sequence.tokens for sequence in found] == [recomputed(model, prompt, NEW) for prompt in prompts]
    assert len({sequence.tokens for sequence in found}) > len(prompts) // 2  # prompts matter
    assert [sequence.prompt_tokens for sequence in found] == list(PROMPT_LENGTHS)
    assert {sequence.finish for sequence in found} == {"length"}


@pytest.mark.parametrize(
    "variants",
    [
        {"window": 1},
        {"window": 8},
        {"window": 8, "sinks": 3},
        {"window": 5, "sinks": 1, "full_every": 2},
        {"nope_every": 2},
        {"window": 8, "sinks": 2, "nope_every": 1},
    ],
    ids=str,
)
def test_the_cache_gives_each_layer_what_full_recomputation_lets_it_see(
    config: ModelConfig, prompts: list[list[int]], variants: dict[str, int]
) -> None:
    model, plain = (Model(shape, seed=1) for shape in (replace(config, **variants), config))
    for one in (model, plain):
        one.embedding.weight.data.mul_(10.0)
    found = generate(model, prompts, NEW, settings=EngineSettings(max_batch=3))
    assert [sequence.tokens for sequence in found] == [recomputed(model, prompt, NEW) for prompt in prompts]
    assert found != generate(plain, prompts, NEW)
    scores = np.concatenate(score(model, prompts))
    alone = [logits_of(model, ids).log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0] for ids in prompts]
    np.testing.assert_allclose(scores, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_permuting_the_prompts_permutes_the_outputs(model: Model, prompts: list[list[int]]) -> None:
    order = [3, 7, 0, 5, 1, 6, 2, 4]
    straight = generate(model, prompts, NEW, settings=EngineSettings(max_batch=3))
    permuted = generate(model, [prompts[place] for place in order], NEW, settings=EngineSettings(max_batch=3))
    assert permuted == [straight[place] for place in order]


def test_a_stop_token_ends_its_own_request_only_and_is_not_part_of_it(model: Model, prompts: list[list[int]]) -> None:
    full = generate(model, prompts, NEW)
    stop = {full[0].tokens[0], full[5].tokens[4]}
    stopped = generate(model, prompts, NEW, stop_ids=stop, settings=EngineSettings(max_batch=4))
    assert stopped[0].tokens == ()
    assert any(sequence.finish == "length" for sequence in stopped)
    for with_stop, without in zip(stopped, full, strict=True):
        hits = [place for place, token in enumerate(without.tokens) if token in stop]
        expected = without.tokens[: hits[0]] if hits else without.tokens
        assert with_stop.tokens == expected
        assert with_stop.finish == ("stop" if hits else "length")


def test_a_first_token_is_one_of_those_allowed_and_the_others_follow_from_it(
    model: Model, prompts: list[list[int]]
) -> None:
    ranges = [range(place, place + 1 + 3 * place) for place in range(len(prompts))]
    found = generate(model, prompts, NEW, first_ids=ranges, settings=EngineSettings(max_batch=3))
    for prompt, allowed, sequence in zip(prompts, ranges, found, strict=True):
        best = int(logits_of(model, prompt)[-1][allowed.start : allowed.stop].argmax()) + allowed.start
        assert sequence.tokens == (best, *recomputed(model, [*prompt, best], NEW - 1))


def test_sampled_tokens_do_not_depend_on_the_other_prompts(model: Model, prompts: list[list[int]]) -> None:
    settings = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 7}
    beside = generate(model, prompts, NEW, **settings)  # type: ignore[arg-type]
    others = [[5], [6, 7], prompts[2], [8] * 40, prompts[4]]
    among = generate(model, others, NEW, settings=EngineSettings(max_batch=2), **settings)  # type: ignore[arg-type]
    assert among[2] == beside[2]
    assert among[4] == beside[4]
    assert among[3] != beside[3]


def test_sampling_depends_on_the_seed_and_on_the_place(model: Model) -> None:
    def run(seed: int) -> list[tuple[int, ...]]:
        return [sequence.tokens for sequence in generate(model, [[1], [1]], NEW, temperature=2.0, seed=seed)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1)[0] != run(1)[1]


def test_a_draw_depends_on_its_place_alone_whenever_it_is_asked_for() -> None:
    expected = np.random.default_rng([3, 5, 2]).random(5_000)
    one_by_one, at_once, jumping = (Draws(3, 5, sample=2) for _ in range(3))
    assert [one_by_one.at(np.array([place]))[0] for place in range(200)] == expected[:200].tolist()
    np.testing.assert_array_equal(at_once.at(np.arange(5_000)), expected)
    for places in ([], [70, 2, 2], [4_999], [0]):
        np.testing.assert_array_equal(jumping.at(np.array(places, np.int64)), expected[places])


def test_tokens_are_drawn_with_their_probabilities() -> None:
    p = torch.tensor([0.1, 0.5, 0.05, 0.35])
    draws = torch.from_numpy(Draws(0, 0).at(np.arange(40_000)))
    logits = p.log().expand(len(draws), 4)

    def shares(sampling: Sampling) -> np.ndarray:
        return np.bincount(pick_tokens(logits, draws, sampling).numpy(), minlength=4) / len(draws)

    def expect(found: np.ndarray, expected: list[float]) -> None:
        np.testing.assert_allclose(found, np.array(expected) / sum(expected), atol=0.01)
        assert not found[np.array(expected) == 0].any()

    expect(shares(Sampling(1.0)), [0.1, 0.5, 0.05, 0.35])
    expect(shares(Sampling(0.5)), [0.01, 0.25, 0.0025, 0.1225])
    expect(shares(Sampling(1.0, top_k=2)), [0, 0.5, 0, 0.35])
    expect(shares(Sampling(1.0, top_p=0.86)), [0.1, 0.5, 0, 0.35])
    expect(shares(Sampling(1.0, top_p=0.45)), [0, 1, 0, 0])
    expect(shares(Sampling(1.0, top_k=3, top_p=0.6)), [0, 0.5, 0, 0.35])
    expect(shares(Sampling(1.0, min_p=0.6)), [0, 0.5, 0, 0.35])
    expect(shares(Sampling(1.0, min_p=0.15)), [0.1, 0.5, 0, 0.35])
    expect(shares(Sampling(0.0)), [0, 1, 0, 0])


def test_nothing_gives_nothing(model: Model) -> None:
    assert generate(model, [], NEW) == []


def test_a_prompt_that_cannot_be_continued_says_why_and_the_others_go_on(
    model: Model, prompts: list[list[int]]
) -> None:
    straight = generate(model, prompts[:2], NEW, settings=EngineSettings(cache_tokens=64, page_tokens=16))
    wrong = [[], [5, 100, 3], [-1], [1] * 70]
    found = generate(model, [*prompts[:2], *wrong], NEW, settings=EngineSettings(cache_tokens=64, page_tokens=16))
    assert found[:2] == straight
    assert [each.finish for each in found[2:]] == ["error"] * 4
    assert all(not each.tokens for each in found[2:])
    for each, message in zip(
        found[2:],
        [
            "prompt 2: prompt is empty",
            "prompt 3: prompt holds the id 100, but the model's vocabulary is 0 .. 99",
            "prompt 4: prompt holds the id -1",
            "prompt 5: a request of 70 prompt tokens and 20 new ones needs 6 pages, 90 tokens, and the cache has 4",
        ],
        strict=True,
    ):
        assert each.error is not None
        assert each.error.startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -1.0}, r"temperature = -1\.0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k = 0"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p = 1\.5"),
        ({"temperature": 1.0, "min_p": 1.5}, r"min_p = 1\.5"),
        ({"samples": 0}, "samples = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_an_impossible_setting_is_refused(model: Model, settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, [[1]], **{"max_new_tokens": 3, **settings})  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_greedy_tokens_on_cuda_are_those_on_the_processor(model: Model, prompts: list[list[int]]) -> None:
    expected = generate(model, prompts, NEW)
    assert generate(model.cuda(), prompts, NEW) == expected
    assert len(generate(model.bfloat16(), prompts, NEW)) == len(prompts)
