"""Folders with buckets: what is written, checked and trained on."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from seqmill.errors import UserError
from seqmill.packing import Buckets, BucketSchedule, PackedDataset, make_schedule, validate
from seqmill.packing.buckets import LEFTOVERS, OVERLONG
from seqmill.storage import read_arrow, read_json, write_arrow, write_json

# around every power of two, and far beyond the longest row
LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 63, 64, 65, 66, 700, 0, 1, 45, 150, 22, 80, 11, 19, 6]
SECOND = "part-00001.arrow"


@pytest.fixture
def packed(pack: Callable) -> Any:
    return pack(LENGTHS * 3, 32, buckets=(4,))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.arrow")) for row in read_arrow(path).to_pylist()]


def buckets_in(folder: Path) -> Buckets:
    return Buckets.of(read_json(folder / "manifest.json")["pack"]["buckets"])


def schedule_of(folder: Path, **options: Any) -> BucketSchedule:
    return make_schedule(buckets_in(folder), **{"step_tokens": 128, "cycles": 2, **options})


@pytest.mark.parametrize("overlong", OVERLONG)
@pytest.mark.parametrize("leftovers", LEFTOVERS)
def test_fragments_by_offset_and_the_last_target_are_the_documents(
    pack: Callable, overlong: str, leftovers: str
) -> None:
    packed = pack(LENGTHS, 32, buckets=(4, overlong, leftovers))
    found: dict[int, list[tuple[int, list[int], int]]] = {}
    for row in rows_of(packed.folder):
        begin = 0
        for number, length in enumerate(row["seq_lengths"]):
            tokens = row["input_ids"][begin : begin + length]
            entry = (row["doc_offset"][number], tokens, row["next_token"][number])
            found.setdefault(row["doc_id"][number], []).append(entry)
            begin += length
    for doc_id, document in zip(packed.corpus.doc_ids, packed.corpus.documents, strict=True):
        parts = sorted(found.pop(doc_id, []))
        joined = [token for _, tokens, _ in parts for token in tokens] + [part[2] for part in parts[-1:]]
        pairs = max(len(document) - 1, 0)
        kept = pairs // 4 * 4 if leftovers == "drop" else pairs
        assert joined == (document.tolist()[: kept + 1] if kept else [])
        assert [part[2] for part in parts[:-1]] == [part[1][0] for part in parts[1:]]
    assert not found
    assert validate(packed.folder, packed.corpus.folder).violations == ()


def test_rows_of_a_bucket_are_one_full_piece_and_every_token_has_a_target(packed: Any) -> None:
    buckets, rows = buckets_in(packed.folder), rows_of(packed.folder)
    assert min(buckets.rows) > 3
    assert buckets.leftover_rows > 3
    for row in rows:
        number = np.array([row["row_id"]])
        assert row["n_loss_tokens"] == row["n_tokens"]
        if buckets.is_leftover(number)[0]:
            assert row["n_tokens"] <= 4
        else:
            assert row["seq_lengths"] == [int(buckets.room_of(number)[0])]


def test_the_manifest_accounts_for_every_token(pack: Callable) -> None:
    manifest = read_json(pack(LENGTHS, 32, buckets=(4, "longest", "drop")).folder / "manifest.json")
    drops, pairs = manifest["drops"], [max(length - 1, 0) for length in LENGTHS]
    lost = [length for length in LENGTHS if 0 < length < 5]
    assert drops["tokens_in"] == sum(LENGTHS)
    assert manifest["totals"]["tokens"] == manifest["totals"]["loss_tokens"] == sum(n // 4 * 4 for n in pairs)
    assert drops["documents"] == len(lost)
    assert drops["tokens"] == sum(lost) + sum(n % 4 for n in pairs if n >= 4)
    assert drops["tokens_target_only"] == sum(n >= 4 for n in pairs)
    assert drops["tokens_in"] == manifest["totals"]["tokens"] + drops["tokens_target_only"] + drops["tokens"]
    assert manifest["pack"]["algorithm"] == "dataset-decomposition"


def test_batches_are_bounded_by_the_room_of_their_bucket(pack: Callable) -> None:
    for length, expected in ((5, [16, 16, 8]), (33, [2] * 20)):
        packed = pack([length] * 40, 32, buckets=(4,), shards=1, batch_tokens=64)
        batches = read_arrow(packed.folder / "part-00000.arrow").to_batches()
        assert [batch.num_rows for batch in batches] == expected


def test_repeated_documents_are_checked_as_bags(pack: Callable) -> None:
    lengths = [50, 9, 50, 200, 50, 2]
    documents = [np.arange(1, length + 1).astype(np.uint16) for length in lengths]
    ids = [7, 8, 7, 9, 7, 10]
    for overlong in OVERLONG:
        packed = pack(lengths, 16, buckets=(4, overlong), documents=documents, doc_ids=ids)
        assert validate(packed.folder, packed.corpus.folder).violations == ()


def edit(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change rows of the second shard; neither their hashes nor the file's are renewed."""
    table = read_arrow(folder / SECOND)
    rows = table.to_pylist()
    change(rows)
    write_arrow(folder / SECOND, table.schema, type(table).from_pylist(rows, table.schema).to_batches())


