import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pools import local
from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing import PackedDataset, validate
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.inspection import inspect_folder
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.repeats import SampleConfig, sample
from seqmill.pipeline.repeats.choose import LEFT_OUT, REPEATED, UNIQUE, choose
from seqmill.pipeline.repeats.windows import cut
from seqmill.storage import read_arrow

from .conftest import WriteTokens

LENGTHS = np.random.default_rng(0).integers(0, 60, 400).tolist()
CONFIG = SampleConfig(tokens=5000, repeat_fraction=0.3, repeats=10, seed=1)
Row = dict[str, Any]


def rows_of(folder: Path) -> list[Row]:
    return [row for file in open_manifest(folder)["files"] for row in read_arrow(folder / file["name"]).to_pylist()]


def run(tokens: Path, out: Path, config: SampleConfig, workers: int = 1) -> dict[str, Any]:
    return sample(tokens, config, out, local(workers), Silent())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def content(row: Row) -> tuple[Any, ...]:
    return row["doc_id"], row.get("start", 0), tuple(row["input_ids"]), row["num_bytes"], row["source"]


def check(tokens: Path, out: Path, manifest: dict[str, Any], config: SampleConfig) -> None:
    """The rows are whole documents of the input in the right numbers of copies, and the manifest counts them."""
    rows, given_rows = rows_of(out), rows_of(tokens)
    n = config.seq_len
    if n is None:
        pieces = [content(row) for row in given_rows]
    else:
        pieces = []
        for row in given_rows:
            size, length = row["num_bytes"], len(row["input_ids"])
            for k in range(length // n):
                own = size * n * (k + 1) // length - size * n * k // length
                pieces.append((row["doc_id"], k * n, tuple(row["input_ids"][k * n : k * n + n]), own, row["source"]))
    assert set(map(content, rows)) <= set(pieces)
    copies: dict[Any, list[int]] = defaultdict(list)
    flags: dict[Any, set[bool]] = defaultdict(set)
    for row in rows:
        copies[content(row)].append(row["copy"])
        flags[content(row)].add(row["is_repeat"])
    counted: dict[str, Counter] = defaultdict(Counter)
    for key, numbers in copies.items():
        (flag,) = flags[key]
        assert sorted(numbers) == list(range(config.repeats if flag else 1))
        for kind, times in (("subset", 1), ("repeated", config.repeats)) if flag else (("unique", 1),):
            for scope in ("", key[-1]):
                counted[kind + scope] += Counter(documents=times, tokens=times * len(key[2]), bytes=times * key[3])
    realised = manifest["repeats"]["realised"]
    for kind in ("subset", "repeated", "unique"):
        assert counted[kind] == Counter(realised[kind])
        for source, own in manifest["repeats"]["by_source"].items():
            assert counted[kind + source] == Counter(own[kind])
    for unit in ("documents", "tokens", "bytes"):
        assert (
            realised["all"][unit] == manifest["totals"][unit] == realised["repeated"][unit] + realised["unique"][unit]
        )
    assert realised["subset"]["documents"] + realised["unique"]["documents"] + realised["left_out"]["documents"] == len(
        pieces
    )
    tokens_all = sum(len(row["input_ids"]) for row in rows)
    repeated = sum(len(row["input_ids"]) for row in rows if row["is_repeat"])
    assert realised["fraction"] == pytest.approx(repeated / max(1, tokens_all), abs=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        SampleConfig(tokens=5000, repeat_fraction=0.1, repeats=100, seed=2),
        SampleConfig(tokens=3000, repeat_fraction=0.0, repeats=7),
        SampleConfig(tokens=3000, repeat_fraction=1.0, repeats=4),
        SampleConfig(tokens=3000, repeat_fraction=0.5, repeats=1),
        SampleConfig(tokens=4000, repeat_fraction=0.25, repeats=5, mode="sequence", seq_len=8),
    ],
)
def test_the_output_is_what_the_manifest_says_and_close_to_what_was_wanted(
    write_tokens: WriteTokens, tmp_path: Path, config: SampleConfig
) -> None:
    tokens = write_tokens(LENGTHS)
    manifest = run(tokens, tmp_path / "out", config)
    check(tokens, tmp_path / "out", manifest, config)
    realised = manifest["repeats"]["realised"]
    slack = 0 if config.mode == "document" else config.seq_len or 0  # there are documents of 1 token, windows of 8
    assert abs(realised["all"]["tokens"] - config.tokens) <= max(slack, 1) * (config.repeats if slack else 1)
    assert abs(realised["fraction"] - config.repeat_fraction) <= config.repeats * max(1, slack) / config.tokens
    assert not (tmp_path / "out" / ".state" / "runs").exists()


