import json
from pathlib import Path

import pytest
from tests.cli.conftest import Call

from scored_corpus import TEXTS, save_model
from seqmill.manifest import open_manifest
from seqmill.storage import read_arrow


def test_raw_files_and_folders_are_scored_and_their_figures_printed(seqmill_here: Call) -> None:
    save_model(Path("model"))
    texts = [text for text in TEXTS if text.strip()]
    Path("raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ("--embed", "mean", "--per-token", "--device", "cpu", "--workers", "1", "--quiet")
    code, printed, errors = seqmill_here("score", "model", "raw.jsonl", "--out", "scores", *options, "--json")
    assert code == 0, errors
    figures, manifest = json.loads(printed), open_manifest(Path("scores"), "scores")
    assert figures["documents"] == figures["scored_documents"] == len(texts)
    assert figures["bits_per_byte"] == manifest["totals"]["bits_per_byte"] > 0
    table = read_arrow(Path("scores") / "part-00000.arrow")
    assert {"token_log_probs", "embedding"} < set(table.schema.names)
    code, printed, _ = seqmill_here("score", "model", "scores/documents", "--out", "again", *options)
    assert (code, f"bits_per_byte {figures['bits_per_byte']}" in printed) == (0, True)
    assert Path("again/part-00000.arrow").read_bytes() == Path("scores/part-00000.arrow").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--embed", "max"), "pooling = 'max'"),
        (("--max-tokens", "0"), "max_tokens = 0"),
        (("--device", "cuda"), "torch"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(seqmill_here: Call, arguments: tuple[str, ...], message: str) -> None:
    code, _, errors = seqmill_here("score", "model", "raw.jsonl", "--out", "scores", *arguments)
    assert (code, errors.count("\n")) == (2, 1)
    assert message in errors
