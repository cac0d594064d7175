"""Collators against what each consumer does with their arguments; no consumer may see another document's tokens."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from seqmill.errors import UserError
from seqmill.packing import COLLATORS, MixedDataset, PackedDataset
from seqmill.packing.collate import (
    document_mask,
    flash,
    flex,
    hf_padding_free,
    pad_segments,
    pad_to_multiple,
    padded,
    varlen,
)

VOCABULARY = 97
PAD = 96
LENGTHS = [1, 2, 3, 24, 25, 70, 1, 9, 13, 30, 5, 5, 17, 48, 2, 11]
Batch = dict[str, Any]


@pytest.fixture(scope="module")
def dataset(pack_once: Callable) -> PackedDataset:
    """Rows of 24 with documents of one token, of a whole row, and cut ones."""
    return PackedDataset(pack_once(LENGTHS, 24, vocab_size=VOCABULARY).folder, batch_rows=5, seed=1)


@pytest.fixture(scope="module")
def batch(dataset: PackedDataset) -> Batch:
    batch = dataset.batch_at(0)
    lengths = batch["cu_seqlens"].diff()
    cut = batch["targets"][batch["cu_seqlens"][1:].long() - 1] != -100
    assert len(lengths) > 5
    assert cut.any()
    assert not cut.all()
    assert batch["n_loss_tokens"] < len(batch["targets"])
    return batch


@pytest.fixture(scope="module")
def empty(dataset: PackedDataset) -> Batch:
    """What a rank gets that has no rows in a step."""
    other = PackedDataset(dataset.path, batch_rows=1, rank=0, world_size=2)
    batch = other.batch_at(0)
    assert len(batch["input_ids"]) == 0
    return batch


def segments_of(batch: Batch, name: str) -> list[list[int]]:
    return [part.tolist() for part in batch[name].split(batch["cu_seqlens"].diff().tolist())]


def segment_losses(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The summed loss of every segment, each run alone through the model: the slow and obvious way."""
    losses = []
    for ids, targets in zip(segments_of(batch, "input_ids"), segments_of(batch, "targets"), strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
        losses.append(functional.cross_entropy(logits, torch.tensor(targets), ignore_index=-100, reduction="sum"))
    return torch.stack(losses)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def llama(request: pytest.FixtureRequest) -> torch.nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,  # so that attention matters
        attn_implementation=request.param,
    )
    return transformers.LlamaForCausalLM(config).double().eval()


def test_padding_free_losses_are_those_of_every_document_alone(llama: torch.nn.Module, batch: Batch) -> None:
    with torch.no_grad():
        expected = segment_losses(llama, batch).sum() / batch["global_loss_tokens"]
        together = llama(**hf_padding_free(batch)).loss
    torch.testing.assert_close(together, expected.to(together.dtype), rtol=1e-6, atol=0)


def test_padded_losses_are_those_of_every_document_alone(llama: torch.nn.Module, batch: Batch) -> None:
    with torch.no_grad():
        expected = segment_losses(llama, batch).sum() / batch["global_loss_tokens"]
        together = llama(**padded(batch, PAD)).loss
    torch.testing.assert_close(together, expected.to(together.dtype), rtol=1e-6, atol=0)


def test_labels_alone_miss_only_the_targets_behind_cuts(llama: torch.nn.Module, batch: Batch) -> None:
    """What transformers computes where it does not know shift_labels; a second shift, or one that crosses from a
    document into the next, would give another loss.
    """
    bare = {**batch, "targets": batch["targets"].clone()}
    bare["targets"][batch["cu_seqlens"][1:].long() - 1] = -100
    count = int((bare["targets"] != -100).sum())
    with torch.no_grad():
        expected = segment_losses(llama, bare).sum() / count
        for inputs in (hf_padding_free(batch), padded(batch, PAD)):
            del inputs["shift_labels"]
            found = llama(**{**inputs, "num_items_in_batch": count}).loss
            torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-6, atol=0)


