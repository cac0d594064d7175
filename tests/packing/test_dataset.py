import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from damage import flip_token
from seqmill.errors import UserError
from seqmill.packing import PackedDataset, PackedRowDataset, join_rows
from seqmill.storage import read_arrow

LENGTHS = np.random.default_rng(0).integers(0, 60, 150).tolist()
CAPACITY = 32
TENSORS = {
    "input_ids": torch.int64,
    "targets": torch.int64,
    "position_ids": torch.int64,
    "cu_seqlens": torch.int32,
    "row_ids": torch.int64,
}


@pytest.fixture
def folder(pack: Callable) -> Path:
    return pack(LENGTHS, CAPACITY, shards=3).folder


def stored_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.arrow")) for row in read_arrow(path).to_pylist()]


def row_order(batches: list[dict[str, Any]]) -> list[int]:
    return [row for batch in batches for row in batch["row_ids"].tolist()]


def plain(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def global_order(folder: Path, world_size: int, first: int = 0, last: int | None = None, **options: Any) -> list[int]:
    """The rows in the order in which all ranks together read them, steps `first` to `last`."""
    ranks = [list(PackedDataset(folder, rank=rank, world_size=world_size, **options)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    steps = [list(step) for step in zip(*ranks, strict=True)][first:last]
    return [row for step in steps for row in row_order(step)]


def test_a_batch_is_its_rows_one_after_the_other(folder: Path) -> None:
    rows = stored_rows(folder)
    seen_cut = False
    for number, batch in enumerate(PackedDataset(folder, batch_rows=4, seed=3)):
        assert {name: batch[name].dtype for name in TENSORS} == TENSORS
        ids, targets, positions, bounds, longest, loss = [], [], [], [0], 0, 0
        for row in (rows[index] for index in batch["row_ids"].tolist()):
            for segment, follower in enumerate(row["next_token"]):
                tokens = row["input_ids"][row["cu_seqlens"][segment] : row["cu_seqlens"][segment + 1]]
                ids += tokens
                targets += [*tokens[1:], -100 if follower == -1 else follower]
                positions += range(len(tokens))
                bounds.append(bounds[-1] + len(tokens))
                seen_cut |= follower != -1
            longest = max(longest, row["max_seqlen"])
            loss += row["n_loss_tokens"]
        assert batch["input_ids"].tolist() == ids
        assert batch["targets"].tolist() == targets
        assert batch["position_ids"].tolist() == positions
        assert batch["cu_seqlens"].tolist() == bounds
        assert (batch["max_seqlen"], batch["n_loss_tokens"], batch["global_loss_tokens"]) == (longest, loss, loss)
        assert batch["n_loss_tokens"] == int((batch["targets"] != -100).sum())
        assert batch["step"] == number
    assert seen_cut


def test_every_target_of_every_document_is_trained_once_per_epoch(pack: Callable) -> None:
    """Also across cuts: the pairs (token, target) are those of the unpacked documents."""
    packed = pack(LENGTHS, CAPACITY)
    expected = [pair for d in packed.corpus.documents for pair in zip(d.tolist()[:-1], d.tolist()[1:], strict=True)]
    found = []
    for batch in PackedDataset(packed.folder, batch_rows=3):
        pairs = zip(batch["input_ids"].tolist(), batch["targets"].tolist(), strict=True)
        found += [pair for pair in pairs if pair[1] != -100]
    assert len(found) > 3000
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("batch_rows", [1, 4, 7, 1000])
def test_an_epoch_reads_every_row_once_and_drops_nothing(folder: Path, batch_rows: int) -> None:
    dataset = PackedDataset(folder, batch_rows=batch_rows, epochs=2)
    batches = list(dataset)
    rows = len(stored_rows(folder))
    steps = len(dataset)
    assert steps == -(-rows // batch_rows)
    assert len(batches) == 2 * steps
    first, second = row_order(batches[:steps]), row_order(batches[steps:])
    assert sorted(first) == sorted(second) == list(range(rows))
    assert first != second
    assert [batch["step"] for batch in batches] == list(range(2 * steps))


def test_the_order_depends_on_the_seed_and_can_be_the_stored_one(folder: Path) -> None:
    rows = len(stored_rows(folder))
    assert global_order(folder, 1, seed=1) != global_order(folder, 1, seed=2)
    assert global_order(folder, 1, shuffle=False) == list(range(rows))
    assert global_order(folder, 1, seed=1) != list(range(rows))


@pytest.mark.parametrize("world_size", [2, 3, 4, 9])
def test_the_global_order_does_not_depend_on_the_number_of_ranks(folder: Path, world_size: int) -> None:
    assert global_order(folder, world_size, batch_rows=8, epochs=2) == global_order(folder, 1, batch_rows=8, epochs=2)


def test_ranks_know_the_targets_of_the_whole_step(folder: Path) -> None:
    whole = list(PackedDataset(folder, batch_rows=8))
    ranks = [list(PackedDataset(folder, batch_rows=8, rank=rank, world_size=3)) for rank in range(3)]
    for number, batch in enumerate(whole):
        parts = [batches[number] for batches in ranks]
        assert {part["global_loss_tokens"] for part in parts} == {batch["n_loss_tokens"]}
        assert sum(part["n_loss_tokens"] for part in parts) == batch["n_loss_tokens"]


def test_a_rank_without_rows_gets_an_empty_batch(folder: Path) -> None:
    batch = next(iter(PackedDataset(folder, batch_rows=1, rank=0, world_size=2)))
    assert {name: tuple(batch[name].shape) for name in TENSORS} == {
        "input_ids": (0,),
        "targets": (0,),
        "position_ids": (0,),
        "cu_seqlens": (1,),
        "row_ids": (0,),
    }
    assert (batch["max_seqlen"], batch["n_loss_tokens"]) == (0, 0)
    assert batch["global_loss_tokens"] > 0


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("first", [0, 3])
def test_workers_only_prefetch(folder: Path, workers: int, first: int) -> None:
    """Also after a resume at a step that is no multiple of the number of workers."""
    dataset = PackedDataset(folder, batch_rows=8, epochs=2, rank=1, world_size=2)
    dataset.load_state_dict(dataset.state_at(first))
    alone = [plain(batch) for batch in dataset]
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    assert [plain(batch) for batch in loader] == alone
    assert [batch["step"] for batch in alone] == list(range(first, 2 * len(dataset)))


def test_another_process_can_start_from_a_copy(folder: Path) -> None:
    """Spawned workers get the dataset without its memory maps, and open them again."""
    dataset = PackedDataset(folder, seed=4)
    dataset.load_state_dict(dataset.state_at(2))
    content = pickle.dumps(dataset)
    assert len(content) < 2000
    assert [plain(batch) for batch in pickle.loads(content)] == [plain(batch) for batch in dataset]


@pytest.mark.parametrize("stop", ["start", "middle", "last", "next epoch"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 2), (2, 2)])
def test_a_run_resumed_twice_reads_what_an_unbroken_run_reads(folder: Path, stop: str, before: int, after: int) -> None:
    options: dict[str, Any] = {"batch_rows": 6, "seed": 7, "epochs": 3}
    whole = PackedDataset(folder, **options)
    steps = {"start": 0, "middle": len(whole) // 2, "last": len(whole) - 1, "next epoch": len(whole) + 2}[stop]
    expected = list(whole)
    states: list[dict[str, Any]] = []
    order: list[int] = []
    for world_size, count in ((before, steps), (after, 2), (before, None)):
        ranks = [PackedDataset(folder, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
        iterators = [iter(rank) for rank in ranks]
        if states:
            for rank in ranks:
                rank.load_state_dict(json.loads(json.dumps(states[-1])))
            assert ranks[0].state_dict() == states[-1]  # not stale before the first batch
        done = 0
        while count is None or done < count:
            step = [next(iterator, None) for iterator in iterators]
            if step[0] is None:
                break
            order += row_order([part for part in step if part is not None])
            done += 1
        found = [rank.state_dict() for rank in ranks]
        assert all(state == found[0] for state in found)
        states.append(found[0])
    assert order == row_order(expected)
    assert [state["step"] for state in states] == [steps, steps + 2, 3 * len(whole)]
    assert [state["epoch"] for state in states[:2]] == [steps // len(whole), (steps + 2) // len(whole)]


def test_the_state_is_small_json_and_the_same_for_all_ranks(folder: Path) -> None:
    states = [PackedDataset(folder, seed=2**63, rank=rank, world_size=64).state_at(10**12) for rank in (0, 63)]
    assert states[0] == states[1]
    assert len(json.dumps(states[0])) < 300
    assert json.loads(json.dumps(states[0])) == states[0]


def test_the_blocks_are_part_of_the_state(folder: Path) -> None:
    options: dict[str, Any] = {"seed": 2**63, "shuffle_shards": 10**6}
    state = PackedDataset(folder, **options).state_at(10**12)
    assert len(json.dumps(state)) < 300
    PackedDataset(folder, **options).load_state_dict(state)
    for other in ({"seed": 2**63}, {"seed": 2**63, "shuffle_shards": 2}):
        with pytest.raises(UserError, match="has shuffle_shards 1000000, this dataset"):
            PackedDataset(folder, **other).load_state_dict(state)


@pytest.mark.parametrize("world_size", [1, 3])
def test_blocks_keep_the_rows_of_a_few_shards_together(folder: Path, world_size: int) -> None:
    found = global_order(folder, world_size, shuffle_shards=1, batch_rows=5, epochs=2)
    rows = [len(read_arrow(path)) for path in sorted(folder.glob("part-*.arrow"))]
    bounds = np.cumsum([0, *rows])
    for epoch in (found[: sum(rows)], found[sum(rows) :]):
        shards = (np.searchsorted(bounds, epoch, "right") - 1).tolist()
        runs = [shard for shard, before in zip(shards, [None, *shards], strict=False) if shard != before]
        assert sorted(runs) == [0, 1, 2]
        assert sorted(epoch) == list(range(sum(rows)))
        assert epoch != sorted(epoch)


def test_a_reused_dataset_begins_where_its_state_says(folder: Path) -> None:
    dataset = PackedDataset(folder)
    everything = row_order(list(dataset))
    assert row_order(list(dataset)) == everything
    dataset.load_state_dict(dataset.state_at(2))
    assert row_order(list(dataset)) == everything[16:]


def test_no_end_means_no_end(folder: Path) -> None:
    dataset = PackedDataset(folder, epochs=None)
    batches = [batch for batch, _ in zip(dataset, range(3 * len(dataset)), strict=False)]
    assert len(batches) == 3 * len(dataset)
    assert batches[-1]["step"] == 3 * len(dataset) - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 32}, "fingerprint '00000000"),
        ({"seed": 1}, "has seed 1, this dataset 0"),
        ({"batch_rows": 4}, "has batch_rows 4, this dataset 8"),
        ({"shuffle": False}, "has shuffle False, this dataset True"),
        ({"step": -1}, "at step -1 of epoch 0"),
        ({"epoch": 1}, "at step 3 of epoch 1"),
        ({"shuffle_shards": 2}, "has shuffle_shards 2, this dataset None"),
    ],
)
def test_states_that_mean_something_else_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    dataset = PackedDataset(folder)
    state = dataset.state_at(3)
    with pytest.raises(UserError, match=message):
        dataset.load_state_dict({**state, **change})
    with pytest.raises(UserError, match="has no 'seed'"):
        dataset.load_state_dict({name: value for name, value in state.items() if name != "seed"})
    dataset.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2 ranks"),
        ({"rank": -1}, "rank -1 is not one of 1 ranks"),
        ({"world_size": 0}, "world_size is 0"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"shuffle_shards": 0}, "shuffle_shards is 0"),
        ({"shuffle_shards": 2, "shuffle": False}, "shuffle_shards is 2, but shuffle is False"),
    ],
)
def test_impossible_arguments_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackedDataset(folder, **options)


