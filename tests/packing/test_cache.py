"""Reading a packed folder from afar: the same rows, within a limit, through any number of processes and accidents."""

import gc
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing import (
    Buckets,
    CostModel,
    MixedDataset,
    PackedDataset,
    PackedRows,
    PlanSettings,
    cache,
    load_schedule,
    load_step_plan,
    make_schedule,
    plan_steps,
    read_row_sizes,
    save_schedule,
    save_step_plan,
)
from seqmill.packing.cache import CacheFullError, RemoteFolder, ShardCache
from seqmill.storage import fingerprint, write_json

LENGTHS = np.random.default_rng(0).integers(1, 60, 150).tolist()
SHARDS = 7
FORK = multiprocessing.get_context("fork")  # the dataset in memory:// goes along


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PAUSE", 0.001)
    monkeypatch.setattr(cache, "PATIENCE", 0.2)


@pytest.fixture
def folder(pack: Callable) -> Path:
    return pack(LENGTHS, 32, shards=SHARDS).folder


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The folder in a store that is no file system."""
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/bucket/packed", recursive=True)
    yield "memory://bucket/packed"
    store.rm("/bucket", recursive=True)


@pytest.fixture
def fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, str, str]]]:
    """What was fetched so far, by this process and forked ones: process, thread, shard."""
    log, fetch = tmp_path / "fetches", RemoteFolder.fetch
    log.touch()

    def logged(self: RemoteFolder, name: str, path: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {threading.current_thread().name.split()[0]} {name}\n")
        fetch(self, name, path)

    monkeypatch.setattr(RemoteFolder, "fetch", logged)
    return lambda: [tuple(line.split()) for line in log.read_text().splitlines()]


def plain(batches: Any) -> list[dict[str, Any]]:
    return [
        {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for batch in batches
    ]


def sizes_of(folder: Path) -> list[int]:
    return [file["bytes"] for file in open_manifest(folder)["files"]]


def used(folder: Path) -> int:
    """Bytes of the shards in a cache, with the room of those that are fetched."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return sum(int(n.split(".")[2]) if n.endswith(".tmp") else (folder / n).stat().st_size for n in names)


def two_blocks(folder: Path, shards: int) -> int:
    return sum(sorted(sizes_of(folder))[-2 * shards :])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("options", [{}, {"shuffle_shards": 2}, {"shuffle": False}, {"shuffle_shards": 100}])
@pytest.mark.parametrize("scheme", ["memory", "file", "path"])
def test_a_remote_folder_is_read_as_a_local_one(
    folder: Path, url: str, tmp_path: Path, scheme: str, options: dict[str, Any]
) -> None:
    where = {"memory": url, "file": f"file://{folder}", "path": str(folder)}[scheme]
    remote = PackedDataset(where, cache=tmp_path / "cache", epochs=2, **options)
    assert plain(remote) == plain(PackedDataset(folder, epochs=2, **options))
    assert plain([remote.row(5)]) == plain([PackedDataset(folder).row(5)])


@pytest.mark.parametrize("options", [{"shuffle_shards": 1}, {"shuffle_shards": 2}, {"shuffle": False}])
@pytest.mark.parametrize("batch_rows", [8, 40])
def test_the_cache_never_exceeds_its_limit(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], batch_rows: int
) -> None:
    where, found, make_room = tmp_path / "cache", [], ShardCache._make_room

    def measured(self: ShardCache, size: int) -> None:
        make_room(self, size)
        found.append(used(where) + size)  # nothing comes or goes here

    monkeypatch.setattr(ShardCache, "_make_room", measured)
    options = {"batch_rows": batch_rows, "epochs": 3, **options}
    with pytest.raises(UserError, match=r"bytes of shards are in use at one time") as refused:
        PackedDataset(url, cache=where, cache_bytes=1, **options)
    limit = int(str(refused.value).split(", but ")[1].split()[0])
    assert plain(PackedDataset(url, cache=where, cache_bytes=limit, **options)) == plain(
        PackedDataset(folder, **options)
    )
    assert max(found) <= limit
    if batch_rows == 8:
        assert limit == two_blocks(folder, options.get("shuffle_shards", 1)) < sum(sizes_of(folder))
        assert len(found) > 2 * SHARDS  # what was evicted was fetched again


