"""Requests join, advance and leave: packed and chunked prefill, ragged decoding, verified drafts.

A step is one forward pass over the new tokens of many sequences: one token (and what a drafter proposes behind it) of
each sequence that is being continued, then prompts, in the order in which they came, as long as the budget of prompt
tokens lasts; a prompt that does not fit goes on in the next step. A request is admitted only when all pages that it can
ever need are there, so that none is ever thrown out again.
"""
# ruff: noqa: N806 (the axes are capital letters)

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from seqmill.errors import UserError
from seqmill.models.attention import choose_backend, layer_patterns
from seqmill.models.inference.attention.step import Piece, Step
from seqmill.models.inference.cache import Group, KVCache, groups_of
from seqmill.models.inference.choosing import choose
from seqmill.models.inference.drafting import DRAFTERS, NO_DRAFT, Draft, DraftSource
from seqmill.models.inference.live import Live, Ready
from seqmill.models.inference.order_free import lay_out
from seqmill.models.inference.prefixes import PrefixCache
from seqmill.models.inference.requests import Finish, GeneratedSequence, Request, Statistics, check_request
from seqmill.models.inference.sampling import Draws
from seqmill.models.inference.settings import EngineSettings, pages_needed, pages_of_needs, pages_of_settings
from seqmill.models.inference.speculation import MOST_DRAFTED, Speculation
from seqmill.models.inference.stopping import Decode, text_before_stop
from seqmill.models.inference.verify import accepted_path
from seqmill.models.transformer import Model


class Event(NamedTuple):
    """A sequence has a new token, or has ended."""

    request: int  # as `submit` gave it
    sample: int
    token: int | None  # None: it has ended
    finish: Finish | None = None


