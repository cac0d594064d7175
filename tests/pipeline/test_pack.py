"""The pack stage with buckets and with other algorithms; its usual rows are tested with the runs of all stages."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pools import local
from seqmill.errors import UserError
from seqmill.manifest import OutputFile, open_manifest, write_manifest
from seqmill.packing import PackedDataset, load_schedule, validate
from seqmill.pipeline.config import load_config
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.pack import BucketConfig, PackConfig, bucket_config, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.storage import hash_file, with_metadata, write_arrow
from seqmill.tokenizers_ext import save_byte

BUCKETS = BucketConfig(shortest=8, longest=64, step_tokens=256, cycles=2)
CONFIG = PackConfig(shard_tokens=1024, seed=3, buckets=BUCKETS)
LENGTHS = np.random.default_rng(0).lognormal(4, 1.2, 120).astype(int).tolist()


def write_tokens(folder: Path, texts: list[str]) -> Path:
    fields = {"doc_id": pa.uint64(), "id": pa.string(), "text": pa.large_string(), "source": pa.string()}
    schema = with_metadata(pa.schema(fields), "documents")
    rows = [{"doc_id": i * 3, "id": str(i), "text": text, "source": "web"} for i, text in enumerate(texts)]
    name = "part-00000.arrow"
    write_arrow(folder / "documents" / name, schema, pa.Table.from_pylist(rows, schema).to_batches())
    totals = {"documents": len(texts), "bytes": sum(map(len, texts))}
    files = [OutputFile.of(folder / "documents", name, len(rows))]
    write_manifest(folder / "documents", "documents", files, totals=totals)
    save_byte(folder / "bytes")
    tokenize(folder / "documents", folder / "bytes", TokenizeConfig(), folder / "tokens", LocalExecutor(1), Silent())
    return folder / "tokens"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One document of every length, and one of 5,000 bytes, each with its end-of-document id."""
    texts = ["".join(chr(97 + (i * i + j) % 26) for j in range(length)) for i, length in enumerate([*LENGTHS, 0, 5000])]
    return write_tokens(tmp_path_factory.mktemp("pack"), texts)


def run(tokens: Path, out: Path, config: PackConfig = CONFIG, workers: int = 1) -> dict[str, Any]:
    return pack(tokens, config, out, local(workers), Silent())


def files_of(out: Path) -> dict[str, bytes]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if ".state" not in path.parts}


