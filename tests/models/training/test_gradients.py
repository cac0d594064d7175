"""The gradient of a packed update is the sum over its documents, however it is cut."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)

from seqmill.models import Model
from seqmill.models.attention import Segments
from seqmill.models.loss import IGNORED
from seqmill.models.training.gradients import PackedLoss, accumulate_gradients, split_batch
from seqmill.models.training.spread import Spread
from seqmill.packing import PackedDataset

CPU = torch.device("cpu")


@pytest.fixture
def batch(packed: Path) -> dict[str, Any]:
    return next(iter(PackedDataset(packed, batch_rows=5, seed=0)))


def accumulate(model: Model, batch: dict[str, Any], most_tokens: int, dtype: torch.dtype = torch.float32) -> float:
    return accumulate_gradients(Spread(PackedLoss(model, dtype, "sdpa")), batch, CPU, most_tokens).objective


def gradients(model: Model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(found) == len(list(model.parameters()))
    model.zero_grad()
    return found


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal to a millionth of each parameter's largest gradient, the rounding of float32 sums in another order."""
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert (found[name] - gradient).abs().max() <= 2e-6 * gradient.abs().max(), name


def test_loss_and_gradients_are_the_sums_over_documents_taken_one_at_a_time(
    model: Model, batch: dict[str, Any]
) -> None:
    model.double()
    loss = accumulate(model, batch, 10**6, torch.float64)
    found = gradients(model)
    expected = torch.zeros((), dtype=torch.float64)
    bounds = batch["cu_seqlens"].tolist()
    assert len(bounds) > 6
    for start, stop in itertools.pairwise(bounds):
        ids, targets = batch["input_ids"][start:stop], batch["targets"][start:stop]
        hidden = model(ids, torch.arange(len(ids)), Segments.of([len(ids)]))
        logits = hidden @ model.head_weight[: model.config.vocab_size].T
        expected = expected + F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    expected = expected / (batch["targets"] != IGNORED).sum()
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(found, gradients(model))


@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 64, 150])
def test_cutting_into_micro_batches_changes_nothing_but_rounding(
    model: Model, batch: dict[str, Any], micro_batch_tokens: int
) -> None:
    whole = accumulate(model, batch, 10**6)
    expected = gradients(model)
    parts = accumulate_gradients(
        Spread(PackedLoss(model, torch.float32, "sdpa")), batch, CPU, micro_batch_tokens
    ).objective
    assert parts == pytest.approx(whole, rel=1e-6)
    assert_same_gradients(gradients(model), expected)


def test_micro_batches_are_whole_documents_within_the_limit(batch: dict[str, Any]) -> None:
    parts = list(split_batch(batch, 100, CPU))
    assert len(parts) > 2
    assert all(sum(part.segments.lengths) == len(part.input_ids_T) <= 100 for part in parts)
    assert [length for part in parts for length in part.segments.lengths] == batch["cu_seqlens"].diff().tolist()
    for key in ("input_ids", "targets", "position_ids"):
        assert torch.equal(torch.cat([getattr(part, f"{key}_T") for part in parts]), batch[key])


def test_a_document_longer_than_the_limit_goes_alone(batch: dict[str, Any]) -> None:
    parts = list(split_batch(batch, 1, CPU))
    assert [part.segments.lengths for part in parts] == [(length,) for length in batch["cu_seqlens"].diff().tolist()]


def test_a_batch_without_targets_has_loss_zero_and_finite_gradients(model: Model, batch: dict[str, Any]) -> None:
    empty = {**batch, "targets": torch.full_like(batch["targets"], IGNORED), "global_loss_tokens": 0}
    loss = accumulate(model, empty, 100)
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_bfloat16_products_come_close_to_float32(model: Model, batch: dict[str, Any]) -> None:
    exact = accumulate(model, batch, 100)
    expected = gradients(model)
    half = accumulate(model, batch, 100, torch.bfloat16)
    assert half == pytest.approx(exact, rel=0.02)
    assert half != exact
    found = gradients(model)
    assert all(found[name].dtype == torch.float32 for name in expected)
    cosine = F.cosine_similarity(found["embedding.weight"].flatten(), expected["embedding.weight"].flatten(), dim=0)
    assert cosine > 0.98


def test_documents_count_alike_in_the_sample_mean(model: Model, pack_folder: Callable[..., Path]) -> None:
    """Over a whole epoch in one update, every document's own mean loss has the same part in the gradient."""
    documents = [[(7 * k + place * place) % 100 for place in range(length)] for k, length in enumerate((50, 9, 24, 33))]
    dataset = PackedDataset(pack_folder(documents, capacity=24), batch_rows=10**6, normalisation="sample-mean")
    batch = dataset.batch_at(0)
    model.double()
    loss = accumulate(model, batch, 64, torch.float64)
    found = gradients(model)
    losses: dict[int, list[torch.Tensor]] = {}
    place = 0
    for row in batch["row_ids"].tolist():
        for document in dataset.row(row)["doc_id"].tolist():
            first, last = batch["cu_seqlens"][place : place + 2].tolist()
            ids, targets = batch["input_ids"][first:last], batch["targets"][first:last]
            logits = model(ids, torch.arange(len(ids)), Segments.of([len(ids)])) @ model.head_weight.T
            each = F.cross_entropy(logits[:, : model.config.vocab_size], targets, ignore_index=-100, reduction="none")
            losses.setdefault(document, []).append(each[targets != IGNORED])
            place += 1
    means = [torch.cat(parts).mean() for parts in losses.values() if len(torch.cat(parts))]
    assert any(len(parts) > 1 for parts in losses.values())
    expected = torch.stack(means).mean()
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(found, gradients(model))
