"""Cache policies against one dense pass over the whole text with every score written out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models import Engine, EngineSettings, Model, ModelConfig, Request
from seqmill.models.inference import choosing
from seqmill.models.inference.live import Ready
from seqmill.models.inference.policy import CachePolicy
from seqmill.models.inference.retrieval_heads import retrieval_heads
from seqmill.models.rotary import rotary_table, rotate

NEW = 14
PROMPTS = ([3, 1, 4], list(range(20)), [7, 8] * 5)
SETTINGS = EngineSettings(page_tokens=4, max_batch=2, prefill_tokens=16)


@pytest.fixture
def deep(config: ModelConfig) -> Model:
    model = Model(replace(config, layers=3, nope_every=3), seed=1)
    model.embedding.weight.data.mul_(10.0)
    model.norm.weight.data.mul_(3.0)
    return model


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """The logits of every new token, by the numbers of requests."""
    found: dict[int, list[Tensor]] = {}

    def recorded(ready: Sequence[Ready], logits: Tensor) -> np.ndarray:
        for each, of_one in zip(ready, logits, strict=True):
            found.setdefault(each.live.number, []).append(of_one.clone())
        return pick(ready, logits)

    pick = choosing._pick
    monkeypatch.setattr(choosing, "_pick", recorded)
    return found


def dense(model: Model, policy: CachePolicy, ids: list[int], prompt: int) -> Tensor:
    """logits_TV, where token t >= prompt sees what the policy leaves it."""
    config = model.config
    group = config.heads // config.kv_heads

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for t in range(len(ids)):
            for head in range(config.heads):
                kv = head // group
                keys, values = k[: t + 1, kv], v[: t + 1, kv]
                scores = keys @ q[t, head] * config.head_dim**-0.5
                if t >= prompt and (layer, kv) not in policy.full_heads:
                    near = torch.arange(t + 1) > t - policy.window
                    sinks = (torch.arange(t + 1) < policy.sinks) & ~near
                    gone = ~near & ~sinks
                    if policy.is_near and config.has_rotary(layer):
                        moved = min(t, policy.sinks + policy.window - 1) - t
                        table = rotary_table(torch.tensor([moved]), config.head_dim, config.rope_theta)
                        turned = rotate(q[t : t + 1, head : head + 1], table)[0, 0]
                        scores = torch.where(sinks, keys @ turned * config.head_dim**-0.5, scores)
                    scores = scores.masked_fill(gone, -torch.inf)
                    if policy.has_mean and gone.any():
                        mean = keys[gone].mean(0) @ q[t, head] * config.head_dim**-0.5 + gone.sum().log()
                        scores = torch.cat([scores, mean[None]])
                        values = torch.cat([values, values[gone].mean(0)[None]])
                out[t, head] = scores.softmax(0) @ values
        return out

    with torch.no_grad():
        return model.logits(model.hidden(torch.tensor(ids), torch.arange(len(ids)), attention))


@pytest.mark.parametrize(
    "policy",
    [
        CachePolicy(window=6, sinks=2),
        CachePolicy(window=1, sinks=1),
        CachePolicy(window=7, sinks=0),
        CachePolicy(window=5, sinks=6, is_near=False),
        CachePolicy(window=6, sinks=2, full_heads=frozenset({(0, 1), (2, 0), (1, 0), (1, 1)})),
        CachePolicy(window=6, sinks=2, is_near=False, has_mean=True, full_heads=frozenset({(1, 0)})),
        CachePolicy(window=9, sinks=3, has_mean=True),
    ],
    ids=str,
)
def test_generated_tokens_see_what_the_policy_leaves_them(
    deep: Model, policy: CachePolicy, seen: dict[int, list[Tensor]]
) -> None:
    engine = Engine(deep, replace(SETTINGS, policy=policy))
    pages = [pool.free for pool in engine._cache.pools]
    numbers = [engine.submit(Request(prompt=prompt, max_new_tokens=NEW)) for prompt in PROMPTS]
    while engine.busy:
        engine.step()
    for number, prompt in zip(numbers, PROMPTS, strict=True):
        ids = [*prompt, *(engine.results(number) or [])[0].tokens]
        found = torch.stack(seen[number])
        expected, as_trained = (dense(deep, policy, ids, start) for start in (len(prompt), len(ids)))
        torch.testing.assert_close(found, expected[len(prompt) - 1 : -1], atol=2e-5, rtol=1e-5)
        assert (found - as_trained[len(prompt) - 1 : -1]).abs().max() > 1e-3  # the policy matters
    assert [pool.free for pool in engine._cache.pools] == pages


def test_a_text_without_end_needs_no_more_pages_than_its_window(config: ModelConfig) -> None:
    model = Model(config)
    policy = CachePolicy(window=8, sinks=4)
    engine = Engine(model, EngineSettings(page_tokens=4, cache_tokens=24, prefill_tokens=4, policy=policy))
    number = engine.submit(Request(prompt=[1, 2, 3], max_new_tokens=200))
    while engine.busy:
        engine.step()
    assert len((engine.results(number) or [])[0].tokens) == 200
    assert engine.statistics.most_pages[0] <= 5


def test_the_heads_that_look_back_are_found(config: ModelConfig) -> None:
    """In layer 1 the keys and queries of head 0 are the embeddings themselves, so it attends to equal tokens."""
    model = Model(replace(config, heads=2, kv_heads=2, head_dim=32, dim=32, layers=2, nope_every=1), seed=3)
    model.embedding.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.blocks[0].attention_out.weight.zero_()
        model.blocks[0].down.weight.zero_()
        qkv = model.blocks[1].qkv.weight.view(3, 2, 32, 32)
        qkv[:2, 0] = torch.eye(32) * 3
    assert retrieval_heads(model, share=0.25, tokens=32) == {(1, 0)}
    assert len(retrieval_heads(model, share=0.5, tokens=32)) == 2
    assert retrieval_heads(model, share=0.0) == frozenset()
    with pytest.raises(UserError, match=r"share = 2\.0"):
        retrieval_heads(model, share=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window = 0"),
        ({"window": 3, "sinks": -1}, "sinks = -1"),
        ({"window": 3, "full_heads": frozenset({(0, 9)})}, "full_heads has layer 0, head 9"),
    ],
)
def test_an_impossible_policy_is_refused(model: Model, settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        Engine(model, EngineSettings(policy=CachePolicy(**settings)))
