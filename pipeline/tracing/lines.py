"""What was traced, in lines for people."""

from collections.abc import Mapping
from typing import Any

from seqmill.packing.schema import REPEAT_COLUMN
from seqmill.pipeline.tracing.target import readable

SHOWN = 72  # characters of a text that is not asked for whole


def lines_of(found: Mapping[str, Any], full: bool = False) -> list[str]:
    """What `trace` found, for people.

    Args:
        full: texts whole, not shortened.
    """
    return _row_lines(found, full) if "shard" in found else _document_lines(found)


def _row_lines(found: Mapping[str, Any], full: bool) -> list[str]:
    lines = [f"row {found['row']} in {found['shard']}: {found['n_tokens']} tokens, {found['n_loss_tokens']} targets"]
    for segment in found["segments"]:
        parts = [f"doc:{readable(segment['doc_id'])}", f"source {segment['source']}"]
        parts += [f"id {segment['id']}"] if segment.get("id") else []
        parts += ["repeat"] if segment.get(REPEAT_COLUMN) else []
        parts += [_span("tokens", segment["tokens"], segment.get("document_tokens"))]
        parts += [_span("bytes", segment["bytes"], segment.get("document_bytes"))] if "bytes" in segment else []
        parts += [f"{end} inside a character" for end in ("begins", "ends") if segment.get(f"{end}_inside_character")]
        lines.append(f"  {segment['places'][0]:>6} " + ", ".join(parts))
        if segment.get("text") is not None:
            text = segment["text"]
            is_long = len(text) > SHOWN and not full
            lines.append(f"         {text[:SHOWN]!r}{' ...' if is_long else ''}" if is_long else f"         {text!r}")
        after = segment["next_token"]
        lines.append(
            f"         then token {after} {segment.get('next_text') or ''!r}"
            if after is not None
            else "         ends here"
        )
    return lines


def _document_lines(found: Mapping[str, Any]) -> list[str]:
    state = {True: "complete", False: "not complete", None: "completeness not known without the tokens folder"}
    size = f"{found['document_tokens']} tokens, " if "document_tokens" in found else ""
    copies = f"{found['copies']} copies, " if found["copies"] > 1 else ""
    name = f" (id {found['id']})" if found.get("id") else ""
    counts = f"{size}{copies}{len(found['segments'])} segments, {state[found['complete']]}"
    lines = [f"doc:{readable(found['doc_id'])}{name}: {counts}"]
    lines += [
        f"  tokens {one['tokens'][0]}-{one['tokens'][1]}: row {one['row']}, segment {one['segment']}"
        for one in found["segments"]
    ]
    lines += [f"  tokens {one['tokens'][0]}-{one['tokens'][1]} in no row: {one['why']}" for one in found["missing"]]
    return lines


def _span(unit: str, bounds: list[int], total: int | None) -> str:
    return f"{unit} {bounds[0]}-{bounds[1]}" + (f" of {total}" if total is not None else "")
