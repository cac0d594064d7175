"""From a row to its documents: spans in tokens and bytes, and text."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.packing import PackedRows
from seqmill.packing.schema import NO_NEXT, REPEAT_COLUMN
from seqmill.pipeline.tracing.folders import Folders
from seqmill.pipeline.tracing.target import identity, readable
from seqmill.tokenizers_ext import Encoder, spans


def trace_row(folders: Folders, row: int) -> dict[str, Any]:
    """A row, and what is known of its segments; see `seqmill.pipeline.tracing.trace`."""
    rows = PackedRows(folders.packed)
    if not 0 <= row < rows.rows:
        raise UserError(f"{folders.packed} has {rows.rows} rows, numbered from 0; there is no row {row}")
    rows.verify(np.array([row]))
    stored = rows.row(row)
    ends = np.cumsum([file["rows"] for file in folders.manifest["files"]])
    shard = folders.manifest["files"][int(np.searchsorted(ends, row, "right"))]["name"]
    counts = {name: stored[name] for name in ("n_tokens", "n_loss_tokens", "max_seqlen")}
    segments = [_segment(folders, stored, number) for number in range(len(stored["doc_id"]))]
    return {"row": row, "shard": shard, **counts, "segments": segments}


def _segment(folders: Folders, stored: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What is known of one segment of a row."""
    begin, end = (int(bound) for bound in stored["cu_seqlens"][number : number + 2])
    doc_id, start = int(stored["doc_id"][number]), int(stored["doc_offset"][number])
    tokens, following = stored["input_ids"][begin:end], int(stored["next_token"][number])
    described: dict[str, Any] = {
        "segment": number,
        **identity(doc_id),
        "source": folders.manifest["pack"]["sources"][stored["source"][number]],
        **({REPEAT_COLUMN: bool(stored[REPEAT_COLUMN][number])} if REPEAT_COLUMN in stored else {}),
        "places": [begin, end],
        "tokens": [start, start + len(tokens)],
        "next_token": None if following == NO_NEXT else following,
    }
    whole, window = _document_tokens(folders, doc_id, start, tokens)
    if whole is not None:
        described["document_tokens"] = len(whole)
    document = None if folders.documents is None else folders.documents.with_id(doc_id)
    if document is not None:
        described |= {"id": document["id"], "document_bytes": len(document["text"].encode())}
    if folders.encoder is None:
        return described
    if following != NO_NEXT:
        before = None if whole is None else whole[: start + len(tokens)]
        described["next_text"] = _piece(folders.encoder, before, np.array([following]))
    text = None if document is None else document["text"].encode()
    return described | _text_of(folders.encoder, tokens, whole, text, start, window, doc_id)


def _document_tokens(folders: Folders, doc_id: int, start: int, tokens: np.ndarray) -> tuple[np.ndarray | None, int]:
    """All ids of the document, or of the window of it, that these tokens are of, and the window's first token."""
    store = folders.store
    if store is None:
        return None, 0
    for item in folders.items(doc_id):
        one, length = np.array([item]), int(store.lengths[item])
        if start + len(tokens) <= length:
            whole = store.gather(one, np.zeros(1, np.int64), np.array([length]))
            if np.array_equal(whole[start : start + len(tokens)], tokens):
                return whole, folders.window_start(int(item))
    raise UserError(
        f"document {readable(doc_id)} of {folders.tokens} has other tokens at {start} than the row; run "
        f"seqmill inspect --validate on {folders.tokens} and on {folders.packed}"
    )


def _text_of(
    encoder: Encoder,
    tokens: np.ndarray,
    whole: np.ndarray | None,
    text: bytes | None,
    start: int,
    window: int,
    doc_id: int,
) -> dict[str, Any]:
    """The bytes and the text of a segment, as far as they follow from what is there.

    Args:
        tokens: of the segment.
        whole: the ids of the document, or of its window.
        text: the document's.
        start: where the tokens begin in `whole`.
        window: where `whole` begins in the document.
    """
    first, stop = window + start, window + start + len(tokens)
    placed = None if text is None else _spans(encoder, text)
    if text is not None and placed is not None:
        ids, starts, ends = placed
        if not np.array_equal(ids[first:stop], tokens[: max(0, len(ids) - first)]):
            raise _other_text(doc_id, first)
        begin = int(starts[first]) if first < len(ids) else len(text)  # behind all: the end-of-document id
        end = max(begin, int(ends[min(stop, len(ids)) - 1])) if len(ids) else begin
        return _shown(text, begin, end)
    if window or (whole is None and start):  # what stands before is not known
        return {"text": _piece(encoder, None, tokens)}
    before = b"" if whole is None else _decode(encoder, whole[:start])
    decoded = _decode(encoder, tokens if whole is None else whole[: start + len(tokens)])
    here = slice(len(before), len(decoded))
    if text is not None and (len(text) < len(before) or text[here] != decoded[: len(text)][here]):
        raise _other_text(doc_id, first)
    return _shown(decoded if text is None else text, len(before), len(decoded))


def _other_text(doc_id: int, token: int) -> UserError:
    return UserError(
        f"document {readable(doc_id)} gives other tokens at {token} than the row has: its text was changed, or it is "
        "of other documents; give the folder that was tokenized with --documents"
    )


def _shown(text: bytes, begin: int, end: int) -> dict[str, Any]:
    return {
        "bytes": [begin, end],
        "begins_inside_character": _is_inside(text, begin),
        "ends_inside_character": _is_inside(text, end),
        "text": text[begin:end].decode("utf-8", "replace"),
    }


def _is_inside(text: bytes, place: int) -> bool:
    """Whether `place` lies between two bytes of one UTF-8 character."""
    return 0 < place < len(text) and text[place] & 0xC0 == 0x80


def _spans(encoder: Encoder, text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Ids, first bytes and last bytes of a document's tokens; None for kinds whose spans only decoding tells."""
    if encoder.kind not in ("subword", "byte", "equal-info"):
        return None
    found = spans(encoder, pa.array([text], pa.large_binary()))
    ids, starts, ends = (lists.flatten().to_numpy() for lists in (found.ids, found.starts, found.ends))
    return ids, starts, ends


def _piece(encoder: Encoder, before: np.ndarray | None, ids: np.ndarray) -> str | None:
    """The text of ids that stand behind `before` in their document; None where they mean nothing without it.

    Windows of several tables are such ids: the first of a document says which table.
    """
    if before is not None:
        return _decode(encoder, np.concatenate([before, ids]))[len(_decode(encoder, before)) :].decode(
            "utf-8", "replace"
        )
    try:
        return _decode(encoder, ids).decode("utf-8", "replace")
    except UserError:
        return None


def _decode(encoder: Encoder, ids: np.ndarray) -> bytes:
    lists = pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), pa.array(ids))
    decoded: bytes = encoder.decode(lists)[0].as_py()
    return decoded