def test_a_limit_that_is_too_small_is_refused_with_a_way_out(folder: Path, url: str, tmp_path: Path) -> None:
    total, options = sum(sizes_of(folder)), {"cache": tmp_path, "cache_bytes": two_blocks(folder, 2)}
    with pytest.raises(UserError, match=f"but {total} bytes .* shuffled among themselves.*set shuffle_shards"):
        PackedDataset(url, **options)
    with pytest.raises(UserError, match=r"blocks of 3 shards, the current and the next one.*smaller shuffle_shards"):
        PackedDataset(url, shuffle_shards=3, **options)
    with pytest.raises(UserError, match=r"choose a cache_bytes of .* pack with a smaller shard_tokens"):
        PackedDataset(url, shuffle_shards=1, cache=tmp_path, cache_bytes=5)
    with pytest.raises(UserError, match="is remote, and its shards need a place here; name a folder with cache="):
        PackedDataset(url)
    PackedDataset(url, shuffle_shards=2, **options)


def test_rows_are_read_one_by_one_within_the_limit(folder: Path, url: str, tmp_path: Path) -> None:
    """Without blocks to hold: what was mapped goes when there is no room."""
    rows = PackedRows(url, tmp_path / "cache", max(sizes_of(folder)))
    local = PackedRows(folder)
    for row in range(0, rows.rows, 3):
        assert rows.row(row)["input_ids"].tolist() == local.row(row)["input_ids"].tolist()
        assert used(tmp_path / "cache") <= max(sizes_of(folder))
    with pytest.raises(UserError, match=r"no room for memory://bucket/packed/part-0000.*this step needs \d+ bytes"):
        rows.read(np.arange(rows.rows), np.arange(rows.rows))


def test_the_next_block_is_fetched_while_this_one_is_read(url: str, tmp_path: Path, fetches: Callable) -> None:
    dataset = PackedDataset(url, cache=tmp_path / "cache", shuffle_shards=2, batch_rows=4)
    for step in range(len(dataset)):
        order = dataset._order.use(0, step)
        dataset.batch_at(step)
        wanted = [f"part-{shard:05d}.arrow" for shard in (*order.now, *order.ahead)]
        wait_until(lambda: {name for _, _, name in fetches()} >= set(wanted))  # noqa: B023
        if step == 0:
            first = set(fetches())
    waited = {name for _, thread, name in set(fetches()) - first if thread == "MainThread"}
    assert not waited
    assert len(fetches()) == SHARDS  # each once


def test_a_run_fetches_nothing_behind_its_end(folder: Path, url: str, tmp_path: Path, fetches: Callable) -> None:
    options: dict[str, Any] = {"cache_bytes": two_blocks(folder, 1), "shuffle_shards": 1, "seed": 1}
    dataset = PackedDataset(url, cache=tmp_path / "cache", **options)
    last, after = (dataset._order.use(0, len(dataset) - 1, epochs) for epochs in (1, 2))
    assert (last.now, last.ahead) == (after.now, ())
    assert after.ahead not in [last.now, dataset._order.use(0, len(dataset) - 5).now]  # or it would be here anyway
    list(dataset)
    time.sleep(0.05)
    assert len(fetches()) == SHARDS


def test_shards_for_a_plan_are_fetched_before_their_steps_in_its_order(
    folder: Path, url: str, tmp_path: Path, fetches: Callable
) -> None:
    model = CostModel(per_square=1.0, per_token=10.0, per_segment=1.0, per_row=0.0, per_exchanged_token=0.1, unit="s")
    plan = plan_steps(read_row_sizes(folder), model, PlanSettings(1, 2), open_manifest(folder)["fingerprint"])
    dataset = PackedDataset(url, cache=tmp_path / "cache", plan=plan)
    assert plain([dataset.batch_at(0)]) == plain([PackedDataset(folder, plan=plan).batch_at(0)])
    wait_until(lambda: len(fetches()) == SHARDS)
    bounds = dataset._rows.shards.first_rows
    needed = (np.searchsorted(bounds, plan.row_id, "right") - 1).tolist()
    assert dataset._order.use(0, 0).now == tuple(dict.fromkeys(needed))


