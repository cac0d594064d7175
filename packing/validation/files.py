"""Files against their manifest: there, of the stated bytes, and readable without trusting any of these bytes.

A damaged Arrow file may claim any number of rows, or list offsets far outside its buffers. Such a table is never
handed on: Arrow's own full validation looks at every offset before anyone follows one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, OutputFile, open_manifest
from seqmill.packing.validation.report import Findings, Violation
from seqmill.storage import FORMAT_VERSION, fingerprint, hash_file, read_arrow, read_json, read_metadata

_UNREADABLE = (UserError, pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, KeyError, TypeError)
_NOT_COVERED = ("format_version", "kind", "fingerprint", "files")  # entries of a manifest, besides what was added


def read_manifest(folder: Path, kind: str, needed: tuple[str, ...], findings: Findings) -> dict[str, Any]:
    """The manifest of a finished folder whose files need not be there, compared with its own fingerprint.

    Raises:
        UserError: there is none, it is no JSON, of another kind or version, or lacks one of the entries `needed`.
    """
    path = folder / MANIFEST
    manifest = read_json(path) if path.is_file() else open_manifest(folder)  # which says that there is none
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is not of format version {FORMAT_VERSION}; write it again with this seqmill")
    if manifest.get("kind") != kind:
        raise UserError(
            f"{folder} holds {manifest.get('kind')}, but {kind} are validated here; validate another folder"
        )
    missing = [name for name in ("fingerprint", "files", *needed) if name not in manifest]
    if missing:
        raise UserError(f"{path} has no entry {missing[0]!r}; run its stage again")
    try:
        listed = {OutputFile(**file).name for file in manifest["files"]}
    except TypeError as error:
        raise UserError(f"{path} does not list its files as seqmill does ({error}); run its stage again") from error
    entries = {name: value for name, value in manifest.items() if name not in _NOT_COVERED}
    if fingerprint([kind, manifest["files"], entries]) != manifest["fingerprint"]:
        findings.add(Violation("manifest", MANIFEST, None, 1, "its entries do not match its fingerprint"))
    for path in sorted(folder.glob("part-*")):
        if path.name not in listed:
            findings.add(Violation("manifest", path.name, None, 1, "the file is not in the manifest"))
    return manifest


@contextmanager
def believing(findings: Findings) -> Iterator[None]:
    """Follow the entries of a manifest; in one that does not match its fingerprint, any of them may make no sense."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if not findings.has("manifest", MANIFEST):
            raise
        detail = f"further checks stop at an entry that makes no sense: {type(error).__name__} {error}"
        findings.extend([Violation("manifest", MANIFEST, None, 1, detail)])


def open_shard(folder: Path, file: Mapping[str, Any], findings: Findings) -> pa.Table | None:
    """The table of a listed file, mapped, with sound offsets; None where there is none. Notes I10 and row counts."""
    name, path = file["name"], folder / file["name"]
    if not path.is_file():
        findings.add(Violation("I10", name, None, 1, "the file is missing"))
        return None
    if path.stat().st_size != file["bytes"] or hash_file(path) != file["xxh3_128"]:
        findings.add(Violation("I10", name, None, 1, "the file does not match the hash in the manifest"))
    try:
        table = read_arrow(path)
        table.validate(full=True)
        read_metadata(table.schema)
    except _UNREADABLE as error:
        detail = f"the file cannot be read: {' '.join(str(error).split())}"
        findings.extend([Violation("I10", name, None, 1, detail)])
        return None
    if table.num_rows != file["rows"]:
        detail = f"{table.num_rows} rows, the manifest lists {file['rows']}"
        findings.add(Violation("totals", name, None, 1, detail))
    return table


def check_metadata(name: str, schema: pa.Schema, expected: Mapping[str, Any], findings: Findings) -> None:
    """Note where a file's metadata contradicts `expected`, or its own fingerprint."""
    described = read_metadata(schema)
    entries = {key: value for key, value in described.items() if key not in ("format_version", "kind", "fingerprint")}
    if fingerprint([described.get("kind"), entries]) != described.get("fingerprint"):
        findings.add(Violation("schema", name, None, 1, "the metadata does not match its fingerprint"))
    for key, value in expected.items():
        if entries.get(key, value) != value:
            detail = f"the metadata says {key} {entries[key]!r}, the manifest {value!r}"
            findings.add(Violation("schema", name, None, 1, detail))
            return
