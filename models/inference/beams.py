"""Beam search: the hypotheses of many prompts go on in one ragged forward pass per step.

A prompt is read once. Its hypotheses share its pages, and those of what they have in common; a hypothesis that dies
gives its own back at once. A prompt's search begins only when all pages that it can ever need are there, so that none
is ever thrown out again.
"""
# ruff: noqa: N803, N806 (the axes are capital letters: R hypotheses, D model width, C tokens that may follow each)

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.attention import choose_backend, layer_patterns
from seqmill.models.inference.attention.step import Piece, Step
from seqmill.models.inference.cache import CachedSequence, KVCache, groups_of
from seqmill.models.inference.hypotheses import Beam, BeamSettings, Following, Group, Hypothesis
from seqmill.models.inference.requests import check_ids
from seqmill.models.inference.settings import EngineSettings, pages_needed, pages_of_needs, pages_of_settings
from seqmill.models.loss import CHUNK_LOGITS
from seqmill.models.transformer import Model


def beam_search(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    beams: int = 4,
    groups: int = 1,
    diversity: float = 0.0,
    length_penalty: float = 1.0,
    stop_ids: Collection[int] = (),
    *,
    settings: EngineSettings | None = None,
) -> list[list[Beam]]:
    """The likeliest continuations of every prompt that a search of limited width finds, best scores first.

    With one group this is the beam search of transformers' `generate` (its early_stopping=False); with several, diverse
    beam search (see `hypotheses`). A prompt gets `beams` continuations, or fewer where its vocabulary has not so many.

    Args:
        max_new_tokens: the length at which a continuation ends if no stop token comes first.
        beams: hypotheses of a prompt that are followed at one time; 1 is greedy generation.
        groups: into which they are divided; each group finds beams / groups continuations, which may be those of
            another group too.
        diversity: what a token costs, in nats, for every time that an earlier group chose it at the same step; 0 lets
            all groups find the same. It steers the search and is part of no score.
        length_penalty: scores are log-probabilities divided by length ** length_penalty, the stop token counted.
        stop_ids: tokens that end a continuation; they are not part of it.
        settings: how much is done at once; of `max_batch` sequences every prompt takes `beams`. No prompts are
            remembered, whatever its `prefix_cache`. None: a cache that is as large as the prompts need.

    Raises:
        UserError: a setting is impossible, a prompt is empty or holds an id outside the vocabulary, or its hypotheses
            are more than `settings` allow.
    """
    settings = settings or EngineSettings()
    if settings.policy is not None or settings.draft is not None:
        raise UserError("beam_search follows many hypotheses as the model was trained: leave out policy and draft")
    how = BeamSettings(
        max_new_tokens=max_new_tokens,
        beams=beams,
        groups=groups,
        diversity=diversity,
        length_penalty=length_penalty,
        stop_ids=frozenset(stop_ids),
    )
    searches = Searches(model, prompts, how, settings)
    while searches.busy:
        searches.step()
    return searches.found


@dataclass(eq=False)
class Search:
    """A prompt whose continuations are looked for."""

    place: int  # among the prompts
    prompt: Sequence[int]
    need: list[int]  # of each group of layers: pages that it may come to hold
    groups: list[Group]
    sequences: dict[Hypothesis, CachedSequence]  # of all live hypotheses: all but their last token
    scheduled: int = 0  # tokens of the prompt that are in the cache

    @property
    def is_prompt(self) -> bool:
        """Whether tokens of its prompt are still to come."""
        return self.scheduled < len(self.prompt)