def test_a_dataset_without_rows_is_refused(pack: Callable) -> None:
    with pytest.raises(UserError, match="has no rows"):
        PackedDataset(pack([0, 0], 8).folder)


def test_single_rows_can_be_read_by_number(folder: Path) -> None:
    dataset = PackedDataset(folder)
    rows = stored_rows(folder)
    for index in (0, len(rows) // 2, len(rows) - 1):
        row = dataset.row(index)
        assert row["input_ids"].tolist() == rows[index]["input_ids"]
        assert row["doc_id"].tolist() == rows[index]["doc_id"]
        assert row["doc_offset"].tolist() == rows[index]["doc_offset"]
        assert row["row_ids"].tolist() == [index]
    with pytest.raises(IndexError):
        dataset.row(len(rows))


def test_a_changed_row_is_noticed_when_asked_for(folder: Path) -> None:
    row = flip_token(folder / "part-00001.arrow", 2)
    assert len(list(PackedDataset(folder))) > 0
    with pytest.raises(UserError, match=f"row {row} of .* does not match its hash"):
        list(PackedDataset(folder, verify=True))


def test_sound_rows_pass_the_check(folder: Path) -> None:
    assert row_order(list(PackedDataset(folder, verify=True))) == row_order(list(PackedDataset(folder)))


def test_contradicting_segments_are_not_read(folder: Path) -> None:
    """A kernel that trusted these bounds would write outside its arrays."""
    path = folder / "part-00001.arrow"
    table = read_arrow(path)
    target = max(table.to_pylist(), key=lambda row: len(row["cu_seqlens"]))
    bounds = np.array(target["cu_seqlens"], np.int32)
    del table
    assert len(bounds) > 2
    content = bytearray(path.read_bytes())
    place = content.index(bounds.tobytes())
    content[place + 4 : place + 8] = np.int32(1_000_000).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"row {target['row_id']} of .* is damaged"):
        list(PackedDataset(folder))


