"""What a model needs to tell held-out documents: exact code lengths by source, in bits per byte of text.

Every token of every document is charged once, the end-of-document id included, and a document's first token, before
which there is nothing, costs as much as any id of the vocabulary: log2(ids) bits. So the sum is the length of a code
from which the documents could be told again, and it compares across tokenizers and models (compress.CodeLength's
`bits_per_byte_of_all`). An id that the tokenizer puts before every document (`start_id`) is known and costs nothing.

The same numbers come out whatever the batch size and the number of ranks, but for the rounding of matrix kernels.
"""
# ruff: noqa: N803, N806, N815 (the axes of tensors are capital letters)

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.attention import HALF_TYPES, Segments, choose_backend
from seqmill.models.evaluation.held_out import HeldOut, Windows
from seqmill.models.evaluation.source_loss import SourceLoss
from seqmill.models.loss import CHUNK_LOGITS, IGNORED
from seqmill.models.transformer import Model

Int64s = npt.NDArray[np.int64]


@torch.no_grad()
def evaluate(
    model: Model,
    held_out: HeldOut,
    *,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> dict[str, SourceLoss]:
    """What `model` needs for this rank's share of the documents, by source; `gather_losses` adds up all ranks.

    All ranks make the same number of forward passes, so a sharded model's collectives meet. Beside the model, memory
    holds 32 bytes a window and one forward pass of `batch_tokens` tokens.

    Args:
        dtype: of matrix products, as in training; None: that of the weights.
        backend: of attention, as for training.

    Raises:
        UserError: the tokens' vocabulary is larger than the model's, or a loss is no finite number.
    """
    store = held_out.store
    held_out.require_vocabulary(model.config.vocab_size)
    dtype = dtype or model.head_weight.dtype
    backend = choose_backend(backend, model.device, dtype)
    sums = np.zeros(len(store.sources))
    with _evaluating(model), _precision(model.device, dtype):
        for batch in _share(held_out, rank, world_size):
            nats_T = _target_nats(model, batch.inputs_T, batch.targets_T, batch.lengths, backend, dtype)
            sums += np.bincount(batch.source_T, weights=nats_T.double().cpu().numpy(), minlength=len(sums))
    if not np.isfinite(sums).all():
        worst = store.sources[int(np.argmin(np.isfinite(sums)))]
        raise UserError(
            f"the loss on held-out documents of {worst} is no finite number: the weights are damaged, or their type "
            "cannot hold what they compute; go back to an earlier checkpoint, or evaluate in float32"
        )
    counts = held_out.counts() if rank == 0 else {}
    nats_of = dict(zip(store.sources, sums.tolist(), strict=True))
    return {name: counts.get(name, SourceLoss()) + SourceLoss(nats=nats_of[name]) for name in sorted(nats_of)}


@dataclass(frozen=True, eq=False)
class _Batch:
    inputs_T: Int64s
    targets_T: Int64s  # IGNORED where another window is charged
    lengths: list[int]  # of the windows
    source_T: npt.NDArray[np.int16]


def _share(held_out: HeldOut, rank: int, world_size: int) -> Iterator[_Batch]:
    """Every world_size-th batch from `rank` on; at the end those who have none left read a window without targets."""
    windows = held_out.windows
    batches = windows.batches(held_out.config.batch_tokens)
    for first in range(0, len(batches), world_size):
        chosen = batches[first + rank] if first + rank < len(batches) else slice(0, 1)
        batch = _read(held_out, windows, chosen)
        if first + rank >= len(batches):
            batch.targets_T[:] = IGNORED
        yield batch


def _read(held_out: HeldOut, windows: Windows, chosen: slice) -> _Batch:
    document, start, stop = windows.document[chosen], windows.start[chosen], windows.stop[chosen]
    ids = held_out.store.gather(held_out.items[document], start, stop + 1).astype(np.int64)
    lengths = stop - start
    firsts = np.cumsum(lengths + 1) - lengths - 1
    inputs, targets = np.delete(ids, firsts + lengths), np.delete(ids, firsts)
    place = np.arange(len(inputs)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    targets[place < np.repeat(windows.skip[chosen], lengths)] = IGNORED
    return _Batch(inputs, targets, lengths.tolist(), np.repeat(held_out.sources[document], lengths))


def _target_nats(
    model: Model, inputs_T: Int64s, targets_T: Int64s, lengths: list[int], backend: str, dtype: torch.dtype
) -> Tensor:
    """float32[T]: -log p of every target, 0 for those that are ignored; a chunk of logits at a time."""
    device = model.device
    inputs, targets = (torch.from_numpy(part).to(device) for part in (inputs_T, targets_T))
    segments = Segments.of(lengths, device)
    hidden_TD = model(inputs, segments.positions().to(device), segments, backend).to(dtype)
    chunk = max(1, CHUNK_LOGITS[device.type] // model.config.padded_vocab)
    parts = []
    for hidden_CD, targets_C in zip(hidden_TD.split(chunk), targets.split(chunk), strict=True):
        counted_C = targets_C != IGNORED
        logits_CV = model.logits(hidden_CD)
        picked_C = logits_CV.gather(1, targets_C.where(counted_C, 0)[:, None])[:, 0]
        parts.append((logits_CV.logsumexp(dim=1) - picked_C) * counted_C)
    return torch.cat(parts)


@contextlib.contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _precision(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype) if dtype in HALF_TYPES else contextlib.nullcontext()
