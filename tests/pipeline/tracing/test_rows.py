"""Every segment of every row against its document's text."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.packing import PackedRows
from seqmill.pipeline.tracing import Sources, Target, trace
from seqmill.tokenizers_ext import load, save_byte

KINDS = ["byte", "bpe", "equal-info", "equal-info of two tables"]


def rows_of(made: Any, **sources: Path) -> list[dict[str, Any]]:
    count = PackedRows(made.packed).rows
    return [trace(made.packed, Target("row", row), Sources(**sources)) for row in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_spans_of_all_rows_are_the_bytes_of_all_documents(by_kind: Callable, kind: str) -> None:
    """Each token's bytes are its document's at the span, and a document's spans follow each other from end to end."""
    made = by_kind(kind)
    encoder, rows = load(made.packed / "tokenizer"), PackedRows(made.packed)
    ends: dict[int, list[tuple[int, int]]] = {}
    for traced in rows_of(made):
        stored = rows.row(traced["row"])
        for segment in traced["segments"]:
            begin, end = segment["bytes"]
            text = made.texts[segment["doc_id"]]
            ids = stored["input_ids"][slice(*segment["places"])]
            if kind != "equal-info of two tables":  # whose ids say nothing without the first of the document
                assert encoder.decode(pa.array([ids])).to_pylist() == [text[begin:end]]
            assert segment["text"] == text[begin:end].decode("utf-8", "replace")
            assert segment["document_bytes"] == len(text)
            assert (segment["id"], segment["source"]) == (f"name-{segment['doc_id'] & 0xFFFF}", "web")
            ends.setdefault(segment["doc_id"], []).append((begin, end))
            assert (segment["next_token"] is None) == (segment["tokens"][1] == segment["document_tokens"])
    assert ends.keys() == made.texts.keys()
    for doc_id, spans in ends.items():
        spans.sort()
        assert [end for _, end in spans] == [*(begin for begin, _ in spans[1:]), len(made.texts[doc_id])]
        assert spans[0][0] == 0


@pytest.mark.parametrize("kind", [*KINDS, "k-mers"])
def test_without_the_documents_decoding_tells_the_same(by_kind: Callable, kind: str, tmp_path: Path) -> None:
    made = by_kind(kind)
    for name in ("tokens", "packed"):
        shutil.copytree(made.root / name, tmp_path / name)
    for traced in rows_of(type(made)(tmp_path)):
        for segment in traced["segments"]:
            assert "document_bytes" not in segment
            begin, end = segment["bytes"]
            assert segment["text"] == made.texts[segment["doc_id"]][begin:end].decode("utf-8", "replace")


def test_rows_alone_tell_what_they_hold(by_kind: Callable, tmp_path: Path) -> None:
    made = by_kind("bpe")
    shutil.copytree(made.packed, tmp_path / "packed")
    for traced in rows_of(type(made)(tmp_path)):
        for segment in traced["segments"]:
            assert "document_tokens" not in segment
            assert ("bytes" in segment) == (segment["tokens"][0] == 0)
            if "bytes" in segment:
                assert segment["bytes"][0] == 0
            assert segment["text"].strip("\ufffd").encode() in made.texts[segment["doc_id"]]


def test_a_token_that_ends_inside_a_character_is_told(by_kind: Callable) -> None:
    made = by_kind("byte")
    inside = [
        segment
        for traced in rows_of(made)
        for segment in traced["segments"]
        if segment["begins_inside_character"] or segment["ends_inside_character"]
    ]
    assert len(inside) > 3
    for segment in inside:
        text = made.texts[segment["doc_id"]]
        for flag, place in zip(("begins", "ends"), segment["bytes"], strict=True):
            is_inside = place < len(text) and 0x80 <= text[place] < 0xC0
            assert segment[f"{flag}_inside_character"] == is_inside


def test_the_next_token_is_shown_with_its_text(by_kind: Callable) -> None:
    made = by_kind("byte")
    cut = [segment for traced in rows_of(made) for segment in traced["segments"] if segment["next_token"] is not None]
    assert len(cut) > 10
    for segment in cut:
        following = made.texts[segment["doc_id"]][segment["bytes"][1] :][:1]
        if following:  # else it is the end-of-document id
            assert segment["next_token"] == following[0]
            assert segment["next_text"] == following.decode("utf-8", "replace")


def test_rows_of_repeated_documents_are_traced_to_the_document(make_run: Callable, tmp_path: Path) -> None:
    texts = ["once and again. " * 5, "alone", "once and again. " * 5]
    made = make_run(tmp_path, texts=texts, ids=[5, 6, 5])
    found = [segment for traced in rows_of(made) for segment in traced["segments"] if segment["doc_id"] == 5]
    assert sorted(segment["bytes"] for segment in found) == sorted(2 * [[0, 32], [32, 64], [64, 80]])


def test_folders_of_other_data_are_refused(by_kind: Callable, make_run: Callable, tmp_path: Path) -> None:
    made = by_kind("byte")
    other = make_run(tmp_path / "other", texts=["something else"])
    row = Target("row", 0)
    with pytest.raises(UserError, match=r"tokens has the fingerprint .*packed was made from tokens with"):
        trace(made.packed, row, Sources(tokens=other.root / "tokens"))
    with pytest.raises(UserError, match=r"documents has the fingerprint .*give that folder with --documents"):
        trace(made.packed, row, Sources(documents=other.root / "documents"))
    save_byte(tmp_path / "bytes")
    trace(made.packed, row, Sources(tokenizer=tmp_path / "bytes"))  # the same one
    with pytest.raises(UserError, match="give the tokenizer that made them with --tokenizer"):
        trace(made.packed, row, Sources(tokenizer=by_kind("bpe").root / "tokenizer"))
    rows = PackedRows(made.packed).rows
    with pytest.raises(UserError, match=f"has {rows} rows, numbered from 0; there is no row {rows}"):
        trace(made.packed, Target("row", rows))


def test_documents_that_give_other_tokens_are_refused(make_run: Callable, tmp_path: Path) -> None:
    """Without the tokens folder nothing but the tokens themselves tells what the documents are."""
    made = make_run(tmp_path / "a", texts=["this is what was packed"])
    other = make_run(tmp_path / "b", texts=["that is another document"])
    shutil.rmtree(made.root / "tokens")
    assert trace(made.packed, Target("row", 0), Sources(documents=made.root / "documents"))["segments"][0]["bytes"] == [
        0,
        23,
    ]
    for target in (Target("row", 0), Target("doc", 0), Target("id", "name-0")):
        with pytest.raises(UserError, match="document 0:0 gives other tokens at 0 than the row has"):
            trace(made.packed, target, Sources(documents=other.root / "documents"))


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": 7}', ""])
def test_a_neighbour_may_be_anything(make_run: Callable, tmp_path: Path, content: str) -> None:
    made = make_run(tmp_path, texts=["this is what was packed"])
    (made.root / "a broken one").mkdir()
    (made.root / "a broken one" / "manifest.json").write_text(content)
    assert trace(made.packed, Target("row", 0))["segments"][0]["document_bytes"] == 23
