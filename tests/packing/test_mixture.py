import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from damage import flip_token
from seqmill.errors import UserError
from seqmill.manifest import MANIFEST
from seqmill.packing import MixedDataset, PackedDataset
from seqmill.packing.shares import apportion

CAPACITY = 32
WEIGHTS = {"web": 5, "code": 3, "books": 0.5}
Folders = dict[str, Path]
Batch = dict[str, Any]
Row = tuple[int, int]  # source, row id


@pytest.fixture(scope="module")
def folders(pack_once: Callable) -> Folders:
    rng = np.random.default_rng(0)
    lengths = {"web": rng.integers(0, 60, 138), "code": rng.integers(0, 90, 43), "books": rng.integers(40, 90, 4)}
    return {name: pack_once(of.tolist(), CAPACITY, seed=seed).folder for seed, (name, of) in enumerate(lengths.items())}


@pytest.fixture
def own_folders(folders: Folders, tmp_path: Path) -> Folders:
    """Copies, to be changed."""
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items()}


def rows_of(batch: Batch) -> list[Row]:
    return list(zip(batch["row_source"].tolist(), batch["row_ids"].tolist(), strict=True))


def plain(batch: Batch) -> Batch:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def steps_of(folders: Folders, world_size: int, **options: Any) -> list[list[Row]]:
    """The rows of every step, rank after rank."""
    ranks = [
        list(MixedDataset(folders, WEIGHTS, rank=rank, world_size=world_size, **options)) for rank in range(world_size)
    ]
    return [[row for part in parts for row in rows_of(part)] for parts in zip(*ranks, strict=True)]


def orders(steps: list[list[Row]]) -> list[list[int]]:
    """The rows of every source in the order in which they are read."""
    return [[row for step in steps for of, row in step if of == source] for source in range(3)]


def epochs_of(folder: Path, epochs: int, **options: Any) -> list[int]:
    return [row for batch in PackedDataset(folder, epochs=epochs, **options) for row in batch["row_ids"].tolist()]


def sizes(folders: Folders) -> list[int]:
    """Rows of the sources, in the order of their names."""
    return [json.loads((folder / MANIFEST).read_text())["totals"]["rows"] for _, folder in sorted(folders.items())]


def test_a_batch_is_the_stored_rows_of_its_sources_one_after_the_other(folders: Folders) -> None:
    alone = [PackedDataset(folders[name]) for name in sorted(folders)]
    dataset = MixedDataset(folders, WEIGHTS, batch_rows=5, seed=3)
    assert dataset.names == ("books", "code", "web")
    assert dataset.weights == (1, 6, 10)
    for number, batch in enumerate(dataset):
        rows = [alone[source].row(row) for source, row in rows_of(batch)]
        for name in ("input_ids", "targets", "position_ids"):
            assert torch.equal(batch[name], torch.cat([row[name] for row in rows]))
            assert batch[name].is_contiguous()
        assert batch["cu_seqlens"].dtype == torch.int32
        assert batch["cu_seqlens"].diff().tolist() == [n for row in rows for n in row["cu_seqlens"].diff().tolist()]
        assert batch["cu_seqlens"][[0, -1]].tolist() == [0, len(batch["input_ids"])]
        segments = [len(row["cu_seqlens"]) - 1 for row in rows]
        assert torch.equal(batch["source"], batch["row_source"].repeat_interleave(torch.tensor(segments)))
        assert batch["max_seqlen"] == max(row["max_seqlen"] for row in rows)
        assert batch["n_loss_tokens"] == batch["global_loss_tokens"] == sum(row["n_loss_tokens"] for row in rows)
        assert batch["n_loss_tokens"] == int((batch["targets"] != -100).sum())
        assert batch["step"] == number


