"""The experiment on Dataset Decomposition: that its arms differ in their rows alone."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing import TokenStore
from seqmill.pipeline.bench import benchmark_module, run_benchmark
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import load

bench = benchmark_module("decomposition")
corpus = benchmark_module("support.corpus")
folders = benchmark_module("support.token_folders")
UPDATES = 6


@pytest.fixture(autouse=True, scope="module")
def _small() -> Any:
    sizes = {"ROW": 256, "SHORTEST": 16, "UPDATE": 512, "VOCABULARY": 400, "LONG": 64}
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(bench, name, size)
        patch.setattr(bench, "NOMINAL_FLOPS", {"cpu": 1e9})
        yield


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of many lengths, each with a name of its own."""
    rng = np.random.default_rng(5)
    words = [f"{a}{b}" for a in ("un", "re", "in", "over") for b in ("told", "made", "seen", "kept", "gone")]
    sizes = rng.lognormal(3.2, 1.2, 150).astype(int) + 1
    return [f"<{number}> " + " ".join(rng.choice(words, size)) for number, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def lines(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def work(_small: None, lines: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bench.prepare(tmp_path_factory.mktemp("work"), lines, 10**6, {})


@pytest.fixture(scope="module")
def packed(work: Any) -> dict[str, Path]:
    return {name: bench.pack_arm(work, name, UPDATES) for name in bench.ARMS}


def rows_of(packed: Path) -> pa.Table:
    return pa.concat_tables(
        [read_arrow(packed / file["name"]) for file in open_manifest(packed, "packed")["files"]]
    ).sort_by("row_id")


def tokens_of(packed: Path) -> list[int]:
    ids: list[int] = rows_of(packed)["input_ids"].combine_chunks().flatten().to_pylist()
    return ids


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"arms": ["packed", "padded"]}, "there is no arm 'padded'; choose from concat-crossing, concat"),
        ({"device": "tpu"}, "--device tpu: training is measured on cpu and cuda"),
        ({"minutes": 0.0}, "more than 0 minutes and at least 1 seed"),
        ({"seeds": 0}, "more than 0 minutes and at least 1 seed"),
        ({"model": "huge"}, "there is no such preset"),
        ({"peers": ["x"]}, "takes no --peers"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark("decomposition", **options)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(40)))
    with pytest.raises(UserError, match="do not fill an update of 512"):
        run_benchmark("decomposition", data=path)


def test_rows_that_cross_documents_are_the_token_stream_and_those_of_concat(work: Any, packed: dict[str, Path]) -> None:
    wanted = work.documents["input_ids"].combine_chunks().flatten().to_pylist()[: UPDATES * bench.UPDATE]
    crossing, apart = rows_of(packed["concat-crossing"]), rows_of(packed["concat"])
    assert tokens_of(packed["concat-crossing"]) == wanted
    assert crossing["input_ids"].to_pylist() == apart["input_ids"].to_pylist()
    assert set(crossing["n_tokens"].to_pylist()) == {bench.ROW}
    assert set(crossing["seq_lengths"].to_pylist()[0]) == {bench.ROW}
    assert len(apart["seq_lengths"].combine_chunks().flatten()) > 2 * len(apart)
    assert sum(crossing["n_loss_tokens"].to_pylist()) == len(wanted) - 1  # a row knows the first token of the next


def test_all_arms_have_the_same_tokens(packed: dict[str, Path]) -> None:
    sorted_tokens = {name: sorted(tokens_of(folder)) for name, folder in packed.items()}
    without = open_manifest(packed["decomposition"], "packed")["drops"]["tokens_target_only"]
    assert sorted_tokens["packed"] == sorted_tokens["concat"] == sorted_tokens["concat-crossing"]
    assert len(sorted_tokens["decomposition"]) == len(sorted_tokens["concat"]) - without
    assert len(open_manifest(packed["decomposition"], "packed")["pack"]["buckets"]["rows"]) == 5  # 16 to 256