@pytest.fixture(scope="module")
def packed(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    run(tokens, out)
    return out


def test_a_folder_with_buckets_is_valid_and_counts_everything(tokens: Path, packed: Path) -> None:
    assert validate(packed, tokens).violations == ()
    manifest = open_manifest(packed, "packed")
    totals, drops = manifest["totals"], manifest["drops"]
    assert drops["tokens_in"] == open_manifest(tokens)["totals"]["tokens"] == sum(LENGTHS) + 5000 + len(LENGTHS) + 2
    assert totals["tokens"] == totals["loss_tokens"] == sum(LENGTHS) + 5000
    assert drops["tokens_target_only"] == len(LENGTHS) + 1 - LENGTHS.count(0)
    assert totals["efficiency"] > 0.98


def test_a_file_holds_rows_of_one_bucket(packed: Path) -> None:
    manifest = open_manifest(packed, "packed")
    assert len(manifest["files"]) > 8
    for file in manifest["files"]:
        table = pa.ipc.open_stream(pa.memory_map(str(packed / file["name"]))).read_all()
        longest = set(table["max_seqlen"].to_pylist())
        assert longest in ({16}, {32}, {64}) or max(longest) <= 8
        assert sum(table["n_tokens"].to_pylist()) <= 1024


def test_the_manifest_names_the_schedule_and_a_dataset_follows_it(packed: Path) -> None:
    entry = open_manifest(packed, "packed")["schedule"]
    schedule = load_schedule(packed / entry["file"])
    assert entry["xxh3_128"] == hash_file(packed / "schedule.arrow")
    assert entry["fingerprint"] == schedule.fingerprint
    assert sum(entry["steps_per_bucket"]) == entry["steps"] == schedule.steps > 30
    assert entry["steps_per_bucket"] == np.bincount(schedule.bucket)[3:].tolist()
    dataset = PackedDataset(packed, schedule=schedule, world_size=4, rank=3)
    assert len(list(dataset)) == schedule.steps


def test_workers_and_a_second_run_change_no_byte(tokens: Path, packed: Path, tmp_path: Path) -> None:
    run(tokens, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "two") == files_of(packed)
    (tmp_path / "two" / "part-00002.arrow").unlink()
    (tmp_path / "two" / "schedule.arrow").unlink()
    run(tokens, tmp_path / "two")
    assert files_of(tmp_path / "two") == files_of(packed)


def test_another_curriculum_writes_no_rows_again(tokens: Path, packed: Path, tmp_path: Path) -> None:
    run(tokens, tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")}
    other = run(tokens, tmp_path, replace(CONFIG, buckets=replace(BUCKETS, curriculum="uniform")))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")} == times
    assert other["schedule"]["curriculum"] == "uniform"
    assert other["fingerprint"] != open_manifest(packed)["fingerprint"]


def test_a_run_without_buckets_takes_the_schedule_away(tokens: Path, tmp_path: Path) -> None:
    run(tokens, tmp_path)
    manifest = run(tokens, tmp_path, PackConfig(seq_len=64))
    assert not (tmp_path / "schedule.arrow").exists()
    assert "schedule" not in manifest
    assert validate(tmp_path, tokens).violations == ()


@pytest.mark.parametrize("algorithm", ["windowed", "concat", "first-fit"])
def test_every_algorithm_packs_everything_once_and_in_order(tokens: Path, tmp_path: Path, algorithm: str) -> None:
    window = 20 if algorithm == "windowed" else None
    config = PackConfig(seq_len=64, shard_tokens=1024, algorithm=algorithm, window=window)
    manifest = run(tokens, tmp_path / "one", config)
    assert len(manifest["files"]) > 8
    assert validate(tmp_path / "one", tokens).violations == ()
    assert manifest["pack"]["algorithm"] == algorithm
    assert manifest["pack"].get("window") == window
    assert manifest["totals"]["tokens"] == manifest["drops"]["tokens_in"]
    assert manifest["totals"]["loss_tokens"] == manifest["totals"]["tokens"] - len(LENGTHS) - 2  # no target at an end
    table = pa.concat_tables(pa.ipc.open_stream(path).read_all() for path in sorted((tmp_path / "one").glob("part-*")))
    first = [ids[0] // 3 for ids in table["doc_id"].to_pylist()]  # as write_tokens numbers documents
    if algorithm == "windowed":
        assert all(
            later > document - 2 * 20 for document, later in zip(np.maximum.accumulate(first), first, strict=True)
        )
    else:
        assert first == sorted(first)
    if algorithm == "windowed":
        run(tokens, tmp_path / "two", config, workers=2)
        assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_an_empty_corpus_has_buckets_without_rows(tmp_path: Path) -> None:
    manifest = run(write_tokens(tmp_path, [""] * 3), tmp_path / "packed")
    assert manifest["pack"]["buckets"]["rows"] == [0, 0, 0, 0]
    assert manifest["drops"]["documents"] == manifest["drops"]["tokens"] == 3  # the end-of-document ids
    assert manifest["schedule"]["steps_per_bucket"] == [0, 0, 0, 0]
    assert validate(tmp_path / "packed", tmp_path / "tokens").violations == ()


def test_the_command_line_packs_into_buckets(seqmill: Callable, tokens: Path, packed: Path, tmp_path: Path) -> None:
    flags = ("--buckets", "8:64", "--curriculum", "natural", "--cycles", 3, "--step-tokens", 128)
    more = ("--leftovers", "pad", "--overlong", "equal_tokens", "--seed", 3, "--workers", 1)
    done = seqmill("pack", tokens, "--out", "out", *flags, *more, "--json", "--quiet", cwd=tmp_path)
    figures = json.loads(done.stdout)
    assert list(figures["bucket_rows"]) == ["8", "16", "32", "64"]
    assert sum(figures["bucket_rows"].values()) == figures["rows"]
    assert (figures["schedule"]["curriculum"], figures["schedule"]["cycles"]) == ("natural", 3)
    assert figures["tokens"] + figures["target_only_tokens"] + figures["dropped_tokens"] == figures["documents"] + sum(
        [*LENGTHS, 5000]
    )
    seqmill("inspect", "out", "--validate", cwd=tmp_path)
    for given, message in (
        (("--cycles", 2), "pack.buckets.cycles is given, but no buckets"),
        (("--buckets", "8:64", "--seq-len", 64), "--seq-len 64 and --buckets 8:64"),
        (("--buckets", "8-64"), "write SHORTEST:LONGEST in tokens"),
        (("--window", 9), "a window of 9 documents is given, but 'best-fit-decreasing' has none"),
    ):
        refused = seqmill("pack", tokens, "--out", "x", *given, "--quiet", cwd=tmp_path, code=2)
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shortest": 100}, "a shortest bucket of 100 tokens"),
        ({"step_tokens": 10_000}, "steps of 10000 tokens are no whole number of rows of 8192"),
        ({"overlong": "cut"}, "pack.buckets.overlong = 'cut': choose one of longest"),
        ({"leftovers": "keep"}, "pack.buckets.leftovers = 'keep': choose one of carry_to_packer"),
        ({"curriculum": "none"}, "unknown curriculum 'none'"),
        ({"cycles": 0}, "a curriculum of 0 cycles"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BucketConfig(**settings)


def test_buckets_go_with_no_other_overflow_and_fit_into_a_file() -> None:
    with pytest.raises(UserError, match=r"pack\.overflow = 'drop': buckets cut every document"):
        PackConfig(overflow="drop", buckets=BUCKETS)
    with pytest.raises(UserError, match=r"less than one row of pack\.buckets\.longest = 64"):
        PackConfig(shard_tokens=32, buckets=BUCKETS)
    assert bucket_config("8:64", step_tokens=256, cycles=2) == BUCKETS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"algorithm": "best"},
            "unknown packing algorithm 'best'; choose one of best-fit-decreasing, windowed, concat",
        ),
        ({"algorithm": "windowed", "window": 0}, "a window of 0 documents holds nothing"),
        ({"window": 9}, "a window of 9 documents is given, but 'best-fit-decreasing' has none; choose 'windowed'"),
        ({"algorithm": "concat", "overflow": "drop"}, "overflow 'drop' with 'concat'"),
        ({"overflow": "wrap"}, "unknown overflow policy 'wrap'; choose one of split"),
        ({"algorithm": "concat", "buckets": BUCKETS}, r"pack\.algorithm = 'concat' with buckets"),
    ],
)
def test_algorithms_that_cannot_be_are_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackConfig(**settings)


def test_the_command_line_packs_in_windows(seqmill: Callable, tokens: Path, tmp_path: Path) -> None:
    flags = ("--seq-len", 64, "--algorithm", "windowed", "--window", 20, "--workers", 1, "--quiet")
    seqmill("pack", tokens, "--out", "out", *flags, cwd=tmp_path)
    described = open_manifest(tmp_path / "out")["pack"]
    assert (described["algorithm"], described["window"], described["capacity"]) == ("windowed", 20, 64)


def test_a_configuration_file_can_ask_for_buckets(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('out = "run"\n[ingest]\ninputs = ["x"]\n[pack.buckets]\nshortest = 8\nlongest = 64\ncycles = 2\n')
    config = load_config(path, ["pack.buckets.step_tokens=256"])
    assert config.pack.buckets == BUCKETS