@pytest.mark.parametrize("batch_rows", [4, 17, 40])
def test_every_block_holds_whole_rows_by_the_weights(folders: Folders, batch_rows: int) -> None:
    """Over the whole run no source is a row off at a block's border: not at the end of many epochs either."""
    dataset = MixedDataset(folders, WEIGHTS, batch_rows=batch_rows, stop="all_exhausted", seed=1)
    assert dataset.block_rows == {4: 20, 17: 17, 40: 40}[batch_rows]
    read = [source for batch in dataset for source, _ in rows_of(batch)]
    for rows in range(0, len(read), dataset.block_rows):
        counts = np.bincount(read[:rows], minlength=3)
        assert np.abs(counts - rows * np.array([1, 6, 10]) / 17).max() < 1
        assert tuple(counts.tolist()) == apportion((1, 6, 10), rows)


def test_steps_that_can_be_exact_are(folders: Folders) -> None:
    two = {"web": folders["web"], "code": folders["code"]}
    batches = list(MixedDataset(two, {"web": 0.75, "code": 0.25}, batch_rows=8))
    assert {tuple(torch.bincount(batch["row_source"], minlength=2).tolist()) for batch in batches[:-1]} == {(2, 6)}


def test_every_source_is_read_as_it_is_read_alone_epoch_after_epoch(folders: Folders) -> None:
    dataset = MixedDataset(folders, WEIGHTS, batch_rows=12, seed=5, stop="all_exhausted")
    found = orders([rows_of(batch) for batch in dataset])
    for order, name in zip(found, dataset.names, strict=True):
        assert order == epochs_of(folders[name], 9, seed=5)[: len(order)]
    read = [len(order) / rows for order, rows in zip(found, sizes(folders), strict=True)]
    assert max(read) > 1 == min(read)


def test_every_epoch_of_a_source_has_each_of_its_rows_once(folders: Folders) -> None:
    dataset = MixedDataset(folders, WEIGHTS, batch_rows=16, stop=None)
    steps = next(step for step in range(1000) if dataset.epochs_at(step)["web"] >= 2)
    found = orders([rows_of(dataset.batch_at(step)) for step in range(steps)])
    for order, rows in zip(found, sizes(folders), strict=True):
        assert len(order) > rows
        for begin in range(0, len(order) - rows, rows):
            assert sorted(order[begin : begin + rows]) == list(range(rows))