def test_no_document_sees_another_one(llama: torch.nn.Module, batch: Batch) -> None:
    """Change one document: the logits of all others stay. With a cache they would not."""
    bounds = batch["cu_seqlens"].tolist()
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    place = slice(bounds[1], bounds[2])
    changed["input_ids"][place] = (changed["input_ids"][place] + 1) % VOCABULARY
    inside = torch.zeros(len(batch["input_ids"]), dtype=torch.bool)
    inside[place] = True
    with torch.no_grad():
        before, after = (llama(**hf_padding_free(one)).logits[0] for one in (batch, changed))
        torch.testing.assert_close(before[~inside], after[~inside], rtol=0, atol=1e-12)
        assert (before[inside] - after[inside]).abs().amax(-1).min() > 1e-3
        before, after = (llama(**{**hf_padding_free(one), "use_cache": True}).logits[0] for one in (batch, changed))
        assert (before[bounds[2] :] - after[bounds[2] :]).abs().amax(-1).min() > 1e-3


def test_transformers_finds_the_documents_that_are_there(batch: Batch) -> None:
    """And one more for pads: as many documents as there are pads would be slow, and wrong with flash attention."""
    from transformers.masking_utils import find_packed_sequence_indices

    for one in (batch, pad_to_multiple(batch, 64)):
        inputs = hf_padding_free(one)
        found = find_packed_sequence_indices(inputs["position_ids"])
        assert torch.equal(found, inputs["seq_idx"])
        assert int(found.max()) + 1 == len(one["cu_seqlens"]) - 1


def test_padding_free_arguments_have_the_types_that_transformers_wants(batch: Batch) -> None:
    inputs = hf_padding_free(batch)
    tokens = len(batch["input_ids"])
    shapes = {name: (tuple(v.shape), v.dtype) for name, v in inputs.items() if isinstance(v, Tensor)}
    rows = dict.fromkeys(["input_ids", "position_ids", "labels", "shift_labels"], ((1, tokens), torch.int64))
    bounds = dict.fromkeys(["cu_seq_lens_q", "cu_seq_lens_k"], ((len(batch["cu_seqlens"]),), torch.int32))
    assert shapes == {**rows, **bounds, "seq_idx": ((1, tokens), torch.int32)}
    assert type(inputs["max_length_q"]) is type(inputs["max_length_k"]) is int
    assert inputs["max_length_q"] == max(len(ids) for ids in segments_of(batch, "input_ids"))
    assert "attention_mask" not in inputs


def test_targets_are_counted_once(batch: Batch) -> None:
    """A trainer that counts the labels itself comes to the stored count: boundaries are not subtracted once more."""
    inputs = hf_padding_free(batch)
    cuts = int((batch["targets"][batch["cu_seqlens"][1:].long() - 1] != -100).sum())
    assert int((inputs["shift_labels"] != -100).sum()) == batch["n_loss_tokens"] == inputs["num_items_in_batch"]
    assert int((inputs["labels"][..., 1:] != -100).sum()) == batch["n_loss_tokens"] - cuts
    assert int((inputs["labels"] != -100).sum()) == batch["n_loss_tokens"] - cuts


def test_labels_are_the_tokens_of_their_own_document(batch: Batch) -> None:
    inputs = hf_padding_free(batch)
    of_labels = segments_of({**batch, "labels": inputs["labels"][0]}, "labels")
    for ids, labels in zip(segments_of(batch, "input_ids"), of_labels, strict=True):
        assert labels == [-100, *ids[1:]]


def test_positions_restart_where_a_fragment_goes_on(batch: Batch) -> None:
    """transformers knows documents by their position 0; positions within the whole document would join fragments."""
    going_on = {**batch, "position_ids": batch["position_ids"] + 1000}
    for name in ("hf_padding_free", "padded"):
        found, expected = (COLLATORS[name](one)["position_ids"] for one in (going_on, batch))
        assert torch.equal(found, expected)
        assert int(found.min()) == 0