@dataclass(eq=False)
class Searches:
    """The searches of all prompts.

    Raises:
        UserError: a prompt cannot be searched from.
    """

    model: Model
    prompts: Sequence[Sequence[int]]
    how: BeamSettings
    settings: EngineSettings
    found: list[list[Beam]] = field(init=False)  # for each prompt, best first, when its search has ended
    cache: KVCache = field(init=False)
    live: list[Search] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        model, settings = self.model, self.settings
        for place, prompt in enumerate(self.prompts):
            check_ids(f"prompt {place}", prompt, model.config.vocab_size)
        if self.how.beams > settings.max_batch:
            raise UserError(
                f"beams = {self.how.beams} is more than max_batch = {settings.max_batch}: they live at once"
            )
        groups = groups_of(model.config)
        new, beams = self.how.max_new_tokens, self.how.beams
        self._needs = [pages_needed(len(prompt), new, beams, groups, settings) for prompt in self.prompts]
        pages = pages_of_settings(groups, settings)
        if settings.cache_tokens is None:
            pages = pages_of_needs(self._needs, settings.max_batch // beams, len(groups))
        for place, need in enumerate(self._needs):
            for missing, there in zip(need, pages, strict=True):
                if missing > there:
                    raise UserError(
                        f"prompt {place} of {len(self.prompts[place])} tokens and {self.how.beams} beams of "
                        f"{self.how.max_new_tokens} need {missing} pages, and the cache has {there} pages of "
                        f"{settings.page_tokens} tokens; give it more cache_tokens, or ask for less"
                    )
        dtype = model.head_weight.dtype
        self.cache = KVCache(model.config, pages, settings.page_tokens, model.device, dtype)
        self.found = [[] for _ in self.prompts]
        self._backend = choose_backend("auto", model.device, dtype, layer_patterns(model.config))
        self._waiting = deque(range(len(self.prompts)))

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self.live)

    @torch.inference_mode()
    def step(self) -> None:
        """One forward pass over the last tokens of all hypotheses and over what the budget lets in of prompts."""
        pieces = [*self._continued(), *self._prompts()]
        step = Step.of(self.model, self.cache, [piece for _, _, piece in pieces], self._backend)
        hidden_TD = step.run()
        for piece in step.pieces:
            self.cache.commit(piece.sequence, len(piece.tokens))
        last_rows = dict(zip(step.pieces, (step.first_rows[1:] - 1).tolist(), strict=True))
        ready = {hypothesis: last_rows[piece] for search, hypothesis, piece in pieces if not search.is_prompt}
        rows_R = torch.tensor([*ready.values()], dtype=torch.int64, device=hidden_TD.device)
        following = dict(zip(ready, self._following(hidden_TD.index_select(0, rows_R)), strict=True))
        for search in [search for search in self.live if not search.is_prompt]:
            chosen: list[int] = []
            for group in search.groups:
                group.advance(following, chosen, self.how)
            self._follow(search)

    def _continued(self) -> Iterator[tuple[Search, Hypothesis, Piece]]:
        """The last tokens of all hypotheses whose prompts are done."""
        for search in self.live:
            if not search.is_prompt:
                for hypothesis, sequence in search.sequences.items():
                    self.cache.reserve(sequence, 1)
                    yield search, hypothesis, Piece(sequence, np.array([hypothesis.token]))

    def _prompts(self) -> Iterator[tuple[Search, Hypothesis, Piece]]:
        """What the budget of this step lets in of prompts: those that have begun, then waiting ones."""
        budget = self.settings.prefill_tokens
        begun = deque(search for search in self.live if search.is_prompt)
        while budget and (begun or self._admit()):
            search = begun.popleft() if begun else self.live[-1]
            ids = search.prompt[search.scheduled : search.scheduled + budget]
            search.scheduled += len(ids)
            budget -= len(ids)
            ((hypothesis, sequence),) = search.sequences.items()
            self.cache.reserve(sequence, len(ids))
            yield search, hypothesis, Piece(sequence, np.array(ids, np.int64))

    def _admit(self) -> bool:
        """Let the first waiting prompt in, if there is room for it."""
        if not self._waiting or (len(self.live) + 1) * self.how.beams > self.settings.max_batch:
            return False
        place = self._waiting[0]
        promised = np.sum([self._needs[place], *(search.need for search in self.live)], axis=0)
        if any(promised > [len(pool) for pool in self.cache.pools]):
            return False
        self._waiting.popleft()
        nothing = Hypothesis()
        groups = [Group([nothing]) for _ in range(self.how.groups)]
        self.live.append(Search(place, self.prompts[place], self._needs[place], groups, {nothing: self.cache.open()}))
        return True

    def _following(self, hidden_RD: Tensor) -> Iterator[Following]:
        """The likeliest next tokens of every row, a chunk of logits at a time."""
        vocab_size = self.model.config.vocab_size
        count = min(self.how.tokens_seen, vocab_size)
        chunk = max(1, CHUNK_LOGITS[self.model.device.type] // self.model.config.padded_vocab)
        for hidden_ND in hidden_RD.split(chunk):
            logits_NV = self.model.logits(hidden_ND)
            best_NC, tokens_NC = logits_NV.topk(count, dim=-1)
            log_p_NC = best_NC.double() - logits_NV.logsumexp(dim=-1, keepdim=True)
            yield from map(Following, tokens_NC.cpu().numpy(), log_p_NC.cpu().numpy())

    def _follow(self, search: Search) -> None:
        """Hand the pages of hypotheses on to those that follow them; the last one's of a line come back."""
        children: dict[Hypothesis | None, list[Hypothesis]] = {}
        for group in search.groups:
            for hypothesis in group.live:
                children.setdefault(hypothesis.parent, []).append(hypothesis)
        for parent in [each for each in search.sequences if each not in children]:  # first: others need the room
            self.cache.close(search.sequences.pop(parent))
        parents, search.sequences = search.sequences, {}
        for parent, sequence in parents.items():
            first, *others = children[parent]
            search.sequences |= {each: self.cache.fork(sequence) for each in others}
            search.sequences[first] = sequence
        if not search.sequences:
            beams = [beam for group in search.groups for beam in group.finished]
            self.found[search.place] = sorted(beams, key=lambda beam: -beam.score)
            self.live.remove(search)
