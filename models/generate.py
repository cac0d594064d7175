"""Packed prefill and ragged decode: real tokens only, no padding on the left.

Prompts lie end to end in one forward pass under a token budget; their keys and values go straight into a cache with
one slot per live request. Every decode step feeds one token per live request; a finished request's slot is taken by
the last one, so that live requests always fill the first slots, and waiting prompts enter as soon as slots are free.

Tensor names end in their axes: T tokens, B live requests, S slots, L positions of a slot, H query heads, K key-value
heads, E numbers per head, D model width, V vocabulary.
"""
# ruff: noqa: N803, N806, N812 (the axes are capital letters)

from collections import deque
from collections.abc import Collection, Sequence, Sized
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.attention import Segments, choose_backend, layer_patterns
from seqmill.models.sampling import Sampling, pick_tokens, request_draws
from seqmill.models.transformer import LayerAttention, Model, packed_attention

PREFILL_TOKENS = 16_384  # most tokens of one packed forward pass; a longer prompt goes alone
MAX_BATCH = 64  # most requests that live at once

_Item = TypeVar("_Item", bound=Sized)  # what waits to be packed; its length is its tokens


@dataclass(frozen=True)
class GeneratedSequence:
    """What was generated for one prompt."""

    tokens: tuple[int, ...]  # new tokens, without the prompt and without the stop token
    finish: Literal["length", "stop"]  # why it ended
    prompt_tokens: int  # length of the prompt


@dataclass
class _Request:
    """A prompt on its way."""

    prompt: Sequence[int]
    draws: np.ndarray  # float64[max_new_tokens]: one random number for each token that may come
    first: range | None = None  # ids that the first new token is one of
    tokens: list[int] = field(default_factory=list)  # new ones
    stopped: bool = False  # a stop token came

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.tokens) == len(self.draws)


class _Cache:
    """Keys and values of the live requests; slot i, positions 0 .. lengths[i] - 1 are filled."""

    def __init__(self, model: Model, slots: int, positions: int) -> None:
        self.config = config = model.config
        shape = (config.layers, slots, positions, config.kv_heads, config.head_dim)
        weight = model.head_weight
        self.keys = torch.zeros(shape, device=weight.device, dtype=weight.dtype)  # [layer]_SLKE
        self.values = torch.zeros_like(self.keys)  # [layer]_SLKE
        self.lengths = torch.zeros(slots, device=weight.device, dtype=torch.int64)  # positions filled

    def prefill_attention(self, first_slot: int, segments: Segments, backend: str) -> LayerAttention:
        """Each document sees itself, and its keys and values fill its slot: `first_slot` for the first one."""
        device = self.lengths.device
        lengths = torch.tensor(segments.lengths)
        slot_T = (torch.repeat_interleave(torch.arange(len(lengths)), lengths) + first_slot).to(device)
        position_T = segments.positions().to(device)
        self.lengths[first_slot : first_slot + len(lengths)] = lengths.to(device)
        inside = packed_attention(segments, backend, self.config)

        def attention(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            self.keys[layer].index_put_((slot_T, position_T), k_TKE)
            self.values[layer].index_put_((slot_T, position_T), v_TKE)
            return inside(layer, q_THE, k_TKE, v_TKE)

        return attention

    def decode_attention(self, live: int) -> LayerAttention:
        """One new token for each of the first `live` slots, which sees of its slot, itself included, what the layer
        lets it see."""
        positions_B = self.lengths[:live].clone()
        slots_B = torch.arange(live, device=positions_B.device)
        filled = int(positions_B.max()) + 1
        keys_L = torch.arange(filled, device=positions_B.device)
        patterns = layer_patterns(self.config)
        seen_B11L = {pattern: pattern.visible(positions_B[:, None], keys_L)[:, None, None] for pattern in set(patterns)}
        self.lengths[:live] += 1

        def attention(layer: int, q_BHE: Tensor, k_BKE: Tensor, v_BKE: Tensor) -> Tensor:
            self.keys[layer].index_put_((slots_B, positions_B), k_BKE)
            self.values[layer].index_put_((slots_B, positions_B), v_BKE)
            k_BKLE, v_BKLE = (x[layer, :live, :filled].transpose(1, 2) for x in (self.keys, self.values))
            return F.scaled_dot_product_attention(
                q_BHE[:, :, None], k_BKLE, v_BKLE, attn_mask=seen_B11L[patterns[layer]], enable_gqa=True
            )[:, :, 0]

        return attention

    def move(self, source: int, target: int) -> None:
        """Let slot `target` hold what slot `source` holds."""
        filled = int(self.lengths[source])
        self.keys[:, target, :filled] = self.keys[:, source, :filled]
        self.values[:, target, :filled] = self.values[:, source, :filled]
        self.lengths[target] = filled


@torch.inference_mode()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    seed: int = 0,
    *,
    first_ids: Sequence[range] | None = None,
    max_batch: int = MAX_BATCH,
    prefill_tokens: int = PREFILL_TOKENS,
) -> list[GeneratedSequence]:
    """Continue every prompt, in the order given.

    A request's tokens depend on its prompt, `seed` and its place in `prompts` alone, not on the other prompts (up to
    the rounding of matrix kernels, which may differ between batch sizes).

    Args:
        max_new_tokens: the length at which a continuation ends if no stop token comes first.
        temperature: 0 takes the likeliest token; otherwise see `Sampling`, also for `top_k` and `top_p`.
        stop_ids: tokens that end a continuation; they are not part of it.
        first_ids: for each prompt the ids that its first new token is one of, for prompts whose end was taken back
            (seqmill.compress.healing); not empty.
        max_batch: most requests that live at once; the cache grows with it.
        prefill_tokens: most prompt tokens of one forward pass.

    Raises:
        UserError: a prompt is empty or holds an id outside the vocabulary, or a setting is impossible.
    """
    sampling = Sampling(temperature, top_k, top_p)
    _check_settings(max_new_tokens=(max_new_tokens, 1), max_batch=(max_batch, 1), seed=(seed, 0))
    _check_ids("prompt", prompts, model.config.vocab_size)
    firsts: Sequence[range | None] = first_ids or [None] * len(prompts)
    requests = [
        _Request(prompt, request_draws(seed, index, max_new_tokens), first)
        for index, (prompt, first) in enumerate(zip(prompts, firsts, strict=True))
    ]
    _continue_all(model, requests, sampling, frozenset(stop_ids), max_batch, prefill_tokens)
    return [
        GeneratedSequence(tuple(request.tokens), "stop" if request.stopped else "length", len(request.prompt))
        for request in requests
    ]