def found(folder: Path, tokens: Path | None = None) -> set[str]:
    return {violation.invariant for violation in validate(folder, tokens).violations} - {"I10", "manifest"}


def test_a_changed_next_token_is_named(packed: Any) -> None:
    """Within a document by the rows alone, at its end by the tokens folder."""
    longest = max(packed.corpus.doc_ids, key=lambda i: len(packed.corpus.documents[packed.corpus.doc_ids.index(i)]))

    def change(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["doc_id"] == [longest] and row["doc_offset"] == [64])
        row["next_token"][0] ^= 1

    edit(packed.folder, change)
    assert "I4" in found(packed.folder)


def test_a_changed_last_target_is_found_by_the_tokens_folder(packed: Any) -> None:
    ends = {(i, len(d) - 1) for i, d in zip(packed.corpus.doc_ids, packed.corpus.documents, strict=True)}

    def change(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if (row["doc_id"][0], row["doc_offset"][0] + row["n_tokens"]) in ends)
        row["next_token"][0] ^= 1

    edit(packed.folder, change)
    assert found(packed.folder) == set()
    assert found(packed.folder, packed.corpus.folder) == {"I5"}


def test_a_row_that_is_no_piece_of_its_bucket_is_named(packed: Any) -> None:
    manifest = read_json(packed.folder / "manifest.json")
    rows = manifest["pack"]["buckets"]["rows"]
    rows[2], rows[3] = rows[2] + 1, rows[3] - 1
    write_json(packed.folder / "manifest.json", manifest)
    assert found(packed.folder) == {"I1", "schema", "totals"}


def test_a_lost_row_is_named(packed: Any) -> None:
    edit(packed.folder, lambda rows: rows.pop())
    assert "totals" in found(packed.folder)


@pytest.mark.parametrize("entry", ["tokens_target_only", "tokens", "documents"])
def test_a_wrong_count_is_named(packed: Any, entry: str) -> None:
    manifest = read_json(packed.folder / "manifest.json")
    manifest["drops"][entry] += 1
    write_json(packed.folder / "manifest.json", manifest)
    assert found(packed.folder) == {"totals"}