def test_the_shards_of_a_mixture_are_fetched_ahead_and_must_fit_together(
    folder: Path, url: str, pack: Callable, tmp_path: Path, fetches: Callable
) -> None:
    other = pack(LENGTHS[:40], 32, shards=2, seed=1).folder
    total = [sum(sizes_of(one)) for one in (folder, other)]

    def mixture(limit: int) -> MixedDataset:
        cached: dict[str, Any] = {"cache": tmp_path / "cache", "cache_bytes": limit}
        sources = {"far": PackedDataset(url, **cached), "near": PackedDataset(f"file://{other}", **cached)}
        return MixedDataset(sources, {"far": 2, "near": 1})

    with pytest.raises(UserError, match=f"is {max(total)}, but {sum(total)} bytes of shards of far, near are in use"):
        mixture(max(total))
    mixed = mixture(sum(total))
    local = MixedDataset({"far": folder, "near": other}, {"far": 2, "near": 1})
    assert plain([mixed.batch_at(0)]) == plain([local.batch_at(0)])
    wait_until(lambda: len(fetches()) == SHARDS + 2)
    assert plain(mixed) == plain(local)
    assert len(fetches()) == SHARDS + 2


def test_schedules_and_plans_are_read_from_afar(pack: Callable, url: str, folder: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    schedule = make_schedule(Buckets(4, "longest", "carry_to_packer", (16, 12), 0, 0), 16)
    save_schedule(tmp_path / "schedule.arrow", schedule)
    model = CostModel(per_square=1.0, per_token=10.0, per_segment=1.0, per_row=0.0, per_exchanged_token=0.1, unit="s")
    plan = plan_steps(read_row_sizes(folder), model, PlanSettings(1, 2), open_manifest(folder)["fingerprint"])
    save_step_plan(tmp_path / "plan.arrow", plan)
    store.put(str(tmp_path / "schedule.arrow"), "/bucket/schedule.arrow")
    store.put(str(tmp_path / "plan.arrow"), "/bucket/plan.arrow")
    assert load_schedule("memory://bucket/schedule.arrow").fingerprint == schedule.fingerprint
    assert PackedDataset(folder, plan="memory://bucket/plan.arrow")._order.plan.hash == plan.hash
    with pytest.raises(UserError, match=r"there is no file memory://bucket/none.arrow"):
        load_schedule("memory://bucket/none.arrow")
    store.pipe_file("/bucket/plan.arrow", b"no stream")
    with pytest.raises(UserError, match=r"cannot read memory://bucket/plan.arrow as an Arrow stream"):
        load_step_plan("memory://bucket/plan.arrow")


def test_threads_end_with_their_dataset(url: str, tmp_path: Path) -> None:
    def threads() -> int:
        return sum(thread.name == "seqmill-prefetch" for thread in threading.enumerate())

    gc.collect()
    wait_until(lambda: threads() == 0)
    dataset = PackedDataset(url, cache=tmp_path, shuffle_shards=1)
    dataset.batch_at(0)
    assert threads() > 0
    del dataset
    gc.collect()
    wait_until(lambda: threads() == 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_through_the_cache_of_their_parent(
    folder: Path, url: str, tmp_path: Path, fetches: Callable, workers: int
) -> None:
    dataset = PackedDataset(url, cache=tmp_path / "cache", shuffle_shards=2, epochs=2)
    dataset.batch_at(0)  # threads and locks that the workers must not inherit
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers)
    assert plain(loader) == plain(PackedDataset(folder, shuffle_shards=2, epochs=2))
    assert len(fetches()) == SHARDS


def test_workers_keep_within_the_limit_too(folder: Path, url: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shuffle_shards": 2, "epochs": 2, "batch_rows": 6}
    dataset = PackedDataset(url, cache=tmp_path / "cache", cache_bytes=two_blocks(folder, 2), **options)
    assert dataset._rows.shards.cache
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=1)
    for batch, expected in zip(loader, PackedDataset(folder, **options), strict=True):
        assert batch["row_ids"].tolist() == expected["row_ids"].tolist()
        with dataset._rows.shards.cache._alone():  # nothing comes or goes
            assert used(tmp_path / "cache") <= two_blocks(folder, 2)


def test_a_copy_needs_no_manifest(url: str, tmp_path: Path) -> None:
    dataset = PackedDataset(url, cache=tmp_path, shuffle_shards=2)
    content = pickle.dumps(dataset)
    fsspec.filesystem("memory").rm("/bucket/packed/manifest.json")
    assert plain(pickle.loads(content)) == plain(dataset)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:], "part-00003.arrow: the .* hash"),
        (lambda content: content[:-8], r"part-00003.arrow: the manifest lists \d+ bytes, found \d+; the shard was"),
        (None, r"part-00003.arrow is missing, but the manifest lists it; copy the folder again"),
    ],
)
def test_a_shard_that_is_not_the_listed_one_is_named(
    url: str, tmp_path: Path, fetches: Callable, damage: Callable[[bytes], bytes] | None, message: str
) -> None:
    store, path = fsspec.filesystem("memory"), "/bucket/packed/part-00003.arrow"
    if damage:
        store.pipe_file(path, damage(store.cat_file(path)))
    else:
        store.rm(path)
    dataset = PackedDataset(url, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=message):
        list(dataset)
    attempts = sum(name == "part-00003.arrow" and thread == "MainThread" for _, thread, name in fetches())
    assert attempts <= 4
    wait_until(lambda: not list((tmp_path / "cache").glob("*.tmp")))
    assert len(list((tmp_path / "cache").glob("*.arrow"))) < SHARDS