def _continue_all(
    model: Model,
    requests: Sequence[_Request],
    sampling: Sampling,
    stop_ids: frozenset[int],
    max_batch: int,
    prefill_tokens: int,
) -> None:
    """Bring every request to its end; a round prefills what has room, or else decodes one token of all that live."""
    backend = choose_backend("auto", model.device, model.head_weight.dtype, layer_patterns(model.config))
    positions = max((len(request.prompt) + len(request.draws) for request in requests), default=0)
    cache = _Cache(model, min(max_batch, len(requests)), positions)
    waiting = deque(requests)
    live: list[_Request] = []  # the one in place i has slot i
    while waiting or live:
        if entering := _take(waiting, max_batch - len(live), prefill_tokens):
            logits_BV = _prefill(model, cache, len(live), entering, backend)
            live += entering
        else:
            entering = live
            logits_BV = _decode(model, cache, live)
        _append(entering, logits_BV, sampling, stop_ids)
        _leave(live, cache)


def _prefill(model: Model, cache: _Cache, first_slot: int, entering: Sequence[_Request], backend: str) -> Tensor:
    """logits_BV after the prompts of `entering`, which take the slots from `first_slot` on."""
    ids_T, segments = _pack([request.prompt for request in entering], model.device)
    attention = cache.prefill_attention(first_slot, segments, backend)
    hidden_TD = model.hidden(ids_T, segments.positions().to(model.device), attention)
    return model.logits(hidden_TD[segments.cu_seqlens[1:].long() - 1])


def _decode(model: Model, cache: _Cache, live: Sequence[_Request]) -> Tensor:
    """logits_BV after the last token of every live request."""
    ids_B = torch.tensor([request.tokens[-1] for request in live], device=model.device)
    positions_B = cache.lengths[: len(live)].clone()
    return model.logits(model.hidden(ids_B, positions_B, cache.decode_attention(len(live))))


def _append(requests: Sequence[_Request], logits_BV: Tensor, sampling: Sampling, stop_ids: frozenset[int]) -> None:
    draws = np.array([request.draws[len(request.tokens)] for request in requests])
    for row, request in enumerate(requests):
        if request.first is not None and not request.tokens:
            logits_BV[row, : request.first.start] = -torch.inf
            logits_BV[row, request.first.stop :] = -torch.inf
    picked = pick_tokens(logits_BV, torch.from_numpy(draws).to(logits_BV.device), sampling).tolist()
    for request, token in zip(requests, picked, strict=True):
        request.stopped = token in stop_ids
        if not request.stopped:
            request.tokens.append(token)


def _leave(live: list[_Request], cache: _Cache) -> None:
    """Take finished requests out of `live`; the last live one moves into each slot that becomes free."""
    for slot in reversed(range(len(live))):
        if live[slot].finished:
            last = live.pop()
            if slot < len(live):
                live[slot] = last
                cache.move(len(live), slot)


def _take(waiting: deque[_Item], most: int, tokens: int) -> list[_Item]:
    """Take from the front at most `most` items of at most `tokens` tokens together (or one longer item)."""
    taken: list[_Item] = []
    room = tokens
    while waiting and len(taken) < most and (not taken or len(waiting[0]) <= room):
        room -= len(waiting[0])
        taken.append(waiting.popleft())
    return taken


def _pack(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Segments]:
    """int64[T] of all sequences end to end, and where each lies."""
    ids = np.fromiter(chain.from_iterable(sequences), dtype=np.int64)
    return torch.from_numpy(ids).to(device), Segments.of([len(sequence) for sequence in sequences], device)


def _check_settings(**settings: tuple[int, int]) -> None:
    for name, (value, least) in settings.items():
        if value < least:
            raise UserError(f"{name} = {value}: must be {least} or more")


def _check_ids(what: str, sequences: Sequence[Sequence[int]], vocab_size: int) -> None:
    for index, sequence in enumerate(sequences):
        if not len(sequence):
            raise UserError(f"{what} {index} is empty, and there is nothing to go on from; give it at least one token")
        smallest, largest = min(sequence), max(sequence)
        if smallest < 0 or largest >= vocab_size:
            wrong = smallest if smallest < 0 else largest
            raise UserError(
                f"{what} {index} holds the id {wrong}, but the model's vocabulary is 0 .. {vocab_size - 1}; "
                "encode it with the tokenizer that the model was trained with"
            )
