import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import victims
from seqmill.packing import validate
from seqmill.pipeline.funnel import check_funnel
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import load

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("run")]

Files = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, seqmill: Callable[..., Any], small_config: str) -> Path:
    """An uninterrupted run with one local worker."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "small.toml").write_text(small_config)
    seqmill("run", "small.toml", "--workers", 1, "--quiet", cwd=folder)
    return folder / "run"


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def documents_of(folder: Path) -> pa.Table:
    manifest = json.loads((folder / "manifest.json").read_text())
    return pa.concat_tables(read_arrow(folder / file["name"]) for file in manifest["files"])


def test_the_report_adds_up_and_agrees_with_the_files(reference: Path) -> None:
    report = report_of(reference)
    check_funnel(report["funnel"])
    assert [entry["stage"] for entry in report["funnel"]] == ["ingest", "normalise", "exact dedup", "near dedup"]
    kept = documents_of(reference / "dedup")
    assert report["documents"] == report["funnel"][-1]["documents_out"] == len(kept) > 500
    assert (
        report["bytes"] == report["funnel"][-1]["bytes_out"] == sum(len(t.encode()) for t in kept["text"].to_pylist())
    )
    tokens = documents_of(reference / "tokens")
    assert report["tokens"] == sum(map(len, tokens["input_ids"].to_pylist()))
    assert report["bytes_per_token"] == pytest.approx(report["bytes"] / report["tokens"], abs=1e-4)
    assert report["packing"]["tokens"] + report["packing"]["dropped_tokens"] == report["tokens"]
    assert report["packing"]["efficiency"] > 0.99
    assert {"ingest", "dedup", "tokenizer", "tokenize", "pack", "train", "generate", "total"} == set(report["seconds"])
    assert [sample["prompt"] for sample in report["generate"]["samples"]] == ["The hacker", "import"]


def test_removed_and_kept_documents_are_all_that_were_read(reference: Path) -> None:
    read = documents_of(reference / "documents")["doc_id"].to_pylist()
    kept = documents_of(reference / "dedup")["doc_id"].to_pylist()
    removed = pq.read_table(reference / "dedup" / "removed.parquet")
    assert sorted(read) == sorted([*kept, *removed["doc_id"].to_pylist()])
    assert len(removed) > 50
    assert set(removed["kept_doc_id"].to_pylist()) <= set(read)
    assert set(removed["cluster_id"].to_pylist()) <= set(kept)


def test_tokens_decode_to_the_documents(reference: Path) -> None:
    encoder = load(reference / "tokens" / "tokenizer")
    kept, tokens = documents_of(reference / "dedup"), documents_of(reference / "tokens")
    assert tokens["doc_id"].equals(kept["doc_id"])
    for chunk in tokens["input_ids"].chunks:
        assert {ids[-1] for ids in chunk.to_pylist()} == {encoder.special_ids["eos"]}
    decoded = [text for chunk in tokens["input_ids"].chunks for text in encoder.decode(chunk).to_pylist()]
    assert decoded == [text.encode() for text in kept["text"].to_pylist()]


def test_packed_rows_are_valid_and_carry_their_tokenizer(reference: Path) -> None:
    assert validate(reference / "packed", reference / "tokens").violations == ()
    assert load(reference / "packed" / "tokenizer").fingerprint == load(reference / "tokenizer").fingerprint


def test_training_beats_what_token_frequencies_alone_can_reach(reference: Path) -> None:
    report = report_of(reference)
    ids = np.concatenate([np.asarray(ids) for ids in documents_of(reference / "tokens")["input_ids"].to_pylist()])
    shares = np.bincount(ids) / len(ids)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert report["unigram_entropy"] == pytest.approx(entropy, abs=1e-5)
    assert report["train"]["loss_first"] > entropy
    assert report["train"]["loss_last"] < report["train"]["loss_first"] - 0.5


@pytest.mark.parametrize(
    "flags",
    [("local", 2), ("ray", 2)],
    ids=lambda flags: f"{flags[0]}-{flags[1]}",
)
def test_every_executor_and_worker_count_gives_the_same_bytes(
    reference: Path, small_run: Path, seqmill: Callable[..., Any], files: Files, flags: tuple[str, int]
) -> None:
    seqmill("run", small_run, "--executor", flags[0], "--workers", flags[1], "--quiet", cwd=small_run.parent)
    expected, found = files(reference), files(small_run.parent / "run")
    assert len([name for name in expected if name.endswith(".arrow")]) > 15
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


MOMENTS = {
    "ingest": "documents/part-00001.arrow",
    "dedup sketch": "dedup/.state/sketch/part-00001.bands.arrow",
    "dedup exact": "dedup/.state/exact-00000.arrow",
    "dedup bucket": "dedup/.state/bucket-00000.arrow",
    "dedup cluster": "dedup/.state/clusters.arrow",
    "dedup shingle": "dedup/.state/shingle/part-00000.arrow",
    "dedup verify": "dedup/.state/verify-00000.arrow",
    "dedup evidence": "dedup/removed.parquet",
    "dedup filter": "dedup/part-00001.arrow",
    "tokenizer": "dedup/manifest.json",
    "tokenize": "tokens/part-00000.arrow",
    "pack plan": "packed/.state/plan.arrow",
    "pack rows": "packed/part-00000.arrow",
    "train": "train/checkpoints/step-00000003/manifest.json",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_if_it_had_not_been_killed(
    reference: Path, small_run: Path, seqmill: Callable[..., Any], files: Files, moment: str
) -> None:
    run = small_run.parent / "run"
    is_whole = moment in ("pack rows", "train")  # a run of data alone would be over before the kill
    if not is_whole:
        small_run.write_text(small_run.read_text().split("[train]")[0])
    victim = victims.start(small_run)
    deadline = time.monotonic() + 120
    while not (run / MOMENTS[moment]).exists():
        assert victim.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert victim.pid
    os.killpg(victim.pid, signal.SIGKILL)
    victim.join()
    assert not (run / "report.json").exists()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("part-*.arrow")}
    done = {path for path in before if (path.parent / ".state" / f"{path.stem}.json").exists()}
    seqmill("run", small_run, "--workers", "1", "--quiet", cwd=small_run.parent)
    expected, found = files(reference), files(run)
    if not is_whole:
        of_training = ("train/", "samples.json", "report.json", "config.json")
        expected = {name: data for name, data in expected.items() if not name.startswith(of_training)}
        found = {name: data for name, data in found.items() if not name.startswith(of_training)}
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert done
    assert [path for path in done if path.stat().st_mtime_ns != before[path]] == []


def test_a_finished_run_does_nothing_when_run_again(reference: Path, seqmill: Callable[..., Any], files: Files) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*.arrow")}
    contents = files(reference)
    seqmill("run", "small.toml", "--workers", 1, "--quiet", cwd=reference.parent)
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*.arrow")} == before
    assert files(reference) == contents


def test_a_changed_setting_redoes_what_depends_on_it_and_nothing_else(
    small_run: Path, seqmill: Callable[..., Any]
) -> None:
    small_run.write_text(small_run.read_text().split("[train]")[0])
    run = small_run.parent / "run"
    one = ("--workers", 1, "--json", "--quiet")
    seqmill("run", small_run, *one, cwd=small_run.parent)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("part-*.arrow")}
    done = seqmill("run", small_run, "--set", "pack.seq_len=128", *one, cwd=small_run.parent)
    changed = {path.parent.name for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns}
    assert changed == {"packed"}
    assert json.loads(done.stdout)["packing"]["seq_len"] == 128
    assert "train" not in json.loads(done.stdout)
