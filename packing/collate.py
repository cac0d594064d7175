"""A batch of packed rows as the arguments of its consumer: `DataLoader(dataset, batch_size=None, collate_fn=...)`.

    collator         for                                                    padding
    varlen           torch.nn.attention.varlen.varlen_attn                  none
    flash            flash_attn_varlen_func                                 none
    flex             FlexAttention, with `document_mask`                    none, or as pad_to_multiple
    hf_padding_free  model(**inputs) of transformers, one row of all tokens none
    padded           model(**inputs) of transformers, a row per segment     every segment to the longest one
    pad_to_multiple  tensor and context parallelism                         one segment of pads at the end
    pad_segments     Megatron and Transformer Engine, THD layout            every segment to a multiple

Options are bound by functools.partial: `collate_fn=partial(flex, multiple=128)`. All take the batch of a
`PackedDataset` or `MixedDataset`, on the CPU. They return it with what they add or change; the two for transformers
return what a model's forward takes and nothing else.

Pads are never part of a document: they have the target -100, positions of their own, and a segment of their own or, in
`padded` and `pad_segments`, a place behind the last token of one, which causal attention never looks at.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.packing.row_kernels import IGNORED

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Batch = Mapping[str, Any]


def varlen(batch: Batch) -> dict[str, Any]:
    """The batch with "attention", for `varlen_attn(q, k, v, **batch["attention"], window_size=(-1, 0))`."""
    bounds, longest = batch["cu_seqlens"], batch["max_seqlen"]
    return {**batch, "attention": {"cu_seq_q": bounds, "cu_seq_k": bounds, "max_q": longest, "max_k": longest}}


def flash(batch: Batch) -> dict[str, Any]:
    """The batch with "attention", for `flash_attn_varlen_func(q, k, v, **batch["attention"], causal=True)`."""
    bounds, longest = batch["cu_seqlens"], batch["max_seqlen"]
    return {
        **batch,
        "attention": {
            "cu_seqlens_q": bounds,
            "cu_seqlens_k": bounds,
            "max_seqlen_q": longest,
            "max_seqlen_k": longest,
        },
    }


def flex(batch: Batch, multiple: int = 1, pad_id: int = 0) -> dict[str, Any]:
    """The batch with "document_ids", int32[T], for `document_mask`.

    Args:
        multiple: pad to a multiple of this many tokens (`pad_to_multiple`): FlexAttention compiles for a length, and
            its blocks have 128 tokens.
    """
    batch = pad_to_multiple(batch, multiple, pad_id)
    return {**batch, "document_ids": _segment_of_tokens(batch["cu_seqlens"]).to(torch.int32)}


def document_mask(document_ids: Tensor) -> "BlockMask":
    """The block mask of causal attention within documents, for `flex_attention(q, k, v, block_mask=...)`.

    Make it once per batch, where the model is, and use it in all layers.

    Args:
        document_ids: int32[T] of `flex`, on the device of the model.
    """
    from torch.nn.attention.flex_attention import create_block_mask  # here: it takes a second to import

    tokens = len(document_ids)

    def same_document(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_ids[query] == document_ids[key]) & (query >= key)

    return create_block_mask(same_document, None, None, tokens, tokens, device=document_ids.device.type)


def hf_padding_free(batch: Batch) -> dict[str, Any]:
    """What `model(**inputs)` of a transformers causal LM takes for one row of documents that do not see each other.

    Flash attention takes the cu_seq_lens, state space layers seq_idx, and sdpa and eager the position ids, which
    restart in every segment. These two look for documents only where there is no attention_mask and no cache: so there
    is no mask here, and use_cache is False. With the cache that configurations ask for, documents would see each other.

    Of the targets, `labels` can tell only those that are tokens of the same segment, as the model shifts them by one:
    the first label of a segment is -100, and the target behind a cut document is missing. `shift_labels` has all of
    them in their places, and is what losses take that know it. The loss is summed and divided by num_items_in_batch,
    the targets of all ranks: sum it over ranks, without a mean. A `Trainer` counts by itself.

    Returns:
        input_ids, position_ids, labels, shift_labels int64[1, T]; cu_seq_lens_q and _k int32[n + 1];
        max_length_q and _k int; seq_idx int32[1, T]; num_items_in_batch int; use_cache False.

    Raises:
        UserError: the batch has loss_weights, for which transformers has no argument.
    """
    _refuse_weights(batch)
    bounds, longest = batch["cu_seqlens"], batch["max_seqlen"]
    segment = _segment_of_tokens(bounds)
    return {
        "input_ids": batch["input_ids"][None],
        "position_ids": _positions(bounds, segment)[None],
        "labels": _labels(batch)[None],
        "shift_labels": batch["targets"][None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": segment.to(torch.int32)[None],
        "num_items_in_batch": max(1, batch["global_loss_tokens"]),
        "use_cache": False,
    }


def padded(batch: Batch, pad_id: int = 0) -> dict[str, Any]:
    """A row per segment, padded on the right to the longest one: for models and layers that know no ragged batches.

    Returns:
        As `hf_padding_free`, without the arguments of ragged attention: input_ids, position_ids, labels, shift_labels,
        attention_mask int64[n, max_seqlen], num_items_in_batch int. Of pads, labels are -100 and positions count on.

    Raises:
        UserError: the batch has loss_weights, for which transformers has no argument.
    """
    _refuse_weights(batch)
    bounds, width = batch["cu_seqlens"].to(torch.int64), batch["max_seqlen"]
    segments = len(bounds) - 1
    segment = _segment_of_tokens(bounds)
    slots = segment * width + _positions(bounds, segment)

    def spread(values: Tensor, fill: int) -> Tensor:
        return _spread(values, slots, segments * width, fill).view(segments, width)

    return {
        "input_ids": spread(batch["input_ids"], pad_id),
        "attention_mask": spread(torch.ones_like(segment), 0),
        "position_ids": torch.arange(width).repeat(segments, 1),
        "labels": spread(_labels(batch), IGNORED),
        "shift_labels": spread(batch["targets"], IGNORED),
        "num_items_in_batch": max(1, batch["global_loss_tokens"]),
    }


def pad_to_multiple(batch: Batch, multiple: int, pad_id: int = 0) -> dict[str, Any]:
    """The batch with one segment of pads at its end, so that T is a multiple of `multiple`.

    A batch that is one already is left as it is; one without tokens gets `multiple` pads, so that its rank can take
    part in the step. The counts of targets stay, and so do the slots of a step plan: pads lie behind the last one.
    """
    tokens = len(batch["input_ids"])
    pads = -tokens % _at_least_one(multiple) if tokens else _at_least_one(multiple)
    if not pads:
        return dict(batch)
    added = {
        "input_ids": torch.full((pads,), pad_id),
        "targets": torch.full((pads,), IGNORED),
        "position_ids": torch.arange(pads),
        "cu_seqlens": torch.tensor([tokens + pads], dtype=torch.int32),
        "is_repeat": torch.tensor([False]),  # these three are there or not
        "loss_weights": torch.zeros(1),
        "source": torch.tensor([-1]),
    }
    extended = {name: torch.cat([batch[name], more]) for name, more in added.items() if name in batch}
    return {**batch, **extended, "max_seqlen": max(batch["max_seqlen"], pads)}


def pad_segments(batch: Batch, multiple: int, pad_id: int = 0) -> dict[str, Any]:
    """The batch with every segment padded to a multiple of `multiple`: 2 * cp for context parallelism over cp ranks.

    Returns:
        The batch with T' tokens, and

            cu_seqlens         as before: tokens without pads
            cu_seqlens_padded  int32[n + 1], where the segments lie, from 0 to T'
            max_seqlen         longest segment with its pads

        Both bounds are those of the whole batch, before a rank takes its part. Positions count on over the pads.
    """
    bounds = batch["cu_seqlens"].to(torch.int64)
    lengths = bounds.diff()
    rooms = (lengths + _at_least_one(multiple) - 1) // multiple * multiple
    padded_bounds = torch.cat([rooms.new_zeros(1), rooms.cumsum(0)])
    segment = _segment_of_tokens(bounds)
    slots = torch.arange(len(segment)) + (padded_bounds - bounds)[segment]
    size = int(padded_bounds[-1])
    starts = batch["position_ids"][bounds[:-1]]
    room_of = _segment_of_tokens(padded_bounds)
    moved = {}
    if "slots" in batch:  # they begin where segments do
        moved["slots"] = padded_bounds[torch.searchsorted(bounds, batch["slots"].to(torch.int64))].to(torch.int32)
    return {
        **batch,
        **moved,
        "input_ids": _spread(batch["input_ids"], slots, size, pad_id),
        "targets": _spread(batch["targets"], slots, size, IGNORED),
        "position_ids": _positions(padded_bounds, room_of) + starts[room_of],
        "cu_seqlens_padded": padded_bounds.to(torch.int32),
        "max_seqlen": -(-batch["max_seqlen"] // multiple) * multiple,
    }


Collator = Callable[..., dict[str, Any]]
COLLATORS: Final[dict[str, Collator]] = {
    "varlen": varlen,
    "flash": flash,
    "flex": flex,
    "hf_padding_free": hf_padding_free,
    "padded": padded,
    "pad_to_multiple": pad_to_multiple,
    "pad_segments": pad_segments,
}


def _refuse_weights(batch: Batch) -> None:
    if "loss_weights" in batch:
        raise UserError(
            "the batch has loss_weights, and the losses of transformers take none: open the dataset with normalisation "
            "'token-mean', or take another collator and weigh the losses yourself"
        )


def _segment_of_tokens(bounds: Tensor) -> Tensor:
    """The segment of every token, int64[T]."""
    return torch.repeat_interleave(bounds.diff().to(torch.int64), output_size=int(bounds[-1]))


def _positions(bounds: Tensor, segment: Tensor) -> Tensor:
    """The place of every token in its segment, int64[T]."""
    return torch.arange(len(segment)) - bounds.to(torch.int64)[segment]


def _labels(batch: Batch) -> Tensor:
    """Labels for a model that shifts them: every target one place later, where it is a token of the same segment."""
    labels = batch["targets"].roll(1)
    labels[batch["cu_seqlens"][:-1].to(torch.int64)] = IGNORED
    return labels


def _spread(values: Tensor, slots: Tensor, size: int, fill: int) -> Tensor:
    """int64[size]: `values` at `slots`, `fill` elsewhere."""
    return torch.full((size,), fill, dtype=values.dtype).index_copy_(0, slots, values)


def _at_least_one(multiple: int) -> int:
    if multiple < 1:
        raise UserError(
            f"multiple is {multiple}, but lengths are padded to a multiple of at least 1; choose a larger one"
        )
    return multiple
