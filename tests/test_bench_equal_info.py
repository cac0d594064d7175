"""The experiment on windows: what counts as a loss, as an operation and as a direction that held."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from seqmill.errors import UserError
from seqmill.models.attention import Segments
from seqmill.models.config import preset_config
from seqmill.models.transformer import Model
from seqmill.pipeline.bench import benchmark_module, run_benchmark

bench = benchmark_module("equal_info")
corpus = benchmark_module("support.corpus")
runs = benchmark_module("support.small_runs")
arms = benchmark_module("support.window_arms")

PRESET = "bytes-0.2m"


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of two languages."""
    rng = np.random.default_rng(5)
    words = [f"{a}{b}" for a in ("un", "re", "in", "over") for b in ("told", "made", "seen", "kept", "gone")]
    path = tmp_path_factory.mktemp("lines") / "documents.jsonl"
    records = [{"text": " ".join(rng.choice(words, 120)), "lang": "en"} for _ in range(150)]
    records += [{"text": "ÿ" * 500 + str(k), "lang": "xx"} for k in range(10)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"arms": ["bytes", "eiw20"]}, "there is no arm 'eiw20'; choose from bytes, bpe"),
        ({"device": "tpu"}, "--device tpu: training is measured on cpu and cuda"),
        ({"minutes": 0.0}, "more than 0 minutes and at least 1 seed"),
        ({"seeds": 0}, "more than 0 minutes and at least 1 seed"),
        ({"peers": ["x"]}, "takes no --peers"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark("equal-info", **options)


def test_a_small_run_gives_the_same_table_twice(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "NOMINAL_FLOPS", {"cpu": 1e9})
    options: dict[str, Any] = {"data": lines, "minutes": 0.4, "seeds": 2, "arms": ["bytes", "eiw16", "eiw12-pairs"]}
    first = run_benchmark("equal-info", **options, out=tmp_path / "out")
    assert run_benchmark("equal-info", **options)["rows"] == first["rows"]
    rows = {(row["case"], row["system"]): row["value"] for row in first["rows"]}
    assert rows["bytes a token, ends counted", "bytes"] == pytest.approx(1, abs=0.001)
    assert rows["bits per byte at equal operations", "bytes"] < 7.9
    assert rows["bits per byte at equal operations, standard deviation", "eiw16"] > 0
    assert any(note.startswith("eiw16 is learned: ") for note in first["notes"])
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [result["arm"] for result in written["results"]] == ["bytes", "eiw16", "eiw12-pairs"]
    for point in (result["at_flops"][0] for result in written["results"]):  # 0.4 minutes of 1 GFLOP/s for 6 models
        update = point["flops"] / point["tokens"] * runs.ROWS * runs.CONTEXT
        assert abs(point["flops"] - 4e9) <= update / 2
    assert len((tmp_path / "out" / "results.txt").read_text().split("\n\n")[0].splitlines()) == 4
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="session")
def source(lines: Path) -> Any:
    texts = [json.loads(line)["text"] for line in lines.read_text().splitlines()]
    return arms.Source(bench.passages(texts, 12_000), 2)


@pytest.mark.parametrize("name", [name for name in arms.ARMS if name != "eiw12-reest"])
def test_ids_of_every_arm_lie_below_its_end(name: str, source: Any) -> None:
    held_out = [b"untold \xff\x00", b"remade overseen " * 5, "naïve 日本語".encode()]
    arm = arms.ARMS[name](source)
    codes = arm.encode(held_out)
    assert len(codes) == len(held_out)
    assert all(len(code) and int(code.max()) < arm.ids for code in codes)
    assert sum(map(len, codes)) <= 3 * sum(map(len, held_out))


def test_passages_are_cut_between_characters_and_hold_the_whole_text() -> None:
    texts = ["é日" * 5000, "", "x" * 20_000]
    found = bench.passages(texts, 10**9)
    assert b"".join(found).decode() == "\n\n".join(texts)
    assert all(0 < len(passage) <= bench.PASSAGE and passage.decode() for passage in found)
    assert b"".join(bench.passages(texts, 11_001)).decode() == ("é日" * 5000).encode()[:11_000].decode()