def test_a_manifest_of_other_shards_is_noticed(folder: Path, tmp_path: Path) -> None:
    manifest = open_manifest(folder)
    manifest["files"][2]["rows"] += 1
    write_json(folder / "manifest.json", {**manifest, "fingerprint": fingerprint(manifest)})
    with pytest.raises(UserError, match=r"part-00002.arrow has \d+ rows, the manifest lists"):
        list(PackedDataset(f"file://{folder}", cache=tmp_path / "cache"))
    with pytest.raises(UserError, match=r"part-00002.arrow has \d+ rows, the manifest lists"):
        PackedDataset(folder)
    (folder / "part-00004.arrow").unlink()
    with pytest.raises(UserError, match=r"part-00004.arrow: the manifest lists \d+ bytes, found no"):
        PackedDataset(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "memory://bucket/packed has no manifest.json"),
        (b"{", "manifest.json is not valid JSON"),
        (b'{"format_version": 99}', "has format version 99"),
        (b'{"format_version": 1, "kind": "tokens"}', "holds tokens, but packed are needed"),
        (
            b'{"format_version": 1, "kind": "packed", "files": [{"name": "a", "xxh3_128": "../../b"}]}',
            "a has no hash of 32 hex digits",
        ),
    ],
)
def test_a_folder_that_is_no_packed_one_is_refused(url: str, tmp_path: Path, content: Any, message: str) -> None:
    store = fsspec.filesystem("memory")
    store.rm("/bucket/packed/manifest.json")
    if content:
        store.pipe_file("/bucket/packed/manifest.json", content)
    with pytest.raises(UserError, match=message):
        PackedDataset(url, cache=tmp_path)


def test_a_url_that_nothing_can_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open nothing://bucket"):
        PackedDataset("nothing://bucket/packed", cache=tmp_path)