def steps_of(dataset: PackedDataset) -> list[dict[str, Any]]:
    return [
        {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for batch in dataset
    ]


def test_a_step_reads_rows_of_its_bucket_and_always_the_same_number_of_targets(packed: Any) -> None:
    schedule, buckets = schedule_of(packed.folder), buckets_in(packed.folder)
    dataset = PackedDataset(packed.folder, schedule=schedule, epochs=2, seed=5)
    batches = steps_of(dataset)
    assert len(batches) == 2 * len(dataset) == 2 * schedule.steps
    short = 0
    for batch in batches:
        within = batch["step"] % len(dataset)
        rows = np.array(batch["row_ids"])
        assert set(buckets.room_of(rows).tolist()) == {2 ** int(schedule.bucket[within])}
        if not buckets.is_leftover(rows).any():
            short += batch["n_loss_tokens"] < 128
            assert batch["n_loss_tokens"] in (128, len(rows) * batch["max_seqlen"])
    assert short <= 2 * len(buckets.rows)
    orders = [
        [row for batch in half for row in batch["row_ids"]]
        for half in (batches[: len(dataset)], batches[len(dataset) :])
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(sum(buckets.rows)))
    assert orders[0] != orders[1]


def test_a_pass_trains_every_pair_of_every_document_once(packed: Any) -> None:
    expected = [pair for d in packed.corpus.documents for pair in zip(d.tolist()[:-1], d.tolist()[1:], strict=True)]
    pairs = []
    for batch in PackedDataset(packed.folder, schedule=schedule_of(packed.folder)):
        pairs += zip(batch["input_ids"].tolist(), batch["targets"].tolist(), strict=True)
    assert len(pairs) > 3000
    assert sorted(pairs) == sorted(expected)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2)])
@pytest.mark.parametrize("stop", [0, 5, -1, "next epoch"])
def test_a_scheduled_run_resumes_anywhere_on_any_number_of_ranks(
    packed: Any, before: int, after: int, stop: int | str
) -> None:
    schedule = schedule_of(packed.folder)
    options: dict[str, Any] = {"schedule": schedule, "epochs": 2, "seed": 1}
    whole = [batch["row_ids"] for batch in steps_of(PackedDataset(packed.folder, **options))]
    cut = schedule.steps + 3 if isinstance(stop, str) else stop % schedule.steps
    order: list[list[int]] = []
    state: dict[str, Any] = {}
    for ranks, last in ((before, cut), (after, cut + 2), (before, 2 * schedule.steps)):
        datasets = [PackedDataset(packed.folder, rank=rank, world_size=ranks, **options) for rank in range(ranks)]
        for dataset in datasets if state else []:
            dataset.load_state_dict(json.loads(json.dumps(state)))
        first = len(order)
        parts = [
            [batch["row_ids"].tolist() for batch, _ in zip(d, range(last - first), strict=False)] for d in datasets
        ]
        order += [[row for part in step for row in part] for step in zip(*parts, strict=True)]
        state = datasets[0].state_at(last)
    assert order == whole


def test_workers_and_copies_follow_the_schedule(packed: Any) -> None:
    dataset = PackedDataset(packed.folder, schedule=schedule_of(packed.folder))
    alone = steps_of(dataset)
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=1)
    assert [batch["row_ids"].tolist() for batch in loader] == [batch["row_ids"] for batch in alone]
    assert steps_of(pickle.loads(pickle.dumps(dataset))) == alone


def test_a_folder_with_buckets_can_be_read_without_a_schedule(packed: Any) -> None:
    batches = steps_of(PackedDataset(packed.folder, batch_rows=5))
    assert sorted(row for batch in batches for row in batch["row_ids"]) == list(range(packed.plan.rows))


def test_states_and_schedules_of_something_else_are_refused(packed: Any, pack: Callable) -> None:
    schedule = schedule_of(packed.folder)
    dataset = PackedDataset(packed.folder, schedule=schedule)
    state = dataset.state_at(3)
    assert len(json.dumps(state)) < 300
    with pytest.raises(UserError, match="has schedule"):
        PackedDataset(packed.folder, schedule=schedule_of(packed.folder, seed=1)).load_state_dict(state)
    with pytest.raises(UserError, match="has no 'batch_rows'"):
        PackedDataset(packed.folder).load_state_dict(state)
    with pytest.raises(UserError, match="has 4 rows of 32, which 3 ranks cannot share evenly"):
        PackedDataset(packed.folder, schedule=schedule, world_size=3)
    with pytest.raises(UserError, match="has no buckets; make the schedule from"):
        PackedDataset(pack(LENGTHS, 32).folder, schedule=schedule)
    with pytest.raises(UserError, match="the schedule is of buckets from 4 with rows"):
        PackedDataset(pack(LENGTHS, 32, buckets=(4,)).folder, schedule=schedule)