LENGTH = st.integers(0, 50)


@settings(max_examples=150, deadline=None)
@given(st.lists(LENGTH, max_size=60), st.integers(1, 2000), st.integers(0, 20), st.integers(1, 20), st.randoms())
def test_no_document_left_out_would_bring_the_counts_closer(
    lengths: list[int], tokens: int, twentieths: int, repeats: int, random: Any
) -> None:
    config = SampleConfig(tokens=tokens, repeat_fraction=twentieths / 20, repeats=repeats)
    order = list(range(len(lengths)))
    random.shuffle(order)
    sizes = np.array(lengths, np.int64)
    try:
        wanted, choice = choose(sizes, np.array(order, np.int64), config)
    except UserError as error:
        subset = round(twentieths * tokens / 20 / repeats)
        needs = re.search(r"needs (\d+) tokens", str(error))
        if needs is None:
            assert 2 * subset <= min(n for n in lengths if n)
        else:
            once = 0 if twentieths == 20 else tokens - round(twentieths * tokens / 20)
            assert sum(lengths) < int(needs[1])
            assert int(needs[1]) >= subset + once - repeats * 25
            assert int(needs[1]) <= subset + tokens or sum(lengths) < subset + once + repeats * 25
        return
    assert not choice[sizes == 0].any()
    subset, unique = (int(sizes[choice == kind].sum()) for kind in (REPEATED, UNIQUE))
    targets = {REPEATED: wanted["subset_tokens"], UNIQUE: 0 if twentieths == 20 else max(0, tokens - repeats * subset)}
    for kind, reached in ((REPEATED, subset), (UNIQUE, unique)):
        for size in sizes[(choice == LEFT_OUT) & (sizes > 0)]:
            assert abs(reached + size - targets[kind]) >= abs(reached - targets[kind])
    assert wanted["repeated_tokens"] + wanted["unique_tokens"] == tokens
    # a document that fits is never passed over: those of the subset before it in order leave it no room
    room = targets[REPEATED]
    for item in order:
        if 0 < sizes[item] <= room:
            assert choice[item] == REPEATED
            room -= sizes[item]


def test_the_bytes_depend_neither_on_workers_nor_on_a_restart(write_tokens: WriteTokens, tmp_path: Path) -> None:
    tokens = write_tokens(LENGTHS)
    run(tokens, tmp_path / "one", CONFIG)
    run(tokens, tmp_path / "two", CONFIG, workers=2)
    expected = files_of(tmp_path / "one")
    assert files_of(tmp_path / "two") == expected
    before = (tmp_path / "one" / "part-00000.arrow").stat().st_mtime_ns
    run(tokens, tmp_path / "one", CONFIG)
    assert (tmp_path / "one" / "part-00000.arrow").stat().st_mtime_ns == before, "a finished run was done again"
    (tmp_path / "one" / "part-00000.arrow").unlink()
    run(tokens, tmp_path / "one", CONFIG)
    assert files_of(tmp_path / "one") == expected


class Stopping(LocalExecutor):
    """Stands for a kill: performs `left` units, over all stages, and no more."""

    def __init__(self, left: int) -> None:
        super().__init__(1)
        self.left = left

    def run(self, call: Callable[[Any], Any], arguments: Any) -> Any:
        for result in super().run(call, arguments):
            yield result
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bytes(write_tokens: WriteTokens, tmp_path: Path) -> None:
    tokens = write_tokens(LENGTHS * 20)
    config = SampleConfig(tokens=200_000, repeat_fraction=0.5, repeats=10, memory_mb=1)
    run(tokens, tmp_path / "straight", config)
    expected = files_of(tmp_path / "straight")
    units = 1 + 3 + len(expected) - 1  # choose, deal three parts, gather
    assert units > 5
    for left in (1, 3, units - 1):
        out = tmp_path / f"stopped-{left}"
        with pytest.raises(KeyboardInterrupt):
            sample(tokens, config, out, Stopping(left), Silent())
        assert not (out / "manifest.json").exists()
        run(tokens, out, config)
        assert files_of(out) == expected


