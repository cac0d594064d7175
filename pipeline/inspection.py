"""Looking at a finished folder: what it holds, and whether every byte is as recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqmill.manifest import open_manifest
from seqmill.packing import validate
from seqmill.storage import hash_file, read_arrow


def inspect_folder(folder: Path, check: bool) -> tuple[dict[str, Any], list[str]]:
    """Describe a folder of documents, tokens or packed rows.

    Args:
        check: read everything: file hashes, row counts and, for packed rows, the invariants of their schema.

    Returns:
        Figures for people and machines, and one sentence per fault (empty when not checked).

    Raises:
        UserError: the folder is not finished, or a file is missing or has the wrong size.
    """
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
        "checked": check,
    }
    if not check:
        return figures, []
    if manifest["kind"] == "packed":
        return figures, [str(violation) for violation in validate(folder).violations]
    return figures, [fault for file in files for fault in _file_faults(folder, file)]


def _repeat_share(manifest: Mapping[str, Any]) -> dict[str, float]:
    """The part of the tokens that are repeats, 0 to 1, of folders that tell."""
    totals = manifest.get("totals", {})
    if "repeat_tokens" in totals:
        return {"repeat_share": round(totals["repeat_tokens"] / max(1, totals["tokens"]), 6)}
    if "repeats" in manifest:
        return {"repeat_share": round(manifest["repeats"]["realised"]["fraction"], 6)}
    return {}


def _file_faults(folder: Path, file: dict[str, Any]) -> list[str]:
    if hash_file(folder / file["name"]) != file["xxh3_128"]:
        return [f"{file['name']}: its bytes do not match the hash in the manifest; run its stage again"]
    rows = read_arrow(folder / file["name"]).num_rows
    return [] if rows == file["rows"] else [f"{file['name']}: {rows} rows, the manifest lists {file['rows']}"]
