"""The loss of repeated documents, apart: its sums are the whole loss, and telling them apart changes nothing."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqmill.models import Model, TrainConfig, train
from seqmill.models.loss import IGNORED, cross_entropy_parts, cross_entropy_sum
from seqmill.models.training.gradients import PackedLoss, accumulate_gradients, split_batch
from seqmill.models.training.spread import Spread
from seqmill.packing import PackedDataset

CPU = torch.device("cpu")
PackFolder = Callable[..., Path]
SHAPE = {"dim": 48, "layers": 2, "heads": 3, "kv_heads": 1, "head_dim": 16, "ffn_dim": 96}
SMALL = TrainConfig(
    shape=SHAPE, steps=6, batch_tokens=256, micro_batch_rows=1, checkpoint_every=3, seed=3, learning_rate=3e-3
)
OWN = ("loss_repeat", "loss_unique", "targets_repeat", "targets_unique")


def documents() -> tuple[list[list[int]], list[bool]]:
    """30 documents, and four copies each of five others, in a mixed order."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 100, length).tolist() for length in draw.integers(2, 100, 35)]
    rows = draw.permutation([*range(30), *[30 + i for i in range(5) for _ in range(4)]])
    return [texts[i] for i in rows], [bool(i >= 30) for i in rows]


@pytest.fixture
def told(pack_folder: PackFolder) -> Path:
    texts, is_repeat = documents()
    return pack_folder(texts, name="told", is_repeat=is_repeat)


@pytest.fixture
def silent(pack_folder: PackFolder) -> Path:
    return pack_folder(documents()[0], name="silent")


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_parts_are_the_sums_over_their_tokens_and_leave_the_loss_as_it_is() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(37, 12, generator=draw, requires_grad=True), torch.randn(64, 12, generator=draw)
    targets = torch.randint(50, (37,), generator=draw)
    targets[::5] = IGNORED
    part = torch.rand(37, generator=draw) < 0.3
    whole = cross_entropy_sum(hidden, weight, targets, 50, 8)
    found, parts = cross_entropy_parts(hidden, weight, targets, 50, part, 8)
    assert torch.equal(found, whole)
    assert torch.equal(*(torch.autograd.grad(loss, hidden)[0] for loss in (found, whole)))
    assert not parts.requires_grad
    for chosen, total in zip((~part, part), parts, strict=True):
        expected = cross_entropy_sum(hidden[chosen], weight, targets[chosen], 50)
        torch.testing.assert_close(total, expected.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("micro_batch_tokens", [1, 100, 10**6])
def test_the_loss_of_repeats_is_that_of_their_documents_alone(
    model: Model, told: Path, micro_batch_tokens: int
) -> None:
    batch = next(iter(PackedDataset(told, batch_rows=6, seed=0)))
    found = accumulate_gradients(Spread(PackedLoss(model, torch.float32, "sdpa")), batch, CPU, micro_batch_tokens)
    totals, counts = [0.0, 0.0], [0, 0]
    bounds = batch["cu_seqlens"].tolist()
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        part = next(split_batch(one_segment(batch, start, stop), 10**6, CPU))
        hidden = model(part.input_ids_T, part.position_ids_T, part.segments)
        kind = int(batch["is_repeat"][number])
        totals[kind] += cross_entropy_sum(hidden, model.head_weight, part.targets_T, 100).item()
        counts[kind] += int((part.targets_T != IGNORED).sum())
    assert list(found.targets) == counts
    assert min(counts) > 0
    assert list(found.nats) == pytest.approx(totals, rel=1e-5)


def one_segment(batch: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    tokens = {name: batch[name][start:stop] for name in ("input_ids", "position_ids", "targets")}
    return {**tokens, "cu_seqlens": torch.tensor([0, stop - start], dtype=torch.int32)}


def test_a_model_that_knows_nothing_has_the_same_loss_on_both(told: Path, model: Model) -> None:
    """A head of zeros gives every id the same probability: log(100) nats wherever one looks."""
    with torch.no_grad():
        model.head_weight.zero_()
    for batch in PackedDataset(told, batch_rows=6):
        found = accumulate_gradients(Spread(PackedLoss(model, torch.float32, "sdpa")), batch, CPU, 64)
        expected = np.log(100) * np.array(found.targets)
        assert list(found.nats) == pytest.approx(list(expected), rel=1e-5)
        assert found.mean == pytest.approx(np.log(100), rel=1e-5)


def test_the_logged_losses_add_up_and_the_rest_is_as_without_the_column(
    told: Path, silent: Path, tmp_path: Path
) -> None:
    seen: list[Any] = []
    train(told, tmp_path / "told", SMALL, seen.append)
    train(silent, tmp_path / "silent", SMALL)
    log, plain = log_of(tmp_path / "told"), log_of(tmp_path / "silent")
    before = 0
    for line, other in zip(log, plain, strict=True):
        assert set(line) - set(other) == set(OWN)
        assert {k: line[k] for k in other if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
        repeats, others = line["targets_repeat"], line["targets_unique"]
        assert repeats + others == line["tokens"] - before
        before = line["tokens"]
        added = line["loss_repeat"] * repeats + line["loss_unique"] * others
        assert line["loss"] * (repeats + others) == pytest.approx(added, rel=1e-6)
    assert [record.loss_repeat for record in seen] == [line["loss_repeat"] for line in log]
    weights = [
        next((out / "checkpoints").glob("*6/model.safetensors")) for out in (tmp_path / "told", tmp_path / "silent")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_an_update_without_repeats_says_so(pack_folder: PackFolder, tmp_path: Path) -> None:
    folder = pack_folder(documents()[0], is_repeat=[False] * 50)
    train(folder, tmp_path / "run", TrainConfig(steps=1, batch_tokens=256))
    (line,) = log_of(tmp_path / "run")
    assert (line["loss_repeat"], line["targets_repeat"]) == (None, 0)
    assert line["loss_unique"] == pytest.approx(line["loss"], rel=1e-6)
