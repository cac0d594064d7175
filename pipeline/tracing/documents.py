"""From a document to its rows, and to what of it is in none."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from seqmill.errors import UserError
from seqmill.packing import Buckets
from seqmill.packing.decomposition import kept_pairs
from seqmill.packing.lookup import FoundSegments, find_document
from seqmill.packing.schema import NO_NEXT
from seqmill.pipeline.tracing.folders import Folders
from seqmill.pipeline.tracing.rows import trace_row
from seqmill.pipeline.tracing.target import identity, readable

TARGET_ONLY = "it is there as the target of the token before it"


def trace_document(folders: Folders, doc_id: int) -> dict[str, Any]:
    """A document's segments and what is missing; see `seqmill.pipeline.tracing.trace`."""
    found = find_document(folders.packed, doc_id)
    heads = int(np.count_nonzero(found.start == 0))
    if folders.store is not None:
        items = folders.items(doc_id)
        lengths = folders.store.lengths[items]
        described: dict[str, Any] = {"copies": len(items), "document_tokens": lengths.max(initial=0).item()}
    else:
        lengths = np.full(heads, found.stop.max(initial=0))
        described = {"copies": heads}
    if not len(found.row) and not len(lengths):
        raise UserError(f"document {readable(doc_id)} is in no row of {folders.packed}{_where_else(folders)}")
    document = None if folders.documents is None else folders.documents.with_id(doc_id)
    if document is not None:
        if folders.store is None and len(found.row):
            trace_row(folders, int(found.row[0]))  # compares the text with the tokens: nothing else vouches for it
        described |= {name: document[name] for name in ("id", "source")}
        described["document_bytes"] = len(document["text"].encode())
    columns = {name: getattr(found, name).tolist() for name in ("row", "segment", "start", "stop", "next_token")}
    segments = [
        {"row": row, "segment": segment, "tokens": [start, stop], "next_token": None if after == NO_NEXT else after}
        for row, segment, start, stop, after in zip(*columns.values(), strict=True)
    ]
    missing = list(_missing(found, lengths, folders))
    is_known = folders.store is not None
    complete = all(span["why"] == TARGET_ONLY for span in missing) if is_known else None
    return {**identity(doc_id), **described, "complete": complete, "missing": missing, "segments": segments}


def _where_else(folders: Folders) -> str:
    if folders.tokens is not None:
        return f" and not in {folders.tokens}"
    return f"; it may have been dropped ({folders.manifest['drops']['policy']}): give the tokens folder with --tokens"


def _missing(found: FoundSegments, lengths: np.ndarray, folders: Folders) -> Iterator[dict[str, Any]]:
    """The spans that fewer segments hold than there are copies that long, with the reason.

    Args:
        lengths: tokens of every copy.
    """
    behind = found.stop[found.next_token != NO_NEXT] + 1 if "buckets" in folders.manifest["pack"] else found.stop
    edges = np.unique(np.concatenate([np.zeros(1, np.int64), found.start, found.stop, lengths, behind]))
    begins = edges[:-1]
    held = np.searchsorted(np.sort(found.start), begins, "right") - np.searchsorted(
        np.sort(found.stop), begins, "right"
    )
    wanted = len(lengths) - np.searchsorted(np.sort(lengths), begins, "right")
    for begin, end, lost in zip(begins.tolist(), edges[1:].tolist(), (wanted - held).tolist(), strict=True):
        if lost > 0:
            why = _reason(begin, end, found, int(lengths.max()), folders.manifest)
            yield {"tokens": [begin, end], "copies": lost, "why": why}


def _reason(begin: int, end: int, found: FoundSegments, length: int, manifest: Mapping[str, Any]) -> str:
    """Why the tokens from `begin` to `end` of a document are in no row."""
    pack, policy = manifest["pack"], manifest["drops"]["policy"]
    if "buckets" in pack:
        cut = Buckets.of(pack["buckets"])
        if end == begin + 1 and ((found.stop == begin) & (found.next_token != NO_NEXT)).any():
            return TARGET_ONLY
        if length == 1:
            return "a document of one token has no target"
        if begin >= kept_pairs(np.array([length]), cut)[0]:
            return f"an end shorter than the shortest bucket of {cut.shortest} (leftovers: {cut.leftovers})"
    elif policy == "truncate" and begin >= pack["capacity"]:
        return f"behind the first {pack['capacity']} tokens (overflow: truncate)"
    elif policy == "drop" and length > pack["capacity"]:
        return f"the document is longer than a row of {pack['capacity']} tokens (overflow: drop)"
    return "unknown: the folder is damaged, run seqmill inspect --validate"
