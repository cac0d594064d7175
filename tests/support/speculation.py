"""Greedy decoding of a language of few rules, plain and with drafts: what drafters are tested with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from seqmill.models.inference.drafting import Draft, Drafter, DraftSource

Language = Callable[[Sequence[int]], list[int]]  # context -> all ids, likeliest first


def language(vocab_size: int, order: int, seed: int) -> Language:
    """A model whose ranking of the ids is drawn anew for every `order` last tokens: short orders soon go in circles."""

    def ranking(context: Sequence[int]) -> list[int]:
        last = [int(token) + 1 for token in context[-order:]]
        return np.random.default_rng([seed, *last]).permutation(vocab_size).tolist()

    return ranking


def written_by(model: Language, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest next token, `count` times."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(model(tokens)[0])
    return tokens[len(prompt) :]


@dataclass(frozen=True)
class Decoded:
    tokens: list[int]
    passes: int
    accepted: list[int]  # per pass


def decode(model: Language, source: DraftSource, prompt: Sequence[int], count: int, limits: Iterable[int]) -> Decoded:
    """`count` tokens by passes that verify a draft of at most the next of `limits` tokens."""
    drafter, tokens, accepted = source.open(prompt), list(prompt), []
    for limit in limits:
        draft = drafter.propose(limit)
        check(draft, limit)
        path = verify(model, tokens, draft)[: count - (len(tokens) - len(prompt))]
        accepted.append(len(path) - 1)
        tell(drafter, source, model, tokens, path)
        tokens += path
        if len(tokens) - len(prompt) == count:
            drafter.close()
            return Decoded(tokens[len(prompt) :], len(accepted), accepted)
    raise AssertionError("too few limits")


def tell(drafter: Drafter, source: DraftSource, model: Language, context: Sequence[int], tokens: Sequence[int]) -> None:
    """Let a drafter observe tokens, with their successors where it wants them."""
    whole = [*context, *tokens]
    rankings = [model(whole[:end])[: source.top_k] for end in range(len(context), len(whole))]
    drafter.observe(tokens, np.array(rankings, np.int64).reshape(len(tokens), -1) if source.top_k else None)


def verify(model: Language, context: Sequence[int], draft: Draft) -> list[int]:
    """The drafted tokens that are the model's own, and its next one."""
    children = {(parent, token): node for node, (token, parent) in enumerate(pairs(draft))}
    path: list[int] = []
    node: int | None = -1
    while node is not None:
        path.append(model([*context, *path])[0])
        node = children.get((node, path[-1]))
    return path


def check(draft: Draft, most: int) -> None:
    """Whether a draft is a tree of at most `most` tokens, parents first, with siblings that differ."""
    assert draft.tokens.dtype == draft.parents.dtype == np.int64
    assert draft.tokens.shape == draft.parents.shape == (len(draft),)
    assert len(draft) <= most
    assert all(-1 <= parent < node for node, parent in enumerate(draft.parents))
    assert len(set(pairs(draft))) == len(draft)
    assert (draft.tokens >= 0).all()


def pairs(draft: Draft) -> list[tuple[int, int]]:
    """(token, parent) of every node."""
    return list(zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True))
