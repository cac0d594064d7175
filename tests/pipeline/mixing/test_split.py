import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.funnel import check_funnel
from seqmill.pipeline.mixing import MixConfig, SplitConfig, mix, split
from seqmill.pipeline.mixing.split import fitting
from seqmill.pipeline.progress import Silent
from seqmill.storage import read_arrow

from . import oracle
from .conftest import document

Rows = list[dict[str, Any]]


class Halves:
    """Both sides of a split. Whatever was split, nothing is lost and the counts add up."""

    def __init__(self, folder: Path, out: Path, **config: Any) -> None:
        self.out = out
        self.manifests = split(folder, SplitConfig(**config), out, LocalExecutor(1), Silent())
        entered = [row for path in sorted(folder.glob("part-*")) for row in read_arrow(path).to_pylist()]
        self.rows: dict[str, Rows] = {}
        for side, manifest in self.manifests.items():
            files = [out / side / file["name"] for file in manifest["files"]]
            self.rows[side] = [row for file in files for row in read_arrow(file).to_pylist()]
            check_funnel(manifest["funnel"])
            assert manifest["funnel"][0]["documents_in"] == len(entered)
            assert manifest["totals"] == {
                "documents": len(self.rows[side]),
                "bytes": sum(len(row["text"].encode()) for row in self.rows[side]),
            }
            assert [manifest["funnel"][0][f"{unit}_out"] for unit in ("documents", "bytes")] == list(
                manifest["totals"].values()
            )
            ids = {row["doc_id"] for row in self.rows[side]}
            assert self.rows[side] == [row for row in entered if row["doc_id"] in ids]  # in order, unchanged
        assert not self.ids("train") & self.ids("holdout")
        assert len(self.rows["train"]) + len(self.rows["holdout"]) == len(entered)

    def ids(self, side: str) -> set[int]:
        return {row["doc_id"] for row in self.rows[side]}

    def counts(self, side: str) -> Counter[str]:
        return Counter(row["source"] for row in self.rows[side])


@pytest.fixture
def run_split(tmp_path: Path) -> Callable[..., Halves]:
    made = 0

    def call(folder: Path, out: Path | None = None, **config: Any) -> Halves:
        nonlocal made
        made += 1
        return Halves(folder, out or tmp_path / f"split-{made}", **config)

    return call


def rows_of(counts: dict[str, int]) -> Rows:
    draw = random.Random(3)
    names = [name for name, count in counts.items() for _ in range(count)]
    draw.shuffle(names)
    return [document(k << 2, "é" * (k % 40), name) for k, name in enumerate(names)]


@pytest.mark.parametrize("config", [{"documents": 37}, {"fraction": 0.1234}, {"documents": 300}, {"fraction": 0.001}])
def test_the_holdout_is_exact_and_has_the_sources_in_proportion(
    documents_folder: Callable[..., Path], run_split: Callable[..., Halves], config: dict[str, Any]
) -> None:
    rows = rows_of({"books": 57, "code": 13, "web": 230})
    halves = run_split(documents_folder(rows, per_part=70), seed=5, **config)
    total = config.get("documents") or round(Fraction(str(config["fraction"])) * 300)
    wanted = oracle.apportion(total, [Fraction(57), Fraction(13), Fraction(230)])
    assert [halves.counts("holdout")[name] for name in ("books", "code", "web")] == wanted
    assert halves.manifests["holdout"]["deviation"] == 0
    for name, count in zip(("books", "code", "web"), wanted, strict=True):
        own = sorted(
            (row["doc_id"] for row in rows if row["source"] == name),
            key=lambda doc_id: oracle.choice_key(doc_id, 5, "holdout"),
        )
        assert set(own[:count]) == halves.ids("holdout") & set(own)


def test_the_choice_depends_on_ids_and_seed_alone(
    documents_folder: Callable[..., Path], run_split: Callable[..., Halves]
) -> None:
    rows = rows_of({"a": 40, "b": 80})
    one = run_split(documents_folder(rows, "one", per_part=9), documents=30)
    other = run_split(documents_folder(rows, "other", per_part=120), documents=30)
    seeded = run_split(documents_folder(rows, "seeded"), documents=30, seed=1)
    assert one.ids("holdout") == other.ids("holdout") != seeded.ids("holdout")