def test_a_held_out_document_is_in_no_row_and_every_other_one_is_trained_on(
    texts: list[str], work: Any, packed: dict[str, Path]
) -> None:
    held_out = {text for text in texts if corpus.part_of(text.encode()) == bench.HELD_OUT}
    encoder = load(work.tokens / "tokenizer")
    assert 3 < len(held_out) < 30

    def names(documents: pa.Table) -> set[str]:
        ids = documents["input_ids"].combine_chunks()
        return {text.decode().split(">")[0] + ">" for text in encoder.decode(ids).to_pylist()}

    assert names(folders.read_tokens(work.held_out)) == {text.split()[0] for text in held_out}
    assert names(work.documents) == {text.split()[0] for text in texts if text not in held_out}
    assert set(TokenStore.open(work.held_out).sources) == {"long", "short"}
    for folder in packed.values():
        whole = bytes(encoder.decode(pa.array([tokens_of(folder)], pa.list_(pa.uint16())))[0].as_py()).decode()
        assert not [text for text in held_out if text.split()[0] in whole]


def test_the_last_of_the_first_documents_is_cut(work: Any) -> None:
    lengths = work.lengths.tolist()
    some = folders.first_tokens(work.documents, lengths[0] + lengths[1] - 1)
    assert some["input_ids"].to_pylist() == [
        work.documents["input_ids"][0].as_py(),
        work.documents["input_ids"][1].as_py()[:-1],
    ]
    assert folders.first_tokens(work.documents, 10**9).equals(work.documents)


def test_updates_in_time_are_as_many_more_as_an_arm_is_faster() -> None:
    assert bench.updates_in_time(100, 4.0, 10.0) == 250
    assert bench.updates_in_time(100, 10.0, 10.0) == 100
    assert bench.updates_in_time(3, 4.0, 5.0) == 4


def test_twice_the_minutes_are_twice_the_updates_and_a_cheaper_arm_costs_less(work: Any) -> None:
    shape = bench.preset_config("bytes-0.2m", 400)
    one = bench.updates_of(list(bench.ARMS), work.lengths, shape, 1e13)
    assert bench.updates_of(list(bench.ARMS), work.lengths, shape, 2e13) == pytest.approx(2 * one, abs=1)
    assert bench.updates_of(["packed"], work.lengths, shape, 1e13) > 4 * one


def test_a_small_run_trains_every_arm_on_as_many_tokens_and_then_for_as_long(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(bench, "CLOCKS", {"cpu": lambda: float(next(ticks))})  # an update takes a second
    found = run_benchmark("decomposition", data=lines, minutes=0.3, seeds=1, out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    equal_tokens, equal_time = ({name: one for name, (one,) in told[phase].items()} for phase in bench.PHASES)
    assert set(equal_tokens) == set(equal_time) == set(bench.ARMS)
    read = [one["tokens"] for one in equal_tokens.values()]
    assert max(read) - min(read) <= bench.UPDATE
    assert all(one["seconds"] == one["updates"] for one in (*equal_tokens.values(), *equal_time.values()))
    planned, slowest = equal_tokens["concat"]["updates"], equal_tokens["decomposition"]["updates"]
    assert slowest > planned  # some of its updates are short
    assert equal_time["decomposition"] == equal_tokens["decomposition"]
    for name in ("concat-crossing", "concat", "packed"):
        assert equal_tokens[name]["updates"] == planned
        assert abs(equal_time[name]["tokens"] - slowest * bench.UPDATE) <= bench.UPDATE / 2
    rows = {(row["case"], row["system"]): row["value"] for row in found["rows"]}
    for phase in bench.PHASES:
        for name in bench.ARMS:
            assert 0 < rows[f"{phase}: held-out bits per byte", name] < math.log2(400)
            assert (f"{phase}: the same of long documents", name) in rows
    written = (tmp_path / "out" / "results.txt").read_text().split("\n\n")[0].splitlines()
    assert len(written) == 2 * (1 + len(bench.FIGURES))


def test_rows_are_means_over_seeds_and_their_spread() -> None:
    outcomes = [
        bench.Outcome("packed", seed, 3, 90, 80, 0.1, 2.0 + seed, 3.0 + seed, {"short": 4.0}) for seed in (0, 2)
    ]
    rows = {row["case"]: row["value"] for row in bench._rows({"equal tokens": {"packed": outcomes}})}
    assert rows["equal tokens: held-out bits per byte"] == 4
    assert rows["equal tokens: held-out bits per byte, standard deviation"] == pytest.approx(math.sqrt(2), rel=1e-3)
    assert rows["equal tokens: training"] == 3
    assert rows["equal tokens: speed"] == pytest.approx((90 / 2 + 90 / 4) / 2, rel=1e-3)
    assert rows["equal tokens: the same of short documents, standard deviation"] == 0
    assert "equal tokens: the same of long documents" not in rows
