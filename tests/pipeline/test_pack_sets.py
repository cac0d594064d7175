"""The stage that packs bags: any kind of file in, the same bytes out for any workers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pools import local
from seqmill.errors import UserError
from seqmill.packing.sets import SetPacks, SetSettings, bags_table, plan_sets, validate_sets
from seqmill.pipeline import pack_sets as stage
from seqmill.pipeline.pack_sets import PackSetsConfig, pack_sets
from seqmill.pipeline.progress import Silent
from seqmill.storage import write_arrow

SIZES = [300, 3, 17, 0, 64, 65, 25, 1000, 12]
CONFIG = PackSetsConfig(SetSettings(capacity=64, seed=3), shard_bytes=2000)


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(size, 3)).astype(np.float16) for size in SIZES]
    return bags_table(bags, [0.5 * k for k in range(len(bags))], list(range(100, 100 + len(bags))))


@pytest.fixture
def bags(tmp_path: Path, table: pa.Table) -> Path:
    """A folder of bags: an Arrow stream, and Parquet with a column of its own."""
    folder = tmp_path / "bags"
    write_arrow(folder / "a.arrow", table.schema, table.slice(0, 4).combine_chunks().to_batches())
    pq.write_table(table.slice(4).append_column("site", pa.array(["x"] * 5)), folder / "b.parquet", row_group_size=2)
    return folder


def run(bags: Path, out: Path, workers: int = 1, config: PackSetsConfig = CONFIG) -> dict[str, Any]:
    return pack_sets([bags], config, out, local(workers), Silent())


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*sorted(out.glob("part-*")), out / "manifest.json"]}


def test_all_instances_of_all_files_are_packed(bags: Path, tmp_path: Path, table: pa.Table) -> None:
    manifest = run(bags, tmp_path / "out")
    assert manifest["totals"]["instances"] == sum(SIZES)
    assert len(manifest["files"]) > 4
    assert validate_sets(tmp_path / "out").ok
    packed = SetPacks(tmp_path / "out")
    expected = [np.array(bag, np.float16).reshape(-1, 3) for bag in table["features"].to_pylist()]
    for row in range(packed.rows):
        pack = packed.pack(row)
        for number, bag in enumerate(pack.bags.tolist()):
            here = slice(*pack.cu_seqlens[number : number + 2].tolist())
            assert np.array_equal(pack.features[here], expected[bag][pack.instances[here]])
            assert (pack.bag_ids[number], pack.labels[number]) == (100 + bag, 0.5 * bag)


def test_workers_and_a_second_run_change_no_byte(bags: Path, tmp_path: Path) -> None:
    run(bags, tmp_path / "one")
    run(bags, tmp_path / "two", workers=2)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")
    (tmp_path / "two" / "part-00002.arrow").unlink()
    run(bags, tmp_path / "two")
    assert parts(tmp_path / "one") == parts(tmp_path / "two")


def test_the_plan_is_made_once(bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(stage, "plan_sets", lambda *given: made.append(given) or plan_sets(*given))
    run(bags, tmp_path / "out")
    assert len(made) == 1


def test_other_files_are_refused(bags: Path, tmp_path: Path, table: pa.Table) -> None:
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="is no file of bags and holds none"):
            run(wrong, tmp_path / "out")
    (bags / "c.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"cannot read .*c\.parquet as Parquet"):
        run(bags, tmp_path / "out")
    with pytest.raises(UserError, match=r"sets\.shard_bytes = 0"):
        PackSetsConfig(SetSettings(), shard_bytes=0)


def test_the_command_line_packs_and_checks(seqmill: Callable[..., Any], bags: Path, tmp_path: Path) -> None:
    flags = ("--capacity", 32, "--keep", 0.25, "--at-least", 4, "--at-most", 8, "--seed", 1, "--epoch", 2)
    done = seqmill("pack-sets", bags, "--out", "out", *flags, "--workers", 1, "--json", "--quiet", cwd=tmp_path)
    figures = json.loads(done.stdout)
    assert figures["main_instances"] + figures["residual_instances"] == figures["instances"] == sum(SIZES)
    assert figures["main_instances"] == sum(min(size, 8, max(4, size // 4)) for size in SIZES)
    shown = json.loads(seqmill("inspect", "out", "--validate", "--json", cwd=tmp_path).stdout)
    assert (shown["kind"], shown["faults"], shown["rows"]) == ("sets", [], figures["rows"])
    refused = seqmill("pack-sets", bags, "--out", "x", "--keep", 2, cwd=tmp_path, code=2)
    assert "sets.keep = 2.0: a share above 0" in refused.stderr
