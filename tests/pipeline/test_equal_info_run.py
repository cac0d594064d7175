"""Windows through everything that comes behind the tokenizer: tokenize, pack, train, generate, report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from seqmill.packing import validate
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import load

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
RUN = f"""
out = "run"
[ingest]
inputs = ["{CORPUS}/udhr/est.txt", "{CORPUS}/udhr/glg.txt", "{CORPUS}/udhr/kir.txt", "{CORPUS}/poems.parquet"]
[tokenizer]
kind = "equal-info"
[tokenizer.equal_info]
window = 10
tables = 2
[pack]
seq_len = 64
[train]
model = "tiny"
steps = 3
batch_tokens = 128
[generate]
prompts = ["Artikkel", "ко", "x"]
max_new_tokens = 8
"""


@pytest.mark.slow
def test_a_run_with_windows_trains_continues_prompts_and_is_reported_on(
    seqmill: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    seqmill("run", "run.toml", "--workers", 1, "--quiet", cwd=tmp_path)
    run = tmp_path / "run"
    encoder = load(run / "tokenizer")
    assert (encoder.kind, encoder.vocab_size) == ("equal-info", 1024 + 4)
    tokens = pa.concat_tables(read_arrow(path) for path in sorted((run / "tokens").glob("part-*.arrow")))
    documents = pa.concat_tables(read_arrow(path) for path in sorted((run / "dedup").glob("part-*.arrow")))
    decoded = encoder.decode(tokens["input_ids"].combine_chunks())
    assert decoded.cast(pa.large_string()).to_pylist() == documents["text"].to_pylist()
    validate(run / "packed")
    samples = json.loads((run / "report.json").read_text())["generate"]["samples"]
    assert [sample["prompt"] for sample in samples] == ["Artikkel", "ко", "x"]
    assert any(sample["continuation"] for sample in samples)
    compared = ("--tokenizer", run / "tokenizer", "--out", "report", "--quiet", "--no-timings")
    seqmill("tokenizer", "report", run / "dedup", *compared, cwd=tmp_path)
    report = (tmp_path / "report" / "report.json").read_text()
    assert '"equal-info"' in report