def test_a_stream_has_an_end_before_and_behind_every_document() -> None:
    stream = runs.Stream.of([np.array([1, 2], np.uint8), np.array([], np.uint8), np.array([0], np.uint16)], 12, 3)
    assert stream.ids.tolist() == [3, 1, 2, 3, 3, 0, 3]
    assert (stream.vocab_size, stream.tokens, stream.bytes_per_token) == (4, 6, 2.0)


@pytest.mark.parametrize("tokens", [5, 128, 300])
def test_held_out_losses_are_those_of_the_logits_and_every_id_counts_once(tokens: int) -> None:
    rng = np.random.default_rng(1)
    stream = runs.Stream.of([rng.integers(0, 9, tokens - 3), np.array([4])], 77, 9)
    model = Model(preset_config(PRESET, 10), 3)
    nats, of_text, count = 0.0, 0.0, 0
    for start in range(0, stream.tokens, runs.CONTEXT):
        row = torch.from_numpy(stream.ids[start : start + runs.CONTEXT + 1])
        segments = Segments.of([len(row) - 1])
        shares = model.logits(model(row[:-1], segments.positions(), segments)).double().log_softmax(-1)
        for share, target in zip(shares, row[1:].tolist(), strict=True):
            nats -= share[target].item()
            of_text -= share[target].item() * (target != 9)
            count += target != 9
    bits, per_id = runs.evaluate(model, stream)
    assert bits == pytest.approx(nats / math.log(2) / 77, rel=1e-5)
    assert per_id == pytest.approx(of_text / count, rel=1e-5)


def test_operations_are_counted_as_by_hand() -> None:
    shape = preset_config(PRESET, 257)  # 3 layers of 64 with an inner width of 256, 2 heads of 32
    layer = 4 * 64 * 64 + 3 * 64 * 256 + 2 * 64
    body = 6 * (3 * layer + 64) + 6 * 3 * runs.CONTEXT * 64
    assert runs.flops_per_token(shape, softmax=False) == body
    assert runs.flops_per_token(shape) == body + 6 * 64 * 257


def test_welch_is_that_of_scipy() -> None:
    a, b = [1.0, 1.2, 0.9], [1.5, 1.4, 1.9]
    assert bench.welch(a, b) == pytest.approx(stats.ttest_ind(b, a, equal_var=False).statistic)
    assert math.isnan(bench.welch([1.0], b))
    assert bench.welch([1.0, 1.0], [2.0, 2.0]) == math.inf


def result(name: str, bits: list[float], nats: float = 5.0) -> Any:
    points = [bench.Point(1e9, 1e6, 1000, value, nats) for value in bits]
    return bench.Result(name, 257, 1.0, 1.0, 1.0, points, points, [[point] for point in points])


def test_directions_say_what_held_and_what_seeds_do_not_tell() -> None:
    results = {
        "bytes": result("bytes", [3.0, 3.1]),
        "bpe": result("bpe", [2.0, 2.1]),
        "bpe-unsplit": result("bpe-unsplit", [2.06, 2.01]),
        "eiw12": result("eiw12", [2.5, 2.6]),
        "ac": result("ac", [2.0, 2.0], math.log(256) - 0.009),
        "static-ac": result("static-ac", [2.0, 2.0], math.log(256) - 0.02),
    }
    told = bench.directions(results)
    assert told["ac is not learned"].startswith("held (+0.0090")
    assert told["static-ac is not learned"].startswith("did not hold (+0.0200")
    assert told["bits per byte, BPE before windows before bytes"].startswith("held (bpe to eiw12 +0.5000 (t +7.1)")
    assert told["bits per byte, unsplit BPE before windows"].startswith("held (")
    splitter = told["bits per byte, BPE with a splitter before one without"]
    assert splitter.startswith("did not hold, within the spread over seeds")
    assert "bits per id rise with the window" not in told  # its arms were not run


def test_a_document_is_in_one_part_by_its_text_and_parts_are_of_the_sizes_stated() -> None:
    parts = [corpus.part_of(f"text {k}".encode()) for k in range(4000)]
    assert parts == [corpus.part_of(f"text {k}".encode()) for k in range(4000)]
    assert all(180 < count < 330 for count in np.bincount(parts, minlength=16))