def test_the_order_and_the_choice_do_not_depend_on_how_the_input_is_cut(
    write_tokens: WriteTokens, tmp_path: Path
) -> None:
    one, many = write_tokens(LENGTHS, files=1), write_tokens(LENGTHS, files=6)
    for number, tokens in enumerate((one, many)):
        run(tokens, tmp_path / str(number), CONFIG)
    assert rows_of(tmp_path / "0") == rows_of(tmp_path / "1")


def test_a_small_budget_gives_the_same_rows_in_more_parts(write_tokens: WriteTokens, tmp_path: Path) -> None:
    tokens = write_tokens([2000] * 600)
    asked = {"tokens": 1_200_000, "repeat_fraction": 0.5, "repeats": 20, "seed": 3}
    whole = run(tokens, tmp_path / "whole", SampleConfig(**asked))
    tight = run(tokens, tmp_path / "tight", SampleConfig(**asked, memory_mb=1))
    assert len(whole["files"]) == 1
    assert len(tight["files"]) > 5
    assert max(file["bytes"] for file in tight["files"]) < 1 << 20
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "tight")
    assert whole["repeats"] == tight["repeats"]


def test_copies_are_spread_over_the_output(write_tokens: WriteTokens, tmp_path: Path) -> None:
    run(write_tokens([10] * 1000), tmp_path / "out", SampleConfig(tokens=8000, repeat_fraction=0.5, repeats=20))
    rows = rows_of(tmp_path / "out")
    quarters = Counter(4 * place // len(rows) for place, row in enumerate(rows) if row["is_repeat"])
    assert all(70 <= quarters[quarter] <= 130 for quarter in range(4)), quarters  # 100 of 200 expected; sd 7
    neighbours = sum(a["doc_id"] == b["doc_id"] for a, b in pairwise(rows))
    assert neighbours < 25  # 400 of 800 rows are repeats of 20 documents: about 10 by chance


def test_another_seed_repeats_other_documents(write_tokens: WriteTokens, tmp_path: Path) -> None:
    tokens = write_tokens(LENGTHS)
    chosen = []
    for seed in (1, 2):
        run(tokens, tmp_path / str(seed), SampleConfig(tokens=5000, repeat_fraction=0.3, repeats=10, seed=seed))
        chosen.append({row["doc_id"] for row in rows_of(tmp_path / str(seed)) if row["is_repeat"]})
    assert len(chosen[0] & chosen[1]) < min(map(len, chosen)) / 2


@pytest.mark.parametrize("mode", [{}, {"mode": "sequence", "seq_len": 16}])
def test_repeats_are_packed_and_told_apart_to_the_trainer(
    write_tokens: WriteTokens, tmp_path: Path, mode: dict[str, Any]
) -> None:
    manifest = run(write_tokens(LENGTHS), tmp_path / "out", SampleConfig(4000, 0.4, 8, seed=1, **mode))
    packed = pack(tmp_path / "out", PackConfig(seq_len=16), tmp_path / "packed", LocalExecutor(1), Silent())
    report = validate(tmp_path / "packed", tmp_path / "out")
    assert report.ok, str(report)
    realised = manifest["repeats"]["realised"]
    assert packed["totals"]["repeat_tokens"] == realised["repeated"]["tokens"]
    assert packed["totals"]["tokens"] == realised["all"]["tokens"]
    for folder in (tmp_path / "out", tmp_path / "packed"):
        figures, faults = inspect_folder(folder, check=True)
        assert figures["repeat_share"] == pytest.approx(realised["fraction"], abs=1e-6)
        assert not faults
    flagged = 0
    for batch in PackedDataset(tmp_path / "packed"):
        flagged += int((batch["cu_seqlens"].diff() * batch["is_repeat"]).sum())
    assert flagged == realised["repeated"]["tokens"]


def test_windows_are_cut_as_slices_would_be() -> None:
    lengths = [0, 3, 4, 10, 8, 1]
    ids = pa.array([list(range(10 * i, 10 * i + n)) for i, n in enumerate(lengths)], pa.list_(pa.uint16()))
    columns = {
        "doc_id": pa.array(range(6), pa.uint64()),
        "input_ids": ids,
        "num_bytes": pa.array(range(6), pa.uint32()),
    }
    batch = pa.record_batch(columns)
    for part in (batch, batch.slice(2, 3), batch.slice(0, 0)):
        windows, index = cut(part, 4)
        rows = part.to_pylist()
        expected = [
            (row["doc_id"], 4 * k, row["input_ids"][4 * k : 4 * k + 4])
            for row in rows
            for k in range(len(row["input_ids"]) // 4)
        ]
        assert [(row["doc_id"], row["start"], row["input_ids"]) for row in windows.to_pylist()] == expected
        assert index.tolist() == [start // 4 for _, start, _ in expected]


def test_the_damage_band_of_the_paper_is_told(write_tokens: WriteTokens, tmp_path: Path) -> None:
    """For 800 million parameters the paper saw most damage from about 43 to about 1,800 repeats."""
    tokens = write_tokens([6] * 2000)
    bands = {}
    for repeats in (10, 100, 2000):
        config = SampleConfig(tokens=20_000, repeat_fraction=0.6, repeats=repeats, parameters=800_000_000)
        bands[repeats] = run(tokens, tmp_path / str(repeats), config)["repeats"]["damage_band"]
    assert {repeats: band["inside"] for repeats, band in bands.items()} == {10: False, 100: True, 2000: False}
    assert bands[10] == {"parameters": 800_000_000, "from_repeats": 43.4, "to_repeats": 1803.1, "inside": False}
    assert "damage_band" not in run(tokens, tmp_path / "plain", CONFIG)["repeats"]


REFUSED: dict[str, tuple[Callable[[WriteTokens], Path], SampleConfig, str]] = {
    "too few tokens": (
        lambda write: write([10] * 100),
        SampleConfig(tokens=2000, repeat_fraction=0.5, repeats=10),
        "needs 1100 tokens of distinct documents, the input has 1000; ask for at most about 1818 tokens",
    ),
    "no tokens at all": (
        lambda write: write([0, 0, 0]),
        SampleConfig(tokens=10, repeat_fraction=0.5, repeats=1),
        "the input has 0",
    ),
    "no documents at all": (
        lambda write: write([]),
        SampleConfig(tokens=10, repeat_fraction=0.5, repeats=1),
        "the input has 0",
    ),
    "a subset smaller than any document": (
        lambda write: write([100] * 50),
        SampleConfig(tokens=1000, repeat_fraction=0.1, repeats=10),
        "repeats a subset of 10 tokens, but the shortest of the documents has 100",
    ),
    "windows longer than documents": (
        lambda write: write([10] * 50),
        SampleConfig(tokens=100, repeat_fraction=0.5, repeats=5, mode="sequence", seq_len=11),
        "tokens of distinct windows, the input has 0",
    ),
    "repeats already, by their column": (
        lambda write: write([10] * 50, is_repeat=[False] * 50),
        CONFIG,
        "has a column 'is_repeat': it holds repeats already",
    ),
    "repeats already, by their ids": (lambda write: write([10] * 3, doc_ids=[4, 5, 4]), CONFIG, "hold document 4 more"),
    "lists that windows would have to cut": (
        lambda write: write([10] * 3, patch_lengths=[[1]] * 3),
        SampleConfig(tokens=10, repeat_fraction=0.5, repeats=5, mode="sequence", seq_len=2),
        "cannot cut the column 'patch_lengths'",
    ),
    "a document beyond the budget": (
        lambda write: write([200_000, 10]),
        SampleConfig(tokens=200_010, repeat_fraction=0, repeats=1, memory_mb=1),
        "repeats.memory_mb = 1: the largest document or hash range takes 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sampled_is_refused_with_the_numbers(
    write_tokens: WriteTokens, tmp_path: Path, name: str
) -> None:
    make, config, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        run(make(write_tokens), tmp_path / "out", config)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "repeats.tokens = 0"),
        ({"repeat_fraction": 1.1}, "repeat_fraction = 1.1: a number from 0 to 1"),
        ({"repeat_fraction": float("nan")}, "repeat_fraction = nan"),
        ({"repeats": 0}, "repeats.repeats = 0"),
        ({"mode": "line"}, "choose one of document, sequence"),
        ({"mode": "sequence"}, "give both or neither"),
        ({"seq_len": 8}, "give both or neither"),
        ({"mode": "sequence", "seq_len": 0}, "at least 1 token"),
        ({"memory_mb": 0}, "memory_mb = 0"),
        ({"parameters": 0}, "parameters = 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampleConfig(**{"tokens": 10, "repeat_fraction": 0.5, "repeats": 2, **settings})


def test_the_manifest_is_plain_json(write_tokens: WriteTokens, tmp_path: Path) -> None:
    manifest = run(write_tokens(LENGTHS), tmp_path / "out", CONFIG)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
