"""Looking at a finished folder: what it holds, and whether every byte is as recorded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, open_manifest
from seqmill.packing import ValidationReport, validate
from seqmill.packing.sets import validate_sets
from seqmill.pipeline.validation import tokenizer_faults, validate_documents, validate_tokens
from seqmill.storage import read_arrow, read_json

VALIDATORS: dict[str, Callable[[Path], ValidationReport]] = {
    "documents": validate_documents,
    "tokens": validate_tokens,
    "packed": validate,
    "sets": validate_sets,
}
HAVE_IDS = ("tokens", "packed")  # folders that carry the tokenizer of their ids


def inspect_folder(folder: Path, check: bool) -> tuple[dict[str, Any], list[str]]:
    """Describe a folder of documents, tokens, packed rows or packed sets.

    Args:
        check: read everything, and check what readers of this kind of folder rely on.

    Returns:
        Figures for people and machines, and one sentence per fault (empty when not checked).

    Raises:
        UserError: the folder is not finished; when not checked also, a file is missing or has the wrong size.
    """
    if check:
        return _validated(folder)
    manifest = open_manifest(folder)
    files = manifest["files"]
    figures = {
        "kind": manifest["kind"],
        "files": len(files),
        "rows": sum(file["rows"] for file in files),
        "bytes_on_disk": sum(file["bytes"] for file in files),
        "fingerprint": manifest["fingerprint"],
        "schema": {field.name: str(field.type) for field in read_arrow(folder / files[0]["name"]).schema}
        if files
        else {},
        "totals": manifest.get("totals", {}),
        **_repeat_share(manifest),
        "checked": False,
    }
    return figures, []


def _validated(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What was checked, and every fault; of a damaged folder nothing but its manifest is taken for granted."""
    path = folder / MANIFEST
    manifest = read_json(path) if path.is_file() else open_manifest(folder)  # which says that there is none
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind not in VALIDATORS:
        raise UserError(f"{folder} holds {kind!r}, which no check is known for; validate {', '.join(VALIDATORS)}")
    report = VALIDATORS[kind](folder)
    violations = [
        *report.violations,
        *(tokenizer_faults(folder, manifest.get("tokenizer")) if kind in HAVE_IDS else ()),
    ]
    figures = {
        "kind": kind,
        "files": report.files,
        "rows": report.rows,
        **({"tokens": report.tokens} if kind != "documents" else {}),
        "bytes_on_disk": sum(file["bytes"] for file in manifest["files"]),
        "fingerprint": manifest["fingerprint"],
        "totals": manifest.get("totals", {}),
        **_repeat_share(manifest),
        "checked": True,
    }
    return figures, [str(violation) for violation in violations]


def _repeat_share(manifest: Mapping[str, Any]) -> dict[str, float]:
    """The part of the tokens that are repeats, 0 to 1, of folders that tell."""
    totals = manifest.get("totals", {})
    if "repeat_tokens" in totals:
        return {"repeat_share": round(totals["repeat_tokens"] / max(1, totals["tokens"]), 6)}
    if "repeats" in manifest:
        return {"repeat_share": round(manifest["repeats"]["realised"]["fraction"], 6)}
    return {}
