"""Check a packed folder against everything that its readers rely on.

    schema    columns, types and metadata
    I1        cu_seqlens begin at 0, increase, and end at the row's number of tokens, which is at most the capacity
    I2        seq_lengths, max_seqlen, n_tokens and sum_sq follow from cu_seqlens; every segment column has its length
    I3        0 <= token < vocabulary
    I4        the segments of each document tile it from its first token, without overlap or gap
    I5        next_token is the first token of the document's next segment, -1 at its end and nowhere else
    I6        n_loss_tokens is the number of tokens with a target
    I7        row_id is dense, in file order
    I8        the list offsets of every record batch begin at 0
    I10       files and rows match their hashes
    I11       doc_targets is the number of targets in all segments of the document
    totals    the manifest's totals and drops are those of the rows
    schedule  the bucket schedule is the one that its settings give for these buckets
    manifest  the manifest matches its fingerprint and lists all parts

I9, equal bytes for equal inputs, is a property of the writer and not of a folder.

Where the manifest says that documents share ids (documents_repeated), I4 and I5 ask whether the segments of an id can
be joined to that many documents: at each position as many segments end with a next token as begin there, with the same
tokens. Nothing tells the copies of a document apart, so nothing more can be asked of rows alone. Given the tokens
folder, the segments of such ids are compared with its pieces as two bags of (id, position, tokens, is_repeat).

In a folder with buckets (seqmill.packing.decomposition) I1 also asks that all rows but those of leftovers are one
piece of their bucket's length. A document's last token is there in no segment: it is the next_token of the last one.
I4 and I5 take it for a segment of its own, and the totals ask for one per document.

    files     a file against its manifest           shards     the rows of a shard
    documents segments against each other           reference  segments against the tokens folder
    totals    counts and schedule of the manifest   segments   what the last three share
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqmill.packing.schema import KIND
from seqmill.packing.tokens import TokenStore
from seqmill.packing.totals import RowTotals
from seqmill.packing.validation.documents import check_documents, check_targets
from seqmill.packing.validation.files import believing, read_manifest
from seqmill.packing.validation.reference import Reference
from seqmill.packing.validation.report import Findings, ValidationReport, Violation
from seqmill.packing.validation.segments import Segments
from seqmill.packing.validation.shards import Shard
from seqmill.packing.validation.totals import check_schedule, check_totals

__all__ = ["ValidationReport", "Violation", "validate"]


def validate(folder: str | Path, tokens: str | Path | None = None) -> ValidationReport:
    """Check all shards of a packed folder.

    Args:
        folder: with a manifest of kind "packed".
        tokens: the tokens folder that was packed; when given, the lengths and tokens of all documents are compared
            with it too.

    Returns:
        A report with one violation per invariant and file, at its first row. Memory: about 200 bytes per segment.

    Raises:
        UserError: the folder has no readable manifest of packed rows, or `tokens` is no tokens folder.
    """
    folder = Path(folder)
    findings = Findings()
    manifest = read_manifest(folder, KIND, ("pack", "totals", "drops"), findings)
    reference = Reference.of(TokenStore.open(Path(tokens))) if tokens is not None else None
    total = RowTotals()
    with believing(findings):
        segments, total = _check_shards(folder, manifest, reference, findings)
        findings.extend(check_documents(segments, manifest, reference))
        if not findings.violations:
            findings.extend(check_targets(segments, manifest))
        findings.extend(check_totals(total, segments, manifest))
        findings.extend(check_schedule(folder, manifest))
    return ValidationReport(str(folder), len(manifest["files"]), total.rows, total.tokens, findings.violations)


def _check_shards(
    folder: Path, manifest: Mapping[str, Any], reference: Reference | None, findings: Findings
) -> tuple[Segments, RowTotals]:
    """The checks of every shard; the segments and counts of all rows that make sense."""
    segments: list[Segments] = []
    total = RowTotals()
    first_row = 0
    for number, file in enumerate(manifest["files"]):
        shard = Shard(file["name"], first_row, manifest["pack"], findings, reference)
        table = shard.open(folder, file)
        for batch in table.to_batches() if table is not None else []:
            found = shard.check(batch, number)
            if found:
                segments.append(found[0])
                total += found[1]
        first_row += file["rows"]
    return Segments.join(segments), total
