"""From packed rows back to documents and bytes, and from documents to rows.

    packed --"pack.tokens"--> tokens --"documents"--> documents

A folder names the one it was made from by fingerprint, never by path. So the former folders are looked for beside the
packed one, where a run puts them, or given; one with another fingerprint is refused.

A span of tokens is told in bytes of the document's text, exactly: by the lengths of the tokens where the text is the
concatenation of their bytes, else by where `tokenizers` says that they come from (seqmill.tokenizers_ext.spans). A
token may begin or end inside a character.
"""

from pathlib import Path
from typing import Any

from seqmill.pipeline.tracing.documents import trace_document
from seqmill.pipeline.tracing.folders import Folders, Sources
from seqmill.pipeline.tracing.lines import lines_of
from seqmill.pipeline.tracing.rows import trace_row
from seqmill.pipeline.tracing.target import Target

__all__ = ["Sources", "Target", "lines_of", "trace"]


def trace(packed: Path, target: Target, sources: Sources | None = None) -> dict[str, Any]:
    """Follow a row to its documents, or a document to its rows; JSON values.

    Row: its number, shard, counts and segments. Each segment has its document (doc_id; file and row, which that number
    says; the user's id and the source), the span of tokens, the next token, and where the former folders are found
    the document's tokens and bytes, the span in bytes, and the text.

    Document: its segments by place, how many copies of it went in, whether the rows hold all their tokens ("complete";
    null where the tokens folder is not found), and each span that is missing, with the reason. No token is read.

    Args:
        sources: folders that are not to be looked for.

    Raises:
        UserError: there is no such row or document, a folder cannot be read, or a given one is of other data.
    """
    found = Folders(packed, sources or Sources())
    if target.kind == "row":
        return trace_row(found, int(target.value))
    return trace_document(found, found.doc_id(str(target.value)) if target.kind == "id" else int(target.value))
