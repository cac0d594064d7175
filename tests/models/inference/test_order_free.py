"""A set in a prompt: the order of its members changes nothing, and each sees what it would see alone."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models import Engine, EngineSettings, GeneratedSequence, Model, Request
from seqmill.models.inference.order_free import lay_out

HEAD, TAIL = [1, 2, 3], [9, 8]
MEMBERS = ([5, 6, 7, 5], [4], [60, 61], [5, 6])


def prompt_of(members: tuple[list[int], ...]) -> tuple[list[int], list[range]]:
    ids, ranges = list(HEAD), []
    for member in members:
        ranges.append(range(len(ids), len(ids) + len(member)))
        ids += member
    return ids + TAIL, ranges


def run(
    model: Model, members: tuple[list[int], ...], settings: EngineSettings, samples: int = 1
) -> list[GeneratedSequence]:
    ids, ranges = prompt_of(members)
    engine = Engine(model, settings)
    pages = [pool.free for pool in engine._cache.pools]
    number = engine.submit(Request(prompt=ids, members=ranges, max_new_tokens=12, samples=samples))
    while engine.busy:
        engine.step()
    assert [pool.free for pool in engine._cache.pools] == pages
    return engine.results(number) or []


@torch.no_grad()
def dense(model: Model, members: list[list[int]], new: int) -> list[int]:
    """Greedy, without a cache: one pass over the whole text for every token, with an explicit mask."""
    groups = model.config.heads // model.config.kv_heads
    longest = max(map(len, members))
    tail = list(TAIL)
    for _ in range(new):
        ids = HEAD + [token for member in members for token in member] + tail
        position = [*range(len(HEAD)), *(len(HEAD) + at for member in members for at in range(len(member)))]
        position += [len(HEAD) + longest + at for at in range(len(tail))]
        of = [-1] * len(HEAD) + [nth for nth, member in enumerate(members) for _ in member] + [-1] * len(tail)
        mask = torch.tensor(
            [
                [key <= query and (of[key] in (-1, of[query]) or of[query] == -1) for key in range(len(ids))]
                for query in range(len(ids))
            ]
        )

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor = mask) -> Tensor:
            k, v = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
            scores = q.transpose(0, 1) @ k.mT * q.shape[-1] ** -0.5
            return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(0, 1)

        hidden = model.hidden(torch.tensor(ids), torch.tensor(position), attention)
        tail.append(int(model.logits(hidden[-1:]).argmax()))
    return tail[len(TAIL) :]


@pytest.mark.parametrize("budget", [16_384, 3])
def test_the_order_of_members_changes_nothing_and_each_sees_the_beginning_and_itself(model: Model, budget: int) -> None:
    settings = EngineSettings(page_tokens=4, prefill_tokens=budget)
    expected = dense(model, sorted(MEMBERS), 12)
    for members in permutations(MEMBERS):
        assert [list(each.tokens) for each in run(model, members, settings)] == [expected]
    assert [list(each.tokens) for each in run(model, MEMBERS, settings, samples=3)] == [expected] * 3


def test_positions_go_on_behind_the_longest_member() -> None:
    layout = lay_out([10, 11, 30, 31, 20, 40, 41], [range(2, 4), range(4, 5)])
    assert layout.ids == (10, 11, 20, 30, 31, 40, 41)
    assert layout.position.tolist() == [0, 1, 2, 2, 3, 4, 5]
    assert layout.member.tolist() == [-1, -1, 0, 1, 1, -1, -1]
    assert layout.members == (range(2, 3), range(3, 5))
    assert layout.skipped == 1
    assert layout.visible(np.array([3, 6]), np.arange(7)).tolist() == [
        [True, True, False, True, True, True, True],
        [True] * 7,
    ]


@pytest.mark.parametrize("members", [[range(0, 3)], [range(0, 1), range(2, 3)], [range(1, 1)], [range(2, 5)]])
def test_members_that_are_no_set_are_refused(model: Model, members: list[range]) -> None:
    with pytest.raises(UserError, match="must follow one another"):
        Engine(model).submit(Request(prompt=[1, 2, 3], members=members, max_new_tokens=1))