@pytest.mark.parametrize("batch_rows", [1, 4, 50])
def test_a_run_ends_with_the_first_or_the_last_source(folders: Folders, batch_rows: int) -> None:
    there = np.array(sizes(folders))
    first = [row for step in steps_of(folders, 1, batch_rows=batch_rows) for row in step]
    counts = np.bincount([source for source, _ in first], minlength=3)
    assert (counts <= there).all()
    assert (counts == there).any()
    assert len(set(first)) == len(first)  # nothing is read twice
    every = [row for step in steps_of(folders, 1, batch_rows=batch_rows, stop="all_exhausted") for row in step]
    assert every[: len(first) // batch_rows * batch_rows] == first[: len(first) // batch_rows * batch_rows]
    assert len(set(every)) == there.sum()
    assert (np.bincount([source for source, _ in every]) == there).any()  # one has been read just once
    for stop, rows in (("first_exhausted", first), ("all_exhausted", every)):
        assert len(MixedDataset(folders, WEIGHTS, batch_rows=batch_rows, stop=stop)) == -(-len(rows) // batch_rows)


def test_a_run_without_an_end_has_no_length(folders: Folders) -> None:
    dataset = MixedDataset(folders, WEIGHTS, stop=None)
    with pytest.raises(TypeError, match="no end"):
        len(dataset)
    batches = [batch for batch, _ in zip(dataset, range(100), strict=False)]
    assert [batch["step"] for batch in batches] == list(range(100))


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_ranks_change_neither_the_rows_of_a_step_nor_the_order_of_a_source(folders: Folders, world_size: int) -> None:
    options: dict[str, Any] = {"batch_rows": 10, "stop": "all_exhausted", "seed": 2}
    whole, shared = steps_of(folders, 1, **options), steps_of(folders, world_size, **options)
    assert [sorted(step) for step in shared] == [sorted(step) for step in whole]
    assert orders(shared) == orders(whole)


def test_ranks_have_equal_parts_and_know_the_targets_of_all(folders: Folders) -> None:
    whole = list(MixedDataset(folders, WEIGHTS, batch_rows=12))
    ranks = [list(MixedDataset(folders, WEIGHTS, batch_rows=12, rank=rank, world_size=4)) for rank in range(4)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert {part["global_loss_tokens"] for part in parts} == {batch["n_loss_tokens"]}
        assert sum(part["n_loss_tokens"] for part in parts) == batch["n_loss_tokens"]
        if len(batch["row_ids"]) == 12:
            assert {len(part["row_ids"]) for part in parts} == {3}


def test_a_rank_without_rows_gets_an_empty_batch(folders: Folders) -> None:
    batch = MixedDataset(folders, WEIGHTS, batch_rows=1, rank=0, world_size=2).batch_at(0)
    shapes = {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert shapes.pop("cu_seqlens") == (1,)
    assert set(shapes.values()) == {(0,)}
    assert (batch["max_seqlen"], batch["n_loss_tokens"]) == (0, 0)
    assert batch["global_loss_tokens"] > 0


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_only_prefetch(folders: Folders, workers: int) -> None:
    """Also after a resume at a step that is no multiple of the number of workers."""
    dataset = MixedDataset(folders, WEIGHTS, batch_rows=6, stop="all_exhausted", rank=1, world_size=2)
    dataset.load_state_dict(dataset.state_at(3))
    alone = [plain(batch) for batch in dataset]
    assert [batch["step"] for batch in alone] == list(range(3, len(dataset)))
    assert [plain(batch) for batch in DataLoader(dataset, batch_size=None, num_workers=workers)] == alone


@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 2), (2, 8)])
@pytest.mark.parametrize("first", [0, 9, 35])
def test_a_run_resumed_twice_reads_what_an_unbroken_run_reads(
    folders: Folders, first: int, before: int, after: int
) -> None:
    options: dict[str, Any] = {"batch_rows": 6, "seed": 7, "stop": "all_exhausted"}
    expected = steps_of(folders, 1, **options)
    assert len(expected) > first + 2
    found: list[list[Row]] = []
    state: dict[str, Any] | None = None
    for world_size, count in ((before, first), (after, 2), (before, 1000)):
        ranks = [MixedDataset(folders, WEIGHTS, rank=r, world_size=world_size, **options) for r in range(world_size)]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(json.loads(json.dumps(state)))
                assert rank.state_dict() == state  # not stale before the first batch
        iterators = [iter(rank) for rank in ranks]
        for _ in range(count):
            parts = [next(iterator, None) for iterator in iterators]
            if parts[0] is None:
                break
            found.append([row for part in parts for row in rows_of(part or {})])
        states = [rank.state_dict() for rank in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert [sorted(step) for step in found] == [sorted(step) for step in expected]
    assert orders(found) == orders(expected)


def test_the_state_is_small_json_and_the_same_for_all_ranks(pack: Callable) -> None:
    folder = pack([20, 30], CAPACITY).folder
    sources = {f"a long name of a source, number {number}": folder for number in range(40)}
    options: dict[str, Any] = {"weights": dict.fromkeys(sources, 1), "seed": 2**63, "stop": "all_exhausted"}
    states = [MixedDataset(sources, rank=rank, world_size=64, **options).state_at(10**12) for rank in (0, 63)]
    assert states[0] == states[1]
    assert len(json.dumps(states[0])) < 300


def test_a_late_step_costs_what_the_first_one_costs(folders: Folders) -> None:
    """The step is in a far epoch of every source, and nothing before it is looked at."""
    dataset = MixedDataset(folders, WEIGHTS, batch_rows=17, stop=None, seed=4)
    step = 10**9
    assert dataset.rows_at(step) == {"books": step, "code": 6 * step, "web": 10 * step}
    assert dataset.epochs_at(step)["web"] == 10 * step / sizes(folders)[2]
    batch = dataset.batch_at(step)
    expected = PackedDataset(folders["web"], batch_rows=1, seed=4, epochs=None)
    rows = [expected.batch_at(10 * step + place)["row_ids"].item() for place in range(10)]
    assert [row for source, row in rows_of(batch) if source == 2] == rows


def test_a_step_can_hold_several_epochs_of_a_small_source(pack: Callable) -> None:
    folders = {"one": pack([20], CAPACITY).folder, "two": pack([20] * 10, CAPACITY).folder}
    dataset = MixedDataset(folders, {"one": 4, "two": 1}, batch_rows=50, stop="all_exhausted")
    (batch,) = list(dataset)
    assert torch.bincount(batch["row_source"]).tolist()[1] == 10
    assert set(rows_of(batch)) == {(0, 0), *((1, row) for row in range(10))}
    assert dataset.epochs_at(len(dataset))["one"] > 30


def test_what_is_read_is_told_per_source(folders: Folders) -> None:
    dataset = MixedDataset(folders, WEIGHTS, batch_rows=7, stop="all_exhausted")
    counts = np.zeros(3, int)
    for step, batch in enumerate(dataset):
        assert list(dataset.rows_at(step).values()) == counts.tolist()
        counts += np.bincount(batch["row_source"], minlength=3)
    assert dataset.rows_at(len(dataset)) == dict(zip(dataset.names, counts.tolist(), strict=True))
    assert dataset.epochs_at(len(dataset))["web"] == 1


def test_opened_datasets_keep_their_own_seed_and_order(folders: Folders) -> None:
    sources = {
        "web": PackedDataset(folders["web"], seed=11),
        "code": PackedDataset(folders["code"], shuffle=False),
        "books": folders["books"],
    }
    steps = [rows_of(batch) for batch in MixedDataset(sources, WEIGHTS, seed=5, stop="all_exhausted")]
    books, code, web = orders(steps)
    assert web == epochs_of(folders["web"], 1, seed=11)
    assert code == epochs_of(folders["code"], 5, shuffle=False)[: len(code)]
    assert books == epochs_of(folders["books"], 9, seed=5)[: len(books)]


def test_repeats_are_told_where_any_source_tells_them(pack: Callable) -> None:
    flags = [number % 3 == 0 for number in range(30)]
    told = pack([20] * 30, CAPACITY, is_repeat=flags).folder
    silent = pack([20] * 30, CAPACITY).folder
    alone = PackedDataset(told)
    for batch in MixedDataset({"told": told, "silent": silent}, {"told": 1, "silent": 1}):
        rows = [alone.row(row)["is_repeat"] if source else torch.tensor([False]) for source, row in rows_of(batch)]
        assert torch.equal(batch["is_repeat"], torch.cat(rows))
        assert len(batch["is_repeat"]) == len(batch["source"])
    assert "is_repeat" not in next(iter(MixedDataset({"silent": silent}, {"silent": 1})))


def test_another_process_can_start_from_a_copy(folders: Folders) -> None:
    dataset = MixedDataset(folders, WEIGHTS, seed=4)
    dataset.load_state_dict(dataset.state_at(2))
    content = pickle.dumps(dataset)
    assert len(content) < 4000
    assert [plain(batch) for batch in pickle.loads(content)] == [plain(batch) for batch in dataset]


def test_a_changed_row_is_noticed_when_asked_for(own_folders: Folders) -> None:
    row = flip_token(own_folders["code"] / "part-00001.arrow", 2)
    assert len(list(MixedDataset(own_folders, WEIGHTS, stop="all_exhausted"))) > 0
    with pytest.raises(UserError, match=f"row {row} of .* does not match its hash"):
        list(MixedDataset(own_folders, WEIGHTS, stop="all_exhausted", verify=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 64}, r"books \(.*\) has row length 32, code \(.*\) 64; a mixture needs one row length"),
        ({"tokenizer": "e" * 32}, r"has tokenizer 'f+', code \(.*\) 'e+'; a mixture needs one tokenizer"),
        ({"vocab_size": 60_000}, r"has vocabulary 50000, code \(.*\) 60000; a mixture needs one vocabulary"),
        ({"buckets": {"shortest": 8, "rows": [1]}}, r"code \(.*\) has buckets"),
    ],
)
def test_sources_that_do_not_fit_together_are_refused(own_folders: Folders, change: Batch, message: str) -> None:
    path = own_folders["code"] / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "pack": {**manifest["pack"], **change}}))
    with pytest.raises(UserError, match=message):
        MixedDataset(own_folders, WEIGHTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"web": 1}}, r"sources \['books', 'code', 'web'\] and weights for \['web'\]"),
        ({"weights": {**WEIGHTS, "web": 0}}, "the weight 0 is no positive number"),
        ({"weights": {**WEIGHTS, "books": 1e-9}}, "books has one row in 8e.09, but the order of at most 1048576 rows"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"block_rows": 12}, "block_rows is 12, which is no multiple of batch_rows, 8"),
        ({"block_rows": 8}, "block_rows is 8, but books has one row in 17 .* choose at least 17"),
        ({"block_rows": 0}, "block_rows is 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2 ranks"),
        ({"stop": "longest"}, "stop is 'longest'; choose"),
    ],
)
def test_impossible_arguments_are_refused(folders: Folders, options: Batch, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MixedDataset(folders, **{"weights": WEIGHTS, **options})


def test_a_source_with_an_order_that_cannot_be_mixed_is_refused(folders: Folders) -> None:
    with pytest.raises(UserError, match=r"web \(.*\) is opened with shuffle_shards"):
        MixedDataset({**folders, "web": PackedDataset(folders["web"], shuffle_shards=1)}, WEIGHTS)


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="has sources"):
        MixedDataset({}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 32}, "is of another mixture"),
        ({"seed": 1}, "has seed 1, this one 0"),
        ({"batch_rows": 4}, "has batch_rows 4, this one 8"),
        ({"block_rows": 48}, "has block_rows 48, this one 24"),
        ({"stop": None}, "has stop None, this one 'first_exhausted'"),
        ({"step": -1}, "is at step -1"),
    ],
)
def test_states_that_mean_something_else_are_refused(folders: Folders, change: Batch, message: str) -> None:
    dataset = MixedDataset(folders, WEIGHTS)
    state = dataset.state_at(3)
    with pytest.raises(UserError, match=message):
        dataset.load_state_dict({**state, **change})
    with pytest.raises(UserError, match="has no 'seed'"):
        dataset.load_state_dict({name: value for name, value in state.items() if name != "seed"})
    dataset.load_state_dict(state)


def test_another_mixture_has_another_fingerprint(folders: Folders) -> None:
    swapped = {**folders, "web": folders["code"], "code": folders["web"]}
    others = [
        MixedDataset(folders, {**WEIGHTS, "web": 6}),
        MixedDataset(swapped, WEIGHTS),
        MixedDataset({**folders, "web": PackedDataset(folders["web"], shuffle=False)}, WEIGHTS),
        MixedDataset({**folders, "web": PackedDataset(folders["web"], seed=1)}, WEIGHTS),
    ]
    same = MixedDataset(dict(reversed(folders.items())), {name: 2 * weight for name, weight in WEIGHTS.items()})
    fingerprints = [dataset.state_dict()["fingerprint"] for dataset in (same, *others)]
    assert len(set(fingerprints)) == 5
    assert fingerprints[0] == MixedDataset(folders, WEIGHTS).state_dict()["fingerprint"]