@settings(max_examples=15)
@given(
    clusters=st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), min_size=1, max_size=40),
    share=st.integers(1, 99),
    clustered=st.booleans(),
)
def test_clusters_stay_on_one_side(
    tmp_path_factory: pytest.TempPathFactory, clusters: list[tuple[int, str]], share: int, clustered: bool
) -> None:
    from .conftest import documents_folder

    base = tmp_path_factory.mktemp("clusters")
    more = [{"cluster_id": cluster if cluster else None} if clustered else {} for cluster, _ in clusters]
    rows = [document(k + 100, "x" * k, source, **more[k]) for k, (_, source) in enumerate(clusters)]
    folder = documents_folder.__wrapped__(base)(rows, per_part=11)  # type: ignore[attr-defined]
    halves = Halves(folder, base / "out", fraction=share / 100)
    manifest = halves.manifests["holdout"]
    wanted = round(Fraction(share, 100) * len(rows))
    assert sum(manifest["wanted"].values()) == wanted
    assert len(halves.rows["holdout"]) == wanted + manifest["deviation"] <= wanted
    if clustered:
        sides = [{row["cluster_id"] for row in halves.rows[side]} - {None} for side in ("train", "holdout")]
        assert not sides[0] & sides[1]
    else:
        assert manifest["deviation"] == 0


@given(st.lists(st.integers(1, 6), max_size=30), st.integers(0, 40))
def test_groups_are_taken_in_order_while_they_fit(sizes: list[int], room: int) -> None:
    order = np.random.default_rng(len(sizes)).permutation(len(sizes))
    expected, left = [], room
    for group in order.tolist():
        if sizes[group] <= left:
            expected.append(group)
            left -= sizes[group]
    assert fitting(order, np.array(sizes, np.int64), room).tolist() == expected


def test_copies_of_a_document_stay_on_one_side(
    documents_folder: Callable[..., Path], run_split: Callable[..., Halves], tmp_path: Path
) -> None:
    folder = documents_folder(rows_of({"web": 30}))
    mix([folder], MixConfig(epochs={"web": 3}), tmp_path / "mixed", LocalExecutor(1), Silent())
    assert len(run_split(tmp_path / "mixed", documents=9).rows["holdout"]) == 9


def test_what_a_kill_left_is_finished_with_the_same_bytes(
    documents_folder: Callable[..., Path], run_split: Callable[..., Halves]
) -> None:
    folder = documents_folder(rows_of({"web": 50, "books": 20}), per_part=15)
    halves = run_split(folder, documents=13)
    paths = sorted(path for side in ("train", "holdout") for path in (halves.out / side).glob("[pm]*"))
    whole = {path: path.read_bytes() for path in paths}
    assert len(whole) == 12
    (halves.out / "train" / "part-00001.arrow").unlink()
    (halves.out / "train" / "manifest.json").unlink()
    (halves.out / "holdout" / ".state" / "part-00003.json").unlink()
    (halves.out / ".state" / "groups.arrow").unlink()
    run_split(folder, halves.out, documents=13)
    assert {path: path.read_bytes() for path in paths} == whole
    times = [path.stat().st_mtime_ns for path in paths if path.suffix == ".arrow"]
    run_split(folder, halves.out, documents=13)
    assert [path.stat().st_mtime_ns for path in paths if path.suffix == ".arrow"] == times


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_folders_are_split_too(
    documents_folder: Callable[..., Path], run_split: Callable[..., Halves], count: int
) -> None:
    halves = run_split(documents_folder(rows_of({"web": count})), fraction=0.9)
    assert len(halves.rows["holdout"]) == count


def test_what_cannot_be_held_out_is_refused(documents_folder: Callable[..., Path], run_split: Any) -> None:
    folder = documents_folder([document(k, "") for k in range(20_000)], per_part=20_000, per_batch=20_000)
    with pytest.raises(UserError, match=r"split\.documents = 20001, but there are 20000"):
        run_split(folder, documents=20_001)
    with pytest.raises(UserError, match="choosing among 20000 documents needs 2 MiB"):
        run_split(folder, documents=1, memory_mb=1)


@pytest.mark.parametrize(
    "config", [{}, {"fraction": 0.1, "documents": 1}, {"fraction": 1.0}, {"documents": 0}, {"fraction": float("nan")}]
)
def test_impossible_settings_fail_before_any_work(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="split"):
        SplitConfig(**config)