def test_rows_can_be_sampled_by_torch(folder: Path) -> None:
    rows, stored = PackedRowDataset(folder), stored_rows(folder)
    assert len(rows) == len(stored)
    assert plain(rows[-1]) == plain(rows[len(rows) - 1]) == plain(PackedDataset(folder).row(len(rows) - 1))
    with pytest.raises(IndexError):
        rows[len(rows)]
    for workers in (0, 2):
        loader: Any = DataLoader(rows, batch_size=4, shuffle=True, collate_fn=join_rows, num_workers=workers)
        batches = list(loader)
        seen = row_order(batches)
        assert sorted(seen) == list(range(len(stored)))
        assert seen != sorted(seen)
        for batch in batches:
            ids = [token for row in batch["row_ids"].tolist() for token in stored[row]["input_ids"]]
            assert batch["input_ids"].tolist() == ids
            docs = [doc for row in batch["row_ids"].tolist() for doc in stored[row]["doc_id"]]
            assert batch["doc_id"].tolist() == docs
            lengths = [n for row in batch["row_ids"].tolist() for n in stored[row]["seq_lengths"]]
            assert batch["cu_seqlens"].diff().tolist() == lengths
            assert batch["cu_seqlens"].dtype == torch.int32
            assert batch["cu_seqlens"][0] == 0
            assert batch["max_seqlen"] == max(lengths)
            assert batch["n_loss_tokens"] == int((batch["targets"] != -100).sum())


def test_joined_rows_are_the_batch_of_these_rows(folder: Path) -> None:
    rows = PackedRowDataset(folder)
    batch = next(iter(PackedDataset(folder, batch_rows=6)))
    joined = join_rows([rows[row] for row in batch["row_ids"].tolist()])
    assert {name: plain(joined)[name] for name in batch if name != "step"} == {
        name: value for name, value in plain(batch).items() if name != "step"
    }