@pytest.mark.parametrize("failures", [3, 4])
def test_errors_of_the_transport_are_tried_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Three times; half a file that came is thrown away."""
    fetch, seen = RemoteFolder.fetch, 0

    def failing(self: RemoteFolder, name: str, path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen <= failures:
            path.write_bytes(b"half")
            raise ConnectionError("reset by peer")
        fetch(self, name, path)

    monkeypatch.setattr(RemoteFolder, "fetch", failing)
    rows = PackedRows(url, tmp_path)
    if failures < 4:
        assert len(rows.row(0)["input_ids"])
    else:
        with pytest.raises(UserError, match="cannot be read after 4 attempts: ConnectionError: reset by peer"):
            rows.row(0)
        assert not list(tmp_path.glob("*.arrow*"))


def test_a_copy_that_was_cut_short_is_fetched_again(folder: Path, url: str, tmp_path: Path) -> None:
    list(PackedDataset(url, cache=tmp_path))
    copy = max(tmp_path.glob("*.arrow"))
    os.truncate(copy, 50)
    assert plain(PackedDataset(url, cache=tmp_path)) == plain(PackedDataset(folder))


def test_a_copy_that_was_changed_is_noticed_when_asked_for(url: str, tmp_path: Path) -> None:
    list(PackedDataset(url, cache=tmp_path))
    row = PackedRows(url, tmp_path).row(0)
    for copy in tmp_path.glob("*.arrow"):
        copy.write_bytes(copy.read_bytes().replace(row["input_ids"].tobytes(), bytes(2 * len(row["input_ids"]))))
    with pytest.raises(UserError, match="row 0 of memory://bucket/packed does not match its hash"):
        list(PackedDataset(url, cache=tmp_path, verify=True))


def test_what_was_used_longest_ago_and_is_not_held_goes_first(folder: Path, tmp_path: Path) -> None:
    shards = open_manifest(folder)["files"]
    (tmp_path / "mine.arrow").write_bytes(b"x" * 10**6)  # of the user: neither counted nor touched
    here = ShardCache(RemoteFolder(f"file://{folder}", "packed"), tmp_path, sum(shard["bytes"] for shard in shards[:3]))
    held = [here.hold(shard) for shard in shards[:3]]
    with pytest.raises(CacheFullError):
        here.hold(shards[3], wait=False)
    for one, when in zip(held, (30, 10, 20), strict=True):
        os.utime(one.path, (when, when))
    held[0].release()
    held[2].release()
    here.hold(shards[5])
    names = {path.name[:32] for path in tmp_path.glob("*.arrow")} - {"mine.arrow"[:32]}
    assert names >= {shards[1]["xxh3_128"], shards[5]["xxh3_128"]}  # held; new
    assert shards[2]["xxh3_128"] not in names  # used before shard 0
    assert (tmp_path / "mine.arrow").exists()


def test_processes_share_a_cache_and_fetch_every_shard_once(
    folder: Path, url: str, tmp_path: Path, fetches: Callable
) -> None:
    options: dict[str, Any] = {"world_size": 4, "shuffle_shards": 3, "epochs": 2}

    def read(rank: int) -> None:
        found = plain(PackedDataset(url, rank=rank, cache=tmp_path / "cache", **options))
        (tmp_path / f"{rank}.json").write_text(json.dumps(found))

    children = [FORK.Process(target=read, args=(rank,)) for rank in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    for rank in range(4):
        expected = plain(PackedDataset(folder, rank=rank, **options))
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
    assert sorted(name for _, _, name in fetches()) == [f"part-{shard:05d}.arrow" for shard in range(SHARDS)]


def test_a_killed_process_leaves_no_lock_and_no_half_file(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, fetch = tmp_path / "cache", RemoteFolder.fetch

    def stuck(self: RemoteFolder, name: str, path: Path) -> None:
        if name != "part-00000.arrow":
            path.write_bytes(b"half of it")
            (tmp_path / f"stuck-{name}").touch()
            time.sleep(1000)
        fetch(self, name, path)

    def read() -> None:
        monkeypatch.setattr(RemoteFolder, "fetch", stuck)
        list(PackedDataset(url, cache=where, cache_bytes=sum(sizes_of(folder))))

    child = FORK.Process(target=read)
    child.start()
    wait_until(lambda: len(list(tmp_path.glob("stuck-*"))) >= 4)  # fetched by several threads at once
    assert child.pid is not None
    expected = plain(PackedDataset(folder))
    waiting = PackedDataset(url, cache=where, cache_bytes=sum(sizes_of(folder)))
    threading.Timer(0.1, os.kill, (child.pid, signal.SIGKILL)).start()
    assert plain(waiting) == expected  # waits for the other's shard until that is killed
    child.join()
    assert not list(where.glob("*.tmp"))
    assert used(where) == sum(sizes_of(folder))


def test_leftovers_of_killed_processes_go_when_a_cache_is_opened(url: str, tmp_path: Path) -> None:
    left = tmp_path / f"{'a' * 32}.arrow.1000000.tmp"
    left.write_bytes(b"half")
    PackedRows(url, tmp_path)
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="opening the cache"):
        PackedDataset(url, cache=tmp_path / "file")
    shutil.rmtree(tmp_path / "missing", ignore_errors=True)
    PackedDataset(url, cache=tmp_path / "missing" / "folders")
