"""Every instance of every bag is in exactly one row, the same one each time, with its own features."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.packing.sets import BagStore, SetPacks, SetSettings, bags_table, draw_packs, plan_sets, validate_sets
from seqmill.packing.sets.drawing import draw, drawn_counts

CAPACITY = 16
SIZES = [0, 1, CAPACITY, CAPACITY + 1, 100 * CAPACITY, 5, 0, 40, 31, 32, 33, 2, 2, 7]


def instances_of(packed: SetPacks) -> dict[int, list[int]]:
    """Bag -> its instances in all rows."""
    found: dict[int, list[int]] = {}
    for row in range(packed.rows):
        pack = packed.pack(row)
        for segment, bag in enumerate(pack.bags.tolist()):
            here = slice(*pack.cu_seqlens[segment : segment + 2].tolist())
            found.setdefault(bag, []).extend(pack.instances[here].tolist())
    return found


@pytest.mark.parametrize("dim", [1, 3, 512])
def test_every_instance_is_in_one_row_with_its_features(pack_bags: Callable, bags_of: Callable, dim: int) -> None:
    bags = bags_of(SIZES, dim)
    folder, _ = pack_bags(bags, capacity=CAPACITY, seed=4)
    packed = SetPacks(folder)
    found = instances_of(packed)
    assert {bag: sorted(instances) for bag, instances in found.items()} == {
        bag: list(range(size)) for bag, size in enumerate(SIZES) if size
    }
    for row in range(packed.rows):
        pack = packed.pack(row)
        assert pack.features.dtype == np.float16
        assert pack.is_residual == (row >= packed.main_rows)
        assert len(pack.features) <= CAPACITY
        for segment, bag in enumerate(pack.bags.tolist()):
            here = slice(*pack.cu_seqlens[segment : segment + 2].tolist())
            assert np.array_equal(pack.features[here], bags[bag][pack.instances[here]])
            assert (pack.bag_ids[segment], pack.labels[segment]) == (f"slide {bag}", bag % 3)
            assert (np.diff(pack.instances[here]) > 0).all()
    report = validate_sets(folder)
    assert report.ok, str(report)
    assert (report.rows, report.tokens) == (packed.rows, sum(SIZES))
    totals, sets = packed.manifest["totals"], packed.manifest["sets"]
    assert totals == {"bags": len(SIZES), "bags_empty": 2, "instances": sum(SIZES), "rows": packed.rows}
    assert sets["main"]["instances"] + sets["residual"]["instances"] == sum(SIZES)


def test_a_bag_is_whole_in_one_main_row_and_draws_its_share(pack_bags: Callable, bags_of: Callable) -> None:
    folder, _ = pack_bags(bags_of(SIZES, 2), capacity=CAPACITY, keep=0.25)
    packed = SetPacks(folder)
    drawn = {}
    for row in range(packed.main_rows):
        pack = packed.pack(row)
        for bag, size in zip(pack.bags.tolist(), np.diff(pack.cu_seqlens).tolist(), strict=True):
            assert bag not in drawn
            drawn[bag] = size
    assert drawn == {bag: min(CAPACITY, max(1, size // 4)) for bag, size in enumerate(SIZES) if size}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 1, 1, 5, 16]),
        ({"keep": 1.0}, [0, 1, 2, 10, 16]),
        ({"at_least": 4}, [0, 1, 2, 5, 16]),
        ({"at_most": 3}, [0, 1, 1, 3, 3]),
        ({"keep": 1e-9}, [0, 1, 1, 1, 1]),
    ],
)
def test_how_many_are_drawn(settings: dict, expected: list[int]) -> None:
    assert drawn_counts(np.array([0, 1, 2, 10, 100]), SetSettings(capacity=16, **settings)).tolist() == expected


@given(
    counts=st.lists(st.integers(0, 60), max_size=20),
    capacity=st.integers(1, 20),
    keep=st.floats(0.01, 1),
    seed=st.integers(0, 5),
)
def test_plans_hold_every_instance_once(counts: list[int], capacity: int, keep: float, seed: int) -> None:
    sizes = np.array(counts, np.int64)
    settings = SetSettings(capacity=capacity, keep=keep, seed=seed)
    planned = plan_sets(sizes, settings)
    places: list[tuple[int, int]] = []
    for first, last in ((0, planned.main.rows), (planned.main.rows, planned.rows)):
        for row in range(first, last):
            _, bag, start, stop = planned.fragments(row, row + 1)
            assert (stop - start).sum() <= capacity
            places += [(b, k) for b, i, j in zip(bag, start, stop, strict=True) for k in range(i, j)]
    assert sorted(places) == [(b, k) for b, size in enumerate(counts) for k in range(size)]
    chosen = draw(np.arange(len(sizes)), sizes, planned.drawn, settings)
    begin = 0
    for size in counts:
        assert sorted(chosen[begin : begin + size].tolist()) == list(range(size))
        begin += size


def test_each_instance_is_drawn_about_equally_often() -> None:
    bags, size, keep = 4000, 10, 3
    counts = np.full(bags, size)
    chosen = draw(np.arange(bags), counts, np.full(bags, keep), SetSettings(capacity=16))
    often = np.bincount(chosen.reshape(bags, size)[:, :keep].reshape(-1), minlength=size)
    assert abs(often - bags * keep / size).max() < 5 * np.sqrt(bags * keep / size)


def test_seed_and_epoch_decide_and_nothing_else_does(pack_bags: Callable, bags_of: Callable) -> None:
    def shards(**settings: int) -> list[bytes]:
        folder, _ = pack_bags(bags_of(SIZES, 3), capacity=CAPACITY, **settings)
        return [path.read_bytes() for path in sorted(folder.glob("part-*"))]

    assert shards() == shards()
    drawn = [instances_of_first(pack_bags, bags_of, **settings) for settings in ({}, {"seed": 1}, {"epoch": 1})]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def instances_of_first(pack_bags: Callable, bags_of: Callable, **settings: int) -> list[int]:
    folder, _ = pack_bags(bags_of([40], 1), capacity=CAPACITY, **settings)
    return SetPacks(folder).pack(0).instances.tolist()


def test_a_draw_that_is_not_written_has_the_same_rows(pack_bags: Callable, bags_of: Callable) -> None:
    settings = {"capacity": CAPACITY, "seed": 2, "epoch": 7}
    folder, store = pack_bags(bags_of(SIZES, 3), **settings)
    packed = SetPacks(folder)
    rows = list(draw_packs(store, SetSettings(**settings)))
    assert len(rows) == packed.rows
    for row, pack in enumerate(rows):
        stored = packed.pack(row)
        assert all(np.array_equal(a, b) for a, b in zip(pack, stored, strict=True))


def test_bags_come_from_streams_files_and_slices_alike(tmp_path: Path, write_bags: Callable, bags_of: Callable) -> None:
    bags = bags_of(SIZES, 3)
    stream = BagStore.open([write_bags(bags)])
    table = bags_table(bags, [k % 3 for k in range(len(bags))], [f"slide {k}" for k in range(len(bags))])
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    footer = BagStore.open([tmp_path / "file.arrow"])
    sliced = BagStore([table.slice(0, 4), table.slice(4, 3), table.slice(7)])
    expected = list(draw_packs(stream, SetSettings(capacity=CAPACITY)))
    for store in (footer, sliced):
        found = list(draw_packs(store, SetSettings(capacity=CAPACITY)))
        assert all(np.array_equal(a.features, b.features) for a, b in zip(found, expected, strict=True))
        assert [pack.bag_ids for pack in found] == [pack.bag_ids for pack in expected]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "sets.capacity = 0 is outside 1 to"),
        ({"keep": 0.0}, "sets.keep = 0.0: a share above 0"),
        ({"keep": 1.5}, "sets.keep = 1.5"),
        ({"capacity": 8, "at_most": 9}, "sets.at_most = 9: a main row of 8 holds 1 to 8"),
        ({"capacity": 8, "at_least": 9}, "sets.at_least = 9: a bag has at most 8"),
        ({"epoch": -1}, "sets.epoch = -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SetSettings(**settings)


def bad_tables() -> dict[str, tuple[pa.Table, str]]:
    good = bags_table([np.zeros((2, 3), np.float16)], [1], ["a"])
    wide = good.set_column(1, "features", pa.array([[[0.0] * 3]], pa.list_(pa.list_(pa.float32(), 3))))
    null = good.set_column(1, "features", pa.array([[None]], pa.list_(pa.list_(pa.float16(), 3))))
    return {
        "no label": (good.drop_columns(["label"]), "the bags have no column 'label'"),
        "other numbers": (wide, r"list<fixed_size_list<float16>\[d\]> is needed; cast it"),
        "nulls": (null, "the bags have nulls"),
        "text labels": (good.set_column(2, "label", pa.array(["x"])), "a numeric label"),
    }


@pytest.mark.parametrize("name", bad_tables())
def test_tables_that_are_no_bags_are_refused(name: str) -> None:
    table, message = bad_tables()[name]
    with pytest.raises(UserError, match=message):
        BagStore([table])


def test_bags_of_several_lengths_of_features_are_refused() -> None:
    one, two = (bags_table([np.zeros((2, dim), np.float16)], [1], ["a"]) for dim in (3, 4))
    with pytest.raises(UserError, match="some bags have features of 3 numbers, others of 4; pack them apart"):
        BagStore([one, two])
    with pytest.raises(UserError, match="no bags were given"):
        BagStore([])


def test_no_instances_give_no_rows(pack_bags: Callable) -> None:
    folder, _ = pack_bags([np.zeros((0, 2), np.float16)] * 3, capacity=4)
    packed = SetPacks(folder)
    assert (packed.rows, list(packed.steps())) == (0, [])
    assert validate_sets(folder).ok


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([0, 2**63, 2**64 - 1], pa.uint64()), pa.uint64()),
        (pa.array([0, 1, 2**63 - 1], pa.uint64()), pa.int64()),
        (pa.array([-1, 1, 2], pa.int32()), pa.int64()),
        (pa.array(["a", "b", "c"], pa.large_string()), pa.string()),
        (pa.array(["a", "b", "c"]), pa.string()),
    ],
)
def test_ids_of_any_width_are_kept(bags_of: Callable, ids: pa.Array, expected: pa.DataType) -> None:
    table = bags_table(bags_of([3, 2, 4], 2), [0, 1, 2], [0, 1, 2]).set_column(0, "bag_id", ids)
    store = BagStore([table.slice(0, 1), table.slice(1)])
    assert store.bag_ids.type == expected
    assert store.bag_ids.to_pylist() == ids.to_pylist()
    packs = list(draw_packs(store, SetSettings(capacity=CAPACITY)))
    assert {one for pack in packs for one in pack.bag_ids} == set(ids.to_pylist())


def test_ids_that_no_type_holds_together_are_refused(bags_of: Callable) -> None:
    table = bags_table(bags_of([3, 2], 2), [0, 1], [0, 1])
    tables = [table.set_column(0, "bag_id", pa.array(ids)) for ids in (np.array([2**63, 1], np.uint64), [-1, 1])]
    with pytest.raises(UserError, match=r"ids of 2\^63 or more, and -1"):
        BagStore(tables)
