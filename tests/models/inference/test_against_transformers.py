"""Requests that run together get what transformers computes for each of them alone, unpadded, without a cache (fp32).

A forward pass of theirs over a prompt and the tokens behind it tells at every place which token is likeliest: where
that is the token that we chose, all the way, theirs would have chosen the same ones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from seqmill.models import Engine, EngineSettings, Model, ModelConfig, Request, generate, load, score
from seqmill.models.attention import Segments
from seqmill.models.huggingface import export_huggingface
from their_models import THEIRS, saved

NEW = 64
PAGE, PASS, AT_ONCE = 8, 48, 6  # small enough that prompts are cut, wait for each other and share pages
LONG = 300
KINDS = ("llama", "llama tied", "llama 3", "qwen3")
SETS = 20


class Pair(NamedTuple):
    theirs: Any
    ours: Model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folders = {kind: tmp_path_factory.mktemp("model") for kind in KINDS}
    assert set(KINDS) < set(THEIRS)
    return {kind: Pair(saved(kind, folder).eval(), load(folder)) for kind, folder in folders.items()}


def prompts_of(number: int, vocab_size: int) -> list[list[int]]:
    """The prompts of a set; every fifth set is of one kind of lengths."""
    rng = np.random.default_rng(number)
    lengths = (
        [int(length) for length in rng.integers(1, 100, 8)],
        [1, PASS - 1, PASS, PASS + 1, 2 * PASS, 2 * PASS + 1],
        [1, PAGE - 1, PAGE, PAGE + 1, 4 * PAGE - 1, 4 * PAGE, 4 * PAGE + 1],
        [int(rng.integers(1, 60))] * 8,
        [*rng.integers(1, 6, 10).tolist(), LONG, *rng.integers(1, 6, 10).tolist()],
    )[number % 5]
    beginning = rng.integers(vocab_size, size=LONG).tolist()
    prompts = []
    for length in lengths:  # every second one shares a random part of the beginning
        shared = int(rng.integers(length)) if rng.random() < 0.5 else 0
        prompts.append(beginning[:shared] + rng.integers(vocab_size, size=length - shared).tolist())
    return prompts


@torch.no_grad()
def their_log_probs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """[tokens, vocabulary]"""
    return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def assert_theirs(pair: Pair, prompts: Sequence[list[int]], tokens: Sequence[Sequence[int]]) -> None:
    """The tokens are the likeliest ones, and all texts as likely as they say."""
    whole = [[*prompt, *behind] for prompt, behind in zip(prompts, tokens, strict=True)]
    for prompt, ids, ours in zip(prompts, whole, score(pair.ours, whole, prefill_tokens=PASS), strict=True):
        log_p = their_log_probs(pair.theirs, ids)
        np.testing.assert_allclose(ours, log_p[range(len(ids) - 1), ids[1:]], atol=1e-5, rtol=1e-5)
        assert log_p[len(prompt) - 1 : -1].argmax(-1).tolist() == ids[len(prompt) :]


def check_set(pairs: dict[str, Pair], number: int, **settings: Any) -> None:
    pair = pairs[KINDS[number % len(KINDS)]]
    prompts = prompts_of(number, pair.ours.config.vocab_size)
    how = EngineSettings(max_batch=AT_ONCE, prefill_tokens=PASS, page_tokens=PAGE, **settings)
    found = [sequence.tokens for sequence in generate(pair.ours, prompts, NEW, settings=how)]
    assert {len(tokens) for tokens in found} == {NEW}
    assert_theirs(pair, prompts, found)


@pytest.mark.parametrize("number", range(SETS))
def test_64_greedy_tokens_of_any_set_of_lengths_are_theirs(pairs: dict[str, Pair], number: int) -> None:
    check_set(pairs, number)


@pytest.mark.wide
@pytest.mark.parametrize("number", range(SETS, 200))
def test_64_greedy_tokens_of_180_more_sets_are_theirs(pairs: dict[str, Pair], number: int) -> None:
    check_set(pairs, number, draft=("copy", "recycle", "suffix", None)[number // 5 % 4])


@pytest.mark.parametrize("draft", ["copy", "recycle", "suffix"])
def test_drafted_tokens_of_texts_that_repeat_themselves_are_theirs(
    pairs: dict[str, Pair], draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is timed, and a busy machine drafts fewer tokens.
    monkeypatch.setattr("seqmill.models.inference.speculation.marginal_cost", lambda model: 0.02)
    pair = pairs["qwen3"]
    prompts = [(prompt * 30)[:90] for prompt in prompts_of(4, 30)[:6]]
    engine = Engine(pair.ours, EngineSettings(draft=draft, prefill_tokens=PASS, page_tokens=PAGE))
    numbers = [engine.submit(Request(prompt=prompt, max_new_tokens=NEW)) for prompt in prompts]
    while engine.busy:
        engine.step()
    assert engine.statistics.accepted_tokens > NEW
    assert_theirs(pair, prompts, [(engine.results(number) or [])[0].tokens for number in numbers])


def test_an_id_that_ends_texts_ends_none_in_their_prompts(pairs: dict[str, Pair]) -> None:
    pair = pairs["llama"]
    prompts = prompts_of(0, pair.ours.config.vocab_size)
    free = [sequence.tokens for sequence in generate(pair.ours, prompts, NEW)]
    end = free[0][5]
    stopped = generate(pair.ours, [[end, *prompt, end] for prompt in prompts], NEW, stop_ids=[end])
    asked = [[end, *prompt, end] for prompt in prompts]
    assert_theirs(pair, asked, [sequence.tokens + (end,) * (sequence.finish == "stop") for sequence in stopped])
    assert {sequence.finish for sequence in stopped} == {"stop", "length"}
    assert not any(end in sequence.tokens for sequence in stopped)


@pytest.mark.parametrize("levels", [(0, 0), (16, 8), (40, 33)], ids=str)
def test_beginnings_shared_by_all_and_by_some_are_attended_once_and_give_their_tokens(
    pairs: dict[str, Pair], levels: tuple[int, int]
) -> None:
    """Prompts in a tree: two families with a beginning of their own behind one of both."""
    pair = pairs["qwen3"]
    rng = np.random.default_rng(1)
    of_all, of_some = levels
    root = rng.integers(100, size=of_all).tolist()
    families = [rng.integers(100, size=of_some).tolist() for _ in range(2)]
    prompts = [root + family + rng.integers(100, size=length).tolist() for family in families for length in (1, 9, 20)]
    found = generate(pair.ours, prompts, NEW, settings=EngineSettings(page_tokens=PAGE))
    assert_theirs(pair, prompts, [sequence.tokens for sequence in found])


def test_a_model_that_was_trained_here_goes_on_as_transformers_does(tmp_path: Path) -> None:
    """On counting in circles of different lengths, which it has learnt: its tokens are the right ones."""
    config = ModelConfig(vocab_size=64, dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn_dim=64)
    model = Model(config, seed=1)
    circles = [[start + k % size for k in range(60)] for start, size in ((0, 7), (10, 11), (30, 3), (40, 13))]
    ids, segments = torch.tensor(circles).flatten(), Segments.of([60] * len(circles))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    targets = torch.cat([ids[1:], torch.tensor([-100])])
    targets[59::60] = -100
    for _ in range(120):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model.logits(model(ids, segments.positions(), segments)), targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    model.eval().requires_grad_(False)
    export_huggingface(model, tmp_path)
    pair = Pair(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval(), model)
    prompts = [circle[:length] for circle, length in zip(circles, (20, 15, 9, 33), strict=True)]
    found = [sequence.tokens for sequence in generate(model, prompts, 25)]
    assert found == [tuple(circle[len(prompt) :][:25]) for circle, prompt in zip(circles, prompts, strict=True)]
    assert_theirs(pair, prompts, found)
