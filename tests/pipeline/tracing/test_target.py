import json
from collections.abc import Callable
from pathlib import Path

import pytest

from seqmill.errors import UserError
from seqmill.pipeline.tracing import Target


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("row:17", "row", 17),
        ("doc:17", "doc", 17),
        ("doc:3:17", "doc", (3 << 40) + 17),
        ("doc:3298534883345", "doc", (3 << 40) + 17),
        (f"doc:{2**64 - 1}", "doc", 2**64 - 1),
        ("id:row:17", "id", "row:17"),
        ("id:", "id", ""),
    ],
)
def test_rows_and_documents_are_told_apart(text: str, kind: str, value: int | str) -> None:
    assert Target.of(text) == Target(kind, value)


@pytest.mark.parametrize(
    "text", ["17", "", "row:", "row:-1", "row:1:2", "doc:x", "doc:1:2:3", f"doc:{2**64}", f"doc:0:{2**40}", "doc:²"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"cannot trace .*: write row:17"):
        Target.of(text)


def test_the_command_line_traces_there_and_back(seqmill: Callable, by_kind: Callable) -> None:
    made = by_kind("bpe")
    row = json.loads(seqmill("trace", "packed", "row:3", "--json", cwd=made.root).stdout)
    segment = row["segments"][0]
    document = json.loads(seqmill("trace", "packed", f"doc:{segment['doc_id']}", "--json", cwd=made.root).stdout)
    assert {"row": 3, "segment": 0, "tokens": segment["tokens"], "next_token": segment["next_token"]} in document[
        "segments"
    ]
    shown = seqmill("trace", "packed", "row:3", cwd=made.root).stdout
    assert shown.startswith(f"row 3 in part-00000.arrow: {row['n_tokens']} tokens")
    assert f"id {segment['id']}" in shown
    assert " ..." not in seqmill("trace", "packed", "row:3", "--full", cwd=made.root).stdout
    shown = seqmill("trace", "packed", f"id:{document['id']}", cwd=made.root).stdout
    assert f"segments, complete\n  tokens {segment['tokens'][0] if len(document['segments']) < 2 else 0}-" in shown
    assert "cannot trace '3': write row:17" in seqmill("trace", "packed", "3", cwd=made.root, code=2).stderr
    wrong = seqmill("trace", "packed", "row:3", "--tokens", Path("documents"), cwd=made.root, code=2)
    assert "documents holds documents, but tokens are needed here" in wrong.stderr