def test_padded_rows_are_the_segments(batch: Batch) -> None:
    inputs = padded(batch, PAD)
    shape = (len(batch["cu_seqlens"]) - 1, batch["max_seqlen"])
    assert {tuple(value.shape) for value in inputs.values() if isinstance(value, Tensor)} == {shape}
    ids, targets = segments_of(batch, "input_ids"), segments_of(batch, "targets")
    for row, (tokens, following) in enumerate(zip(ids, targets, strict=True)):
        pads = shape[1] - len(tokens)
        assert inputs["input_ids"][row].tolist() == tokens + [PAD] * pads
        assert inputs["attention_mask"][row].tolist() == [1] * len(tokens) + [0] * pads
        assert inputs["position_ids"][row].tolist() == list(range(shape[1]))  # pads begin no document
        assert inputs["shift_labels"][row].tolist() == following + [-100] * pads
        assert inputs["labels"][row].tolist() == [-100, *tokens[1:]] + [-100] * pads


@pytest.mark.parametrize("multiple", [1, 2, 7, 64, 128])
def test_pads_are_one_more_segment_without_targets(batch: Batch, multiple: int) -> None:
    found = pad_to_multiple(batch, multiple, PAD)
    tokens, bounds = len(batch["input_ids"]), batch["cu_seqlens"].tolist()
    pads = -tokens % multiple
    assert len(found["input_ids"]) % multiple == 0
    assert found["input_ids"].tolist() == batch["input_ids"].tolist() + [PAD] * pads
    assert found["targets"].tolist() == batch["targets"].tolist() + [-100] * pads
    assert found["position_ids"].tolist() == batch["position_ids"].tolist() + list(range(pads))
    assert found["cu_seqlens"].tolist() == bounds + ([tokens + pads] if pads else [])
    assert found["max_seqlen"] == int(found["cu_seqlens"].diff().max())
    same = ("n_loss_tokens", "global_loss_tokens", "step")
    assert {name: found[name] for name in same} == {name: batch[name] for name in same}
    assert {name: value.dtype for name, value in found.items() if isinstance(value, Tensor)} == {
        name: value.dtype for name, value in batch.items() if isinstance(value, Tensor)
    }


def test_pads_have_entries_of_their_own_where_segments_have(pack: Callable) -> None:
    folder = pack(LENGTHS, 24, is_repeat=[True] * len(LENGTHS)).folder
    batch = MixedDataset({"only": folder}, {"only": 1}).batch_at(0)
    found = pad_to_multiple(batch, 1000)
    assert len(found["is_repeat"]) == len(found["source"]) == len(found["cu_seqlens"]) - 1
    assert (bool(found["is_repeat"][-1]), int(found["source"][-1])) == (False, -1)
    assert bool(found["is_repeat"][:-1].all())


def test_a_rank_without_rows_can_take_part_with_pads(empty: Batch) -> None:
    found = pad_to_multiple(empty, 16)
    assert found["cu_seqlens"].tolist() == [0, 16]
    assert (found["max_seqlen"], found["n_loss_tokens"], int((found["targets"] != -100).sum())) == (16, 0, 0)


@pytest.mark.parametrize("multiple", [1, 4, 6])
def test_segments_can_be_padded_each(batch: Batch, multiple: int) -> None:
    """For context parallelism over multiple / 2 ranks: both bounds are whole, and both are right."""
    found = pad_segments(batch, multiple, PAD)
    bounds = found["cu_seqlens_padded"]
    assert bounds.dtype == torch.int32
    assert torch.equal(found["cu_seqlens"], batch["cu_seqlens"])
    rooms = bounds.diff().tolist()
    assert found["max_seqlen"] == max(rooms)
    assert int((found["targets"] != -100).sum()) == batch["n_loss_tokens"]
    parts = [found[name].split(rooms) for name in ("input_ids", "targets", "position_ids")]
    originals = [segments_of(batch, name) for name in ("input_ids", "targets")]
    for room, ids, targets, positions, tokens, following in zip(rooms, *parts, *originals, strict=True):
        pads = room - len(tokens)
        assert room % multiple == 0
        assert 0 <= pads < multiple
        assert ids.tolist() == tokens + [PAD] * pads
        assert targets.tolist() == following + [-100] * pads
        assert positions.tolist() == list(range(room))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # which takes a minute
