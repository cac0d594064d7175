"""Small decoders trained on a stream of ids for a number of floating-point operations, and what they say of held-out
text: a loop over the pieces of seqmill.models, with a rate that stays at its peak, so that every point of a run is as
good a place to stop as any other.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seqmill.models.attention import Segments
from seqmill.models.config import ModelConfig, find_preset, preset_config
from seqmill.models.loss import PARTS, cross_entropy_parts
from seqmill.models.training.optim import Optimizer
from seqmill.models.transformer import Model

CONTEXT = 128  # tokens of a row
ROWS = 8  # of an update
RATE_SHARE = 0.5  # of the preset's peak rate, for it is kept to the end
WARM_UP = 50  # updates, or a tenth of them if there are fewer
EVALUATED_ROWS = 64  # at a time
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Stream:
    """Documents as ids in a row: an end id first, and behind every document."""

    ids: np.ndarray  # int64[1 + tokens]
    vocab_size: int  # the end id is the last
    bytes: int  # of the text

    @classmethod
    def of(cls, codes: Sequence[np.ndarray], num_bytes: int, ids: int) -> "Stream":
        """The stream of documents whose ids are below `ids`."""
        end = np.array([ids], np.int64)
        parts = [end, *(part for code in codes for part in (code.astype(np.int64), end))]
        return cls(np.concatenate(parts), ids + 1, num_bytes)

    @property
    def tokens(self) -> int:
        """Ids that are predicted: all of all documents, and their ends."""
        return len(self.ids) - 1

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each id that is predicted."""
        return self.bytes / self.tokens


@dataclass(frozen=True)
class Point:
    """What a model says of held-out text after some training."""

    flops: float
    bytes: float  # of training text that it has seen, repeats included
    tokens: int
    bits_per_byte: float  # all ids and ends of documents, over the bytes of the text
    nats_per_id: float  # ends of documents left out


def flops_per_token(model: ModelConfig, softmax: bool = True) -> float:
    """Floating-point operations of training on one token, three times those of reading it: two for each weight, and
    attention to half of a row (specification C8; Kaplan et al. 2020, section 2.1). Embeddings are looked up."""
    weights = model.parameters - model.padded_vocab * model.dim + softmax * model.dim * model.vocab_size
    return 6.0 * weights + 6.0 * model.layers * CONTEXT * model.heads * model.head_dim


def train(
    training: Stream, held_out: Stream, preset: str, stops: Sequence[int], seed: int, device: str
) -> Iterator[Point]:
    """Train one model on rows in an order of the seed, over and over, and look at it when it has seen so many tokens.

    Args:
        preset: shape and rate, a name in `PRESETS`.
        stops: tokens, ascending; rounded to whole updates, at least one.
        seed: of the first weights and of the order of rows.
    """
    config = preset_config(preset, training.vocab_size)
    model = Model(config, seed).to(device)
    optimizer = Optimizer(model, "adamw", BETAS, WEIGHT_DECAY)
    per_update = ROWS * CONTEXT
    updates = [max(1, round(stop / per_update)) for stop in stops]
    warm_up = max(1, min(WARM_UP, updates[-1] // 10))
    rows = _rows(training, seed)
    for update in range(1, updates[-1] + 1):
        rate = RATE_SHARE * find_preset(preset).learning_rate * min(1.0, update / warm_up)
        chosen = np.stack([next(rows) for _ in range(ROWS)])
        total, _ = _losses(model, chosen, training.vocab_size)
        (total / per_update).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step(rate)
        if update in updates:
            seen = update * per_update
            bits, nats = evaluate(model, held_out)
            yield Point(seen * flops_per_token(config), seen * training.bytes_per_token, seen, bits, nats)


def evaluate(model: Model, stream: Stream) -> tuple[float, float]:
    """Bits per byte of a stream, every id predicted once, and nats per id that is no end of a document."""
    ends = stream.ids[1:] == stream.vocab_size - 1
    sums = torch.zeros(len(PARTS), dtype=torch.float64)
    whole = stream.tokens // CONTEXT
    with torch.no_grad():
        for first in range(0, whole, EVALUATED_ROWS):
            places = np.arange(first, min(first + EVALUATED_ROWS, whole))[:, None] * CONTEXT
            sums += _losses(model, stream.ids[places + np.arange(CONTEXT + 1)], stream.vocab_size)[1].double().cpu()
        if stream.tokens % CONTEXT:
            sums += _losses(model, stream.ids[None, whole * CONTEXT :], stream.vocab_size)[1].double().cpu()
    text, end, _ = sums.tolist()
    return (text + end) / math.log(2) / stream.bytes, text / int((~ends).sum())


def _rows(stream: Stream, seed: int) -> Iterator[np.ndarray]:
    """int64[context + 1], over and over: cut at another place in every pass, in another order."""
    rng = np.random.default_rng(seed)
    while True:
        shift = int(rng.integers(min(CONTEXT, stream.tokens)))
        for row in rng.permutation((stream.tokens - shift) // CONTEXT or 1):
            place = shift + row * CONTEXT
            yield np.resize(stream.ids[place : place + CONTEXT + 1], CONTEXT + 1)


def _losses(model: Model, rows: np.ndarray, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of all targets of rows [rows, context + 1], and those of text and of ends: float32[2]."""
    device = model.device
    segments = Segments.of([rows.shape[1] - 1] * len(rows), device)
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(part)).reshape(-1) for part in (rows[:, :-1], rows[:, 1:]))
    inputs, targets = inputs.to(device), targets.to(device)
    hidden = model(inputs, segments.positions().to(device), segments)
    return cross_entropy_parts(hidden, model.head_weight, targets, vocab_size, (targets == vocab_size - 1).long())