class Engine:
    """Generation for requests that come and go.

    engine = Engine(model)
    number = engine.submit(Request(prompt=[1, 2, 3], max_new_tokens=20))
    while engine.busy:
        for event in engine.step(): ...
    engine.results(number)

    A request's tokens depend on the request alone, not on what runs beside it (up to the rounding of matrix kernels,
    which may differ between batch sizes).
    """

    @classmethod
    def for_requests(
        cls,
        model: Model,
        requests: Sequence[Request],
        settings: EngineSettings | None = None,
        *,
        decode: Decode | None = None,
        decodes_parts: bool = False,
    ) -> "Engine":
        """An engine whose cache is as large as these requests need, if `settings` do not say how large it is."""
        settings = settings or EngineSettings()
        pages = None
        if settings.cache_tokens is None:
            groups = groups_of(model.config, settings.policy)
            possible = [each for each in requests if 0 < each.samples <= settings.max_batch]
            drafted = MOST_DRAFTED if settings.draft else 0
            needs = [_pages_needed(each, groups, settings, drafted) for each in possible]
            at_once = settings.max_batch // min((each.samples for each in possible), default=1)
            pages = pages_of_needs(needs, at_once, len(groups))
        return cls(model, settings, decode=decode, decodes_parts=decodes_parts, pages=pages)

    def __init__(
        self,
        model: Model,
        settings: EngineSettings | None = None,
        *,
        decode: Decode | None = None,
        decodes_parts: bool = False,
        pages: Sequence[int] | None = None,
        drafts: DraftSource | None = None,
    ) -> None:
        """An engine without requests.

        Args:
            decode: lists of ids -> their bytes, for requests with stop texts.
            decodes_parts: whether the bytes of a list are those of its ids one after the other; it saves decoding a
                whole text at each of its tokens (stopping.text_before_stop).
            drafts: proposes tokens, which a pass verifies several of (drafting.DRAFTERS has some): the same tokens, in
                fewer passes. None: those of `settings.draft`.
            pages: of each group of layers (cache.groups_of); None: what `settings.cache_tokens` says.
        """
        self.settings = settings or EngineSettings()
        self.statistics = Statistics()
        self._model = model
        self._decode, self._decodes_parts = decode, decodes_parts
        policy = self.settings.policy
        if policy is not None:
            policy.check(model.config)
        self._groups = groups_of(model.config, policy)
        if drafts is None and self.settings.draft is not None:
            drafts = DRAFTERS[self.settings.draft]()
        if drafts is not None and policy is not None and policy.has_mean:
            raise UserError(
                "a policy with has_mean lets go of one position a pass: tokens of a draft would see another mean than "
                "one by one; leave out draft or has_mean"
            )
        self._speculation = Speculation.of(model, drafts) if drafts is not None else None
        self._drafted = MOST_DRAFTED if drafts is not None else 0
        dtype, size = model.head_weight.dtype, self.settings.page_tokens
        counts = pages if pages is not None else pages_of_settings(self._groups, self.settings, self._drafted)
        self._cache = KVCache(model.config, counts, size, model.device, dtype, policy)
        self._backend = choose_backend("auto", model.device, dtype, layer_patterns(model.config))
        sees_all = len(self._groups) == 1 and self._groups[0].sees_all
        self._prefixes = PrefixCache(self._cache.pools[0], size) if self.settings.prefix_cache and sees_all else None
        self._waiting: deque[tuple[int, Request]] = deque()
        self._live: list[Live] = []
        self._done: dict[int, list[GeneratedSequence | None]] = {}
        self._numbers = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._live)

    def submit(self, request: Request) -> int:
        """Let a request wait for its turn; the number that it goes by.

        Raises:
            UserError: it cannot be run: its ids, a setting, or more pages or sequences than there are.
        """
        check_request(request, self._model.config.vocab_size)
        if request.samples > self.settings.max_batch:
            raise UserError(
                f"samples = {request.samples} is more than max_batch = {self.settings.max_batch}: they live at once"
            )
        request = self._with_members_in_order(request)
        if request.stop_texts and self._decode is None:
            raise UserError("stop_texts need `decode`: the engine has ids only")
        for pages, pool in zip(
            _pages_needed(request, self._groups, self.settings, self._drafted), self._cache.pools, strict=True
        ):
            if pages > len(pool):
                tokens = len(request.prompt) + request.samples * request.max_new_tokens
                raise UserError(
                    f"a request of {len(request.prompt)} prompt tokens and {request.max_new_tokens} new ones needs "
                    f"{pages} pages, {tokens} tokens, and the cache has {len(pool)} pages of "
                    f"{self.settings.page_tokens}; give it more cache_tokens, or ask for less"
                )
        number, self._numbers = self._numbers, self._numbers + 1
        self._waiting.append((number, request))
        self._done[number] = [None] * request.samples
        return number

    def _with_members_in_order(self, request: Request) -> Request:
        """With the members of its set in the order in which they are stored."""
        if not request.members:
            return request
        if not all(group.sees_all for group in self._groups):
            raise UserError("members need a model whose layers see all, and no cache policy: a window has an order")
        layout = lay_out(request.prompt, request.members)
        return replace(request, prompt=layout.ids, members=layout.members)

    def cancel(self, number: int) -> None:
        """End a request now; sequences of it that have ended stay as they are.

        Raises:
            KeyError: there is no such request, or its results were given before.
        """
        requests = [each.request for each in self._live if each.number == number]
        requests += [request for waiting, request in self._waiting if waiting == number]
        nothing = b"" if any(request.stop_texts for request in requests) else None
        for live in [each for each in self._live if each.number == number]:
            self._end(live, "cancelled")
        for waiting in [each for each in self._waiting if each[0] == number]:
            self._waiting.remove(waiting)
        self._done[number] = [
            each or GeneratedSequence((), "cancelled", len(requests[0].prompt), text=nothing)
            for each in self._done[number]
        ]

    def results(self, number: int) -> list[GeneratedSequence] | None:
        """What came of all samples of a request, which is forgotten then; None while one of them lives.

        Raises:
            KeyError: there is no such request, or its results were given before.
        """
        found = [each for each in self._done[number] if each is not None]
        if len(found) < len(self._done[number]):
            return None
        del self._done[number]
        return found

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One forward pass over what can go on; what it brought."""
        pieces = self._continued() + self._prompts()
        if not pieces:
            return []
        try:
            ready, picked, best = self._chosen(pieces)
        except BaseException:
            self._undo()
            raise
        for each, tokens, successors in zip(ready, picked, best, strict=True):
            self._accept(each, tokens, successors)
        return self._settle(ready)

    def _chosen(
        self, pieces: Sequence[tuple[Live, Piece]]
    ) -> tuple[list[Ready], Sequence[np.ndarray], Sequence[np.ndarray]]:
        """What has a next token after a pass over all pieces, what follows each of its rows, and the likeliest ids
        there."""
        step = Step.of(self._model, self._cache, [piece for _, piece in pieces], self._backend)
        hidden_TD = step.run()
        self.statistics.steps += 1
        self._note_pages()
        first_rows = {piece: int(row) for piece, row in zip(step.pieces, step.first_rows[:-1], strict=True)}
        ready = [each for live, piece in pieces for each in self._written(live, piece, first_rows[piece])]
        top_k = self._speculation.source.top_k if self._speculation is not None else 0
        return ready, *choose(self._model, hidden_TD, ready, top_k)

    def _undo(self) -> None:
        """Be as before a step that failed: requests without a token yet wait again, from the beginning of their
        prompts, since they may count on pages that were never filled, their own or those of others."""
        if self._prefixes is not None:
            self._prefixes.clear()
        for live in reversed(list(self._live)):
            if live.tokens:
                self._cache.trim(live.sequence)
                continue
            self._live.remove(live)
            if live.drafts is not None:
                live.drafts.drafter.close()
            self._cache.close(live.sequence)
            if live.sample == 0:
                self._waiting.appendleft((live.number, live.request))
                self.statistics.prompt_tokens -= len(live.request.prompt)
                self.statistics.reused_tokens -= live.reused

    def _continued(self) -> list[tuple[Live, Piece]]:
        """The last token of every sequence whose prompt is done, and what is proposed behind it."""
        continued = [live for live in self._live if not live.is_prompt]
        self._token_cost = self._speculation.token_cost(len(continued)) if self._speculation is not None else 1.0
        pieces = []
        for live in continued:
            draft = live.drafts.propose(live.room - 1, self._token_cost) if live.drafts is not None else NO_DRAFT
            piece = Piece(live.sequence, np.array([live.tokens[-1], *draft.tokens], np.int64), _parents(draft))
            self._reserve(live, len(piece.tokens))
            self.statistics.drafted_tokens += len(draft)
            pieces.append((live, piece))
        return pieces

    def _prompts(self) -> list[tuple[Live, Piece]]:
        """What the budget of this step lets in of prompts: those that have begun, then waiting ones."""
        pieces = list[tuple[Live, Piece]]()
        budget = self.settings.prefill_tokens
        begun = deque(live for live in self._live if live.is_prompt)
        while budget and (begun or self._admit()):
            live = begun.popleft() if begun else self._live[-1]
            left = len(live.request.prompt) - live.scheduled
            if pieces and left > budget:
                break  # a whole prompt in the next step is faster than two parts, of which one reads the other's keys
            ids = live.request.prompt[live.scheduled : live.scheduled + budget]
            piece = Piece(live.sequence, np.array(ids, np.int64))
            self._reserve(live, len(ids))
            live.scheduled += len(ids)
            budget -= len(ids)
            if self._prefixes is not None and not live.request.members:
                # Later prompts of this very step may use them: all keys are written before any row attends.
                self._prefixes.add(live.request.prompt, live.sequence.tables[0], live.scheduled)
            pieces.append((live, piece))
        return pieces

    def _admit(self) -> bool:
        """Let the first waiting request in, if there is room for it."""
        if not self._waiting:
            return False
        number, request = self._waiting[0]
        if sum(1 if each.tokens else each.request.samples for each in self._live) + request.samples > (
            self.settings.max_batch
        ):
            return False
        known = self._prefixes.find(request.prompt) if self._prefixes is not None and not request.members else []
        need = _pages_needed(request, self._groups, self.settings, self._drafted)
        need[0] -= len(known)
        for g, pool in enumerate(self._cache.pools):
            promised = sum(max(0, each.need[g] - each.sequence.taken[g]) for each in self._live)
            missing = promised + need[g] - pool.free
            if missing > 0 and (self._prefixes is None or self._prefixes.evictable(known) < missing):
                return False
        self._waiting.popleft()
        self._live.append(self._begin(number, request, need, known))
        self.statistics.prompt_tokens += len(request.prompt)
        self.statistics.reused_tokens += self._live[-1].reused
        return True

    def _begin(self, number: int, request: Request, need: list[int], known: Sequence[int]) -> Live:
        sequence = self._cache.open()
        sequence.prompt = len(request.prompt)
        sequence.layout = lay_out(request.prompt, request.members) if request.members else None
        if known:
            self._cache.pools[0].share(known)
            sequence.tables[0].extend(known)
            sequence.length = len(known) * self.settings.page_tokens
        draws = Draws(request.seed, request.place)
        live = Live(number, 0, request, sequence, draws, need, sequence.length, sequence.length)
        self._draft_for(live)
        return live

    def _draft_for(self, live: Live) -> None:
        if self._speculation is not None:
            live.drafts = self._speculation.open(list(live.request.prompt))

    def _reserve(self, live: Live, tokens: int) -> None:
        if self._prefixes is not None:
            pages = -(-(live.sequence.length + tokens) // self.settings.page_tokens)
            self._prefixes.evict(pages - len(live.sequence.tables[0]) + 1)  # and one for a shared page's copy
        self._cache.reserve(live.sequence, tokens)

    def _written(self, live: Live, piece: Piece, first_row: int) -> list[Ready]:
        """What has a next token now that a piece is in the cache: nothing while its prompt goes on; all samples of a
        request whose prompt is done."""
        if live.tokens:
            return [Ready(live, piece, first_row)]
        self._cache.commit(live.sequence, len(piece.tokens))
        if live.is_prompt:
            return []
        last = first_row + len(piece.tokens) - 1
        return [Ready(each, None, last) for each in [live, *self._forks(live)]]

    def _accept(self, ready: Ready, picked: np.ndarray, successors: np.ndarray) -> None:
        """Append the tokens that the model chose: one, and one more for every drafted token that it would have chosen
        itself."""
        live, piece = ready.live, ready.piece
        path = accepted_path(piece.tokens, piece.parents, picked) if piece is not None else np.zeros(1, np.int64)
        before = len(live.tokens)
        for token in picked[path].tolist():
            if token in live.request.stop_ids:
                live.finish = "stop"
            else:
                live.tokens.append(token)
                self._look_for_texts(live)
            if live.finish is None and not live.room:
                live.finish = "length"
            if live.finish is not None:
                break
        ready.new = live.tokens[before:]
        accepted = min(len(path) - 1, len(ready.new))
        self.statistics.new_tokens += len(ready.new)
        if live.drafts is not None:
            likeliest = successors[path] if successors.shape[1] else None
            live.drafts.observe(ready.new, likeliest, accepted, self._token_cost)
        if piece is not None:
            self.statistics.accepted_tokens += accepted
            length = live.sequence.length
            if len(path) > 1 and path[-1] >= len(path):  # of a tree: accepted tokens do not lie side by side
                self._cache.move(live.sequence, length + path[1:], length + 1)
            self._cache.commit(live.sequence, len(path))
            self._cache.trim(live.sequence)

    def _forks(self, live: Live) -> list[Live]:
        """The other samples of a request whose prompt is done, which begin with the same pages."""
        shared = len(live.request.prompt) // self.settings.page_tokens
        whole = _pages_needed(live.request, self._groups, self.settings, self._drafted)
        made = []
        for sample in range(1, live.request.samples):
            draws = Draws(live.request.seed, live.request.place, sample)
            sequence = self._cache.fork(live.sequence)
            need = [
                -(-(len(live.request.prompt) + live.request.max_new_tokens - 1) // self.settings.page_tokens) - shared
                if group.sees_all
                else pages // live.request.samples
                for group, pages in zip(self._groups, whole, strict=True)
            ]
            made.append(Live(live.number, sample, live.request, sequence, draws, need, live.scheduled))
            self._draft_for(made[-1])
        is_partial = bool(made) and len(live.request.prompt) % self.settings.page_tokens > 0
        for g, each in enumerate(zip(*(one.need for one in made), strict=True)):
            # Whoever writes first copies the last page of the prompt, and that may be this one, which has counted it.
            live.need[g] += (is_partial and self._groups[g].sees_all) - sum(each)
        self._live += made
        return made

    def _settle(self, ready: Sequence[Ready]) -> list[Event]:
        """Tell the new tokens, and end what is at its end."""
        events = []
        for each in ready:
            live = each.live
            events += [Event(live.number, live.sample, token) for token in each.new]
            if live.finish is not None:
                self._end(live, live.finish)
                events.append(Event(live.number, live.sample, None, live.finish))
        return events

    def _look_for_texts(self, live: Live) -> None:
        if live.request.stop_texts:
            assert self._decode is not None
            stops = live.request.stop_texts
            live.text = text_before_stop(live.tokens, stops, self._decode, self._decodes_parts)
            if live.text is not None:
                live.finish = "stop"

    def _end(self, live: Live, finish: Finish) -> None:
        live.finish = finish
        self._live.remove(live)
        if live.drafts is not None:
            live.drafts.drafter.close()
        self._cache.close(live.sequence)
        if live.request.stop_texts and live.text is None:
            assert self._decode is not None
            live.text = self._decode([live.tokens])[0]
        self._done[live.number][live.sample] = live.result

    def _note_pages(self) -> None:
        used = [len(pool) - pool.free for pool in self._cache.pools]
        before = self.statistics.most_pages or used
        self.statistics.most_pages = [max(pair) for pair in zip(before, used, strict=True)]


def _pages_needed(request: Request, groups: Sequence[Group], settings: EngineSettings, drafted: int) -> list[int]:
    prompt, new = len(request.prompt), request.max_new_tokens
    return pages_needed(prompt, new, request.samples, groups, settings, drafted)


def _parents(draft: Draft) -> np.ndarray | None:
    """int64[1 + n] of a piece: the last known token, and the draft behind it; None for a chain."""
    if not len(draft):
        return None
    parents = np.array([-1, *(draft.parents + 1)], np.int64)
    return None if (parents == np.arange(-1, len(draft))).all() else parents
