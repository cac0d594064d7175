"""The manifest of a finished folder of shards: what is in it, how large it is, and its hashes.

A folder is finished when it holds `manifest.json`; it is written last, so a reader never sees half a dataset.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.storage import FORMAT_VERSION, fingerprint, hash_file, read_json, write_json

MANIFEST = "manifest.json"
STATE_FOLDER = ".state"  # records of work units: not part of the dataset


@dataclass(frozen=True)
class OutputFile:
    """A finished file, as named in records and manifests."""

    name: str  # relative to the folder of the manifest
    bytes: int  # size on disk
    rows: int
    xxh3_128: str  # 32 hex digits

    @classmethod
    def of(cls, folder: Path, name: str, rows: int) -> "OutputFile":
        """Describe the file `folder/name` by reading it."""
        path = folder / name
        return cls(name=name, bytes=path.stat().st_size, rows=rows, xxh3_128=hash_file(path))


def write_manifest(folder: Path, kind: str, files: Iterable[OutputFile], **entries: Any) -> dict[str, Any]:
    """Write `manifest.json` for `files` and delete parts of earlier runs that it does not list.

    Args:
        kind: "documents", "tokens", "packed", "sets" or "scores".
        entries: further JSON values, stored at the top level and covered by the fingerprint.

    Returns:
        The manifest: format_version, kind, fingerprint (of the files' hashes and `entries`), files, `entries`.
    """
    described = [asdict(file) for file in files]
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "fingerprint": fingerprint([kind, described, entries]),
        "files": described,
        **entries,
    }
    listed = {file["name"] for file in described}
    for part in folder.glob("part-*"):
        if part.name not in listed:
            part.unlink()
    write_json(folder / MANIFEST, manifest)
    return manifest


def open_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
        UserError: there is none (the stage did not finish), it is of another kind, or a listed file is missing or has
            another size.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} has no {MANIFEST}: it is no seqmill output, or its stage did not finish; run it again"
        )
    manifest = read_json(path)
    check_manifest(manifest, str(folder), kind)
    for file in manifest["files"]:
        shard = folder / file["name"]
        found = shard.stat().st_size if shard.is_file() else "no"
        if found != file["bytes"]:
            raise UserError(
                f"{shard}: the manifest lists {file['bytes']} bytes, found {found}; run the stage that wrote it again"
            )
    return manifest


def check_manifest(manifest: dict[str, Any], folder: str, kind: str | None = None) -> None:
    """Whether a manifest can be read by this version, and is of the kind that is needed.

    Raises:
        UserError: it is not.
    """
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder}/{MANIFEST} has format version {manifest.get('format_version')}, this seqmill reads "
            f"{FORMAT_VERSION}; write it again with this version"
        )
    if kind and manifest["kind"] != kind:
        raise UserError(f"{folder} holds {manifest['kind']}, but {kind} are needed here")