@pytest.mark.parametrize("multiple", [1, 128])
def test_flex_attention_keeps_documents_apart(batch: Batch, multiple: int) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    found = flex(batch, multiple, PAD)
    tokens = len(found["input_ids"])
    assert tokens % multiple == 0
    assert (found["document_ids"].dtype, found["document_ids"].shape) == (torch.int32, (tokens,))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, tokens, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    out = flex_attention(q, k, v, block_mask=document_mask(found["document_ids"]))
    lengths = found["cu_seqlens"].diff().tolist()
    alone = [
        functional.scaled_dot_product_attention(*one, is_causal=True)
        for one in zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True)
    ]
    torch.testing.assert_close(out, torch.cat(alone, 2))


def test_varlen_arguments_are_those_of_the_function(batch: Batch) -> None:
    from torch.nn.attention.varlen import varlen_attn

    attention = varlen(batch)["attention"]
    bound = inspect.signature(varlen_attn).bind("q", "k", "v", **attention)
    assert torch.equal(bound.arguments["cu_seq_q"], batch["cu_seqlens"])
    assert torch.equal(bound.arguments["cu_seq_k"], batch["cu_seqlens"])
    assert type(bound.arguments["max_q"]) is type(bound.arguments["max_k"]) is int  # a tensor would wait for the device
    assert bound.arguments["max_q"] == bound.arguments["max_k"] == batch["max_seqlen"]
    assert list(flash(batch)["attention"].values()) == list(attention.values())
    assert list(flash(batch)["attention"]) == ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]


@pytest.mark.parametrize("name", COLLATORS)
def test_every_collator_serves_a_loader_and_leaves_the_batch_alone(dataset: PackedDataset, name: str) -> None:
    collate = (
        partial(COLLATORS[name], multiple=16)
        if name in ("flex", "pad_to_multiple", "pad_segments")
        else COLLATORS[name]
    )
    batches = list(DataLoader(dataset, batch_size=None, collate_fn=collate))
    assert len(batches) == len(dataset)
    for found, batch in zip(batches, dataset, strict=True):
        before = {key: value.clone() if isinstance(value, Tensor) else value for key, value in batch.items()}
        again = collate(batch)
        assert again.keys() == found.keys()
        for key, value in before.items():
            assert torch.equal(batch[key], value) if isinstance(value, Tensor) else batch[key] == value
        for key, value in again.items():
            assert torch.equal(found[key], value) if isinstance(value, Tensor) else str(found[key]) == str(value)


@pytest.mark.parametrize("name", sorted(COLLATORS.keys() - {"pad_to_multiple", "flex"}))
def test_collators_take_a_step_without_rows(empty: Batch, name: str) -> None:
    options = {"multiple": 8} if name == "pad_segments" else {}
    found = COLLATORS[name](empty, **options)
    assert found["input_ids"].numel() == 0


@pytest.mark.parametrize("collate", [flex, pad_to_multiple, pad_segments])
def test_impossible_multiples_are_refused(batch: Batch, collate: Callable) -> None:
    with pytest.raises(UserError, match="multiple is 0"):
        collate(batch, 0)


@pytest.mark.parametrize("multiple", [1, 4, 7])
def test_the_slots_of_a_plan_move_with_padded_segments(batch: Batch, multiple: int) -> None:
    bounds = batch["cu_seqlens"]
    slots = bounds[[0, 0, 2, 2, len(bounds) - 2, len(bounds) - 1]]
    found = pad_segments({**batch, "slots": slots}, multiple)
    lengths = [-(-length // multiple) * multiple for length in bounds.diff().tolist()]
    assert found["slots"].tolist() == [sum(lengths[:number]) for number in (0, 0, 2, 2, len(lengths) - 1, len(lengths))]
    assert found["slots"].dtype == torch.int32


@pytest.mark.parametrize("collate", [hf_padding_free, padded])
def test_weighted_losses_are_not_dropped_silently(dataset: PackedDataset, collate: Callable) -> None:
    weighted = PackedDataset(dataset.path, normalisation="sample-mean").batch_at(0)
    assert len(pad_to_multiple(weighted, 64)["loss_weights"]) == len(pad_to_multiple(weighted, 64)["cu_seqlens"]) - 1
    with pytest.raises(UserError, match="the batch has loss_weights, and the losses of transformers take none"):
        collate(weighted)
