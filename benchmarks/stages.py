"""The data stages beside independent implementations, on the text of examples/corpus, one process, one run.

Every figure is the best of three, after one warm-up that compiles and fills caches. MB are 10^6 bytes of UTF-8 text.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.tokenizers_ext import train_bpe
from seqmill.tokenizers_ext.subword import SubwordEncoder

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
REPEATS = 3

Row = dict[str, object]


def run() -> dict[str, list[Row]]:
    """Rows of all cases; each is one system on one case."""
    with tempfile.TemporaryDirectory() as scratch:
        text = _corpus_text(Path(scratch))
        return {"rows": [*_encoding(text), *_executor_start(Path(scratch))]}


def _corpus_text(scratch: Path) -> pa.Array:
    inputs = tuple(str(path) for path in sorted(CORPUS.iterdir()))
    manifest = ingest(IngestConfig(inputs), NormaliseConfig(), scratch / "documents", LocalExecutor(1), Silent())
    parts = [scratch / "documents" / file["name"] for file in manifest["files"]]
    return pa.concat_arrays([batch.column("text") for part in parts for batch in document_batches(part)])


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _rate(case: str, system: str, num_bytes: int, work: Callable[[], object]) -> Row:
    value = round(num_bytes / 1e6 / _best_seconds(work), 2)
    return {"case": case, "system": system, "value": value, "unit": "MB/s", "higher_is_better": True}


def _encoding(text: pa.Array) -> list[Row]:
    """From an Arrow text column to an Arrow column of ids, all cores."""
    strings = text.to_pylist()
    encoder = SubwordEncoder(train_bpe([strings], 4096))
    size = sum(len(string.encode()) for string in strings)

    def peer() -> pa.Array:
        encodings = encoder._reference.encode_batch_fast(text.to_pylist(), add_special_tokens=False)
        return pa.array([encoding.ids for encoding in encodings], pa.list_(pa.uint16()))

    case = "BPE encode, Arrow to Arrow"
    return [
        _rate(case, "seqmill", size, lambda: encoder.encode(text)),
        _rate(case, f"tokenizers {version('tokenizers')}", size, peer),
    ]


def _executor_start(scratch: Path) -> list[Row]:
    """Wall seconds of `seqmill ingest` on one short file: what an executor costs before any work."""
    short = scratch / "short.jsonl"
    short.write_text('{"text": "one"}\n')
    rows: list[Row] = []
    for executor, system in (("local", "seqmill"), ("ray", f"seqmill on ray {version('ray')}")):

        def work(executor: str = executor) -> None:
            out = tempfile.mkdtemp(dir=scratch)
            command = [sys.executable, "-m", "seqmill", "ingest", str(short), "--out", out, "--executor", executor]
            subprocess.run([*command, "--workers", "1", "--quiet"], check=True, capture_output=True)

        value = round(_best_seconds(work), 2)
        rows.append({"case": "start and one empty stage", "system": system, "value": value, "unit": "s"})
        rows[-1]["higher_is_better"] = False
    return rows
