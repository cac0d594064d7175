from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqmill.errors import UserError
from seqmill.packing import PackedDataset
from seqmill.packing.loss_weights import (
    NORMALISATIONS,
    check_normalisation,
    document_targets,
    segment_weights,
    total_weight,
)
from seqmill.storage import read_arrow

LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 34, 63, 64, 65, 700, 0, 1, 45, 150, 22, 80, 11]


def segments_of(folder: Path) -> list[dict[str, Any]]:
    """Every segment of a folder: document, stored targets of the document, targets of the segment."""
    found = []
    for path in sorted(folder.glob("part-*.arrow")):
        for row in read_arrow(path).to_pylist():
            for number, length in enumerate(row["seq_lengths"]):
                targets = length - (row["next_token"][number] == -1)
                found.append({"doc": row["doc_id"][number], "all": row["doc_targets"][number], "here": targets})
    return found


CASES = [
    ("split", None),
    ("truncate", None),
    ("drop", None),
    ("split", (4, "longest", "carry_to_packer")),
    ("split", (4, "seeded_random", "drop")),
    ("split", (4, "equal_tokens", "pad")),
]


@pytest.mark.parametrize(("overflow", "buckets"), CASES)
def test_every_segment_knows_the_targets_of_its_whole_document(
    pack: Callable, overflow: str, buckets: tuple[Any, ...] | None
) -> None:
    packed = pack(LENGTHS, 32, overflow, buckets=buckets)
    segments = segments_of(packed.folder)
    counted: Counter[int] = Counter()
    for segment in segments:
        counted[segment["doc"]] += segment["here"]
    assert len(segments) > len(counted) > 10 or overflow != "split"
    assert all(segment["all"] == counted[segment["doc"]] for segment in segments)
    told = document_targets(packed.plan, np.array(LENGTHS))
    kept = set(packed.plan.item.tolist())
    assert [told[item] for item in sorted(kept)] == [counted[packed.corpus.doc_ids[item]] for item in sorted(kept)]


def test_documents_count_alike_in_the_sample_mean_and_segments_in_the_segment_mean() -> None:
    here, everywhere = np.array([3, 1, 0, 2, 4]), np.array([3, 1, 0, 6, 6])  # the last two are of one document
    sample = segment_weights("sample-mean", here, everywhere)
    assert sample.tolist() == [1 / 3, 1, 0, 1 / 6, 1 / 6]
    assert total_weight("sample-mean", here, everywhere, 10, 2) == pytest.approx(3)
    segment = segment_weights("segment-mean", here, everywhere)
    assert segment.tolist() == [1 / 3, 1, 0, 1 / 2, 1 / 4]
    assert total_weight("segment-mean", here, everywhere, 10, 2) == pytest.approx(4)


@pytest.mark.parametrize("name", ["token-mean", "rank-token-mean", "sum"])
def test_the_others_weigh_every_token_alike(name: str) -> None:
    here = np.array([3, 1, 0, 2])
    assert segment_weights(name, here, here).tolist() == [1, 1, 0, 1]
    totals = {"token-mean": 6, "rank-token-mean": 4 * 2, "sum": 1}
    assert total_weight(name, here, here, rank_targets=4, ranks=2) == totals[name]


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_step_without_targets_divides_by_no_zero(name: str) -> None:
    none = np.zeros(3, np.int64)
    assert total_weight(name, none, none, rank_targets=0, ranks=1) == 1
    assert not segment_weights(name, none, none).any()


def test_an_unknown_normalisation_is_refused() -> None:
    assert check_normalisation("sum") == "sum"
    with pytest.raises(UserError, match="unknown normalisation of the loss 'mean'; choose one of token-mean"):
        check_normalisation("mean")


def weighted(batch: dict[str, Any], losses: dict[tuple[int, int], float]) -> float:
    """The part of the step's loss that a rank adds, of given losses per segment (row, number) and token."""
    found, place = 0.0, 0
    for row, count in zip(batch["row_ids"].tolist(), batch["segments"], strict=True):
        for number in range(count):
            first, last = batch["cu_seqlens"][place : place + 2].tolist()
            targets = int((batch["targets"][first:last] != -100).sum())
            found += float(batch["loss_weights"][place]) * losses[row, number] * targets
            place += 1
    return found / batch["global_loss_weight"]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ["sample-mean", "segment-mean", "rank-token-mean", "sum"])
def test_the_weighted_loss_of_a_step_is_the_mean_it_is_named_after(pack: Callable, name: str, ranks: int) -> None:
    packed = pack(LENGTHS, 32)
    rows = [row for path in sorted(packed.folder.glob("part-*.arrow")) for row in read_arrow(path).to_pylist()]
    losses = {(row["row_id"], k): 1.0 + 7 * row["row_id"] % 5 + k for row in rows for k in range(len(row["doc_id"]))}
    datasets = [
        PackedDataset(packed.folder, batch_rows=5, seed=1, rank=rank, world_size=ranks, normalisation=name)
        for rank in range(ranks)
    ]
    for step in range(len(datasets[0])):
        batches = [dataset.batch_at(step) for dataset in datasets]
        for batch in batches:
            batch["segments"] = [len(rows[row]["doc_id"]) for row in batch["row_ids"].tolist()]
        found = sum(weighted(batch, losses) for batch in batches)
        segments = [
            (
                losses[row, k],
                rows[row]["seq_lengths"][k] - (rows[row]["next_token"][k] == -1),
                rows[row]["doc_targets"][k],
            )
            for batch in batches
            for row in batch["row_ids"].tolist()
            for k in range(len(rows[row]["doc_id"]))
        ]
        trained = [(loss, here, everywhere) for loss, here, everywhere in segments if here]
        if name == "segment-mean":
            expected = np.mean([loss for loss, _, _ in trained])
        elif name == "sample-mean":
            expected = np.average([loss for loss, _, _ in trained], weights=[h / e for _, h, e in trained])
        elif name == "sum":
            expected = sum(loss * here for loss, here, _ in trained)
        else:  # each rank's own mean, and the mean of these
            expected = np.mean([rank_mean(batch, losses) for batch in batches])
        assert found == pytest.approx(expected)


def rank_mean(batch: dict[str, Any], losses: dict[tuple[int, int], float]) -> float:
    total = weighted({**batch, "global_loss_weight": 1.0}, losses)
    return total / max(1, batch["n_loss_tokens"])


def test_the_token_mean_needs_no_weights(pack: Callable) -> None:
    packed = pack(LENGTHS, 32)
    assert "loss_weights" not in PackedDataset(packed.folder).batch_at(0)
    with pytest.raises(UserError, match="unknown normalisation"):
        PackedDataset(packed.folder, normalisation="mean")
