"""Find the raw files of a run, in an order and under names that do not depend on where they lie.

An input is a file, a directory (read recursively), a glob, or a URL that fsspec can open. A file's name is its path
below the common parent of all inputs; files are sorted by (name, size) and numbered in that order. Documents without
a source of their own take it from the file. One that the user named gives its own name without extensions
("books.jsonl.zst" -> "books"); one found in a directory or by a glob gives its folder's ("wiki/part-07.jsonl" ->
"wiki"), so that a corpus of a million files has as many sources as folders; a saved dataset gives its own name, and a
split of a saved dataset dictionary the dictionary's.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from fsspec.core import has_magic, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST
from seqmill.storage import TEMPORARY_SUFFIX, fingerprint

EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".fa": "fasta",
    ".fna": "fasta",
    ".fasta": "fasta",
    ".fq": "fastq",
    ".fastq": "fastq",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
FORMATS = ("auto", "jsonl", "parquet", "arrow", "text", "fasta", "fastq", "hf")
COMPRESSIBLE = ("jsonl", "text", "fasta", "fastq")
MAX_FILES = 1 << 24  # doc_id has 24 bits for the file
_STAMP_KEYS = ("ETag", "etag", "blob_id", "md5Hash", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class SourceFile:
    """One raw file, or one saved Hugging Face dataset, as it was when the run began."""

    name: str  # relative to the common parent of all inputs: the same on every machine
    path: str  # absolute local path, or URL
    format: str  # one of `FORMATS`, found out
    compression: str  # "", "gzip" or "zstd"
    size: int  # bytes stored
    stamp: str  # changes when the content does: nanoseconds of the last change, or an etag
    source: str  # of its documents, unless they name their own
    ordinal: int  # position in the sorted list


@dataclass(frozen=True)
class Discovery:
    """What the inputs of a run amount to."""

    files: tuple[SourceFile, ...]
    skipped: tuple[str, ...]  # names met in directories and globs whose extension says nothing


@dataclass(frozen=True)
class _Entry:
    """A path on its file system, before it has a name."""

    protocol: str
    path: str
    size: int
    stamp: str
    named: bool = False  # given by the user, not met in a directory
    saved_dataset: bool = False


def discover(inputs: Sequence[str], format_: str = "auto") -> Discovery:
    """The files that `inputs` stand for; a file named twice is read once.

    Args:
        inputs: files, directories, globs, URLs.
        format_: one of `FORMATS`; "auto" goes by extension.

    Raises:
        UserError: an input does not exist or matches nothing, a named file has an unknown extension, no file is left.
    """
    roots: list[tuple[str, list[str]]] = []
    entries: dict[tuple[str, str], _Entry] = {}
    for text in inputs:
        filesystem, path = _open_filesystem(text)
        root, found = _expand(filesystem, path, text, format_)
        protocol = _protocol(filesystem)
        roots.append((protocol, _parts(root)))
        entries.update({(protocol, entry.path): entry for entry in found})
    files: list[SourceFile] = []
    skipped: list[str] = []
    names = _names(roots, entries.values())
    for entry, name in zip(entries.values(), names, strict=True):
        file = _source_file(entry, name, format_)
        if file:
            files.append(file)
        else:
            skipped.append(name)
    if not files:
        left = f"; {len(skipped)} files have an unknown extension, such as {skipped[0]}" if skipped else ""
        raise UserError(
            f"ingest.inputs = {list(inputs)}: no files to read{left}; set ingest.format or correct the path"
        )
    if len(files) > MAX_FILES:
        raise UserError(f"{len(files)} input files, at most {MAX_FILES} can be numbered; merge small ones first")
    files.sort(key=lambda file: (file.name, file.size))
    return Discovery(tuple(replace(file, ordinal=i) for i, file in enumerate(files)), tuple(sorted(skipped)))


def is_local(path: str) -> bool:
    """Whether `SourceFile.path` is a path of this machine's file system."""
    return path.startswith(os.sep)


def refuse_overlap(inputs: Sequence[str], files: Iterable[SourceFile], out: Path) -> None:
    """Refuse an output folder inside an input directory, or holding an input: the next run would read its output.

    Raises:
        UserError: as described.
    """
    target = out.resolve()
    for text in inputs:
        folder = Path(text).expanduser()
        if "://" not in text and folder.is_dir() and target.is_relative_to(folder.resolve()):
            raise UserError(f"--out {out} lies inside the input {text}: the next run would read it; choose another")
    for file in files:
        if is_local(file.path) and Path(file.path).resolve().is_relative_to(target):
            raise UserError(f"the input {file.path} lies inside --out {out}, which this stage rewrites; choose another")


def _open_filesystem(text: str) -> tuple[Any, str]:
    try:
        filesystem, path = url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise UserError(f"ingest.inputs: cannot open {text!r} ({error})") from error
    return filesystem, path


def _protocol(filesystem: Any) -> str:
    return filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]


def _expand(filesystem: Any, path: str, text: str, format_: str) -> tuple[str, list[_Entry]]:
    """The folder that names are relative to, and the entries of one input."""
    try:
        if filesystem.isfile(path):
            return _parent(path), [_entry(filesystem, path, filesystem.info(path), named=True)]
        if filesystem.isdir(path):
            found = filesystem.find(path, detail=True)
            root = path
        elif has_magic(path):
            root = _fixed_prefix(path)
            found = _find_glob(filesystem, path)
        else:
            raise UserError(f"ingest.inputs: {text} does not exist; correct the path")
    except OSError as error:
        raise UserError(f"ingest.inputs: cannot read {text} ({error})") from error
    if not found:
        raise UserError(f"ingest.inputs: {text} matches no file; correct the path or the pattern")
    entries, paths = [], set(found)
    if format_ in ("auto", "hf"):
        folders = {_parent(p) for p in paths if p.endswith("/state.json")}
        folders = {folder for folder in folders if f"{folder}/dataset_info.json" in paths}
        entries = [_saved_dataset(filesystem, folder, found) for folder in sorted(folders)]
        paths = {p for p in paths if not p.endswith("/dataset_dict.json") and not _inside(p, folders)}
        if root in folders or f"{root}/dataset_dict.json" in found:
            root = _parent(root)  # so that the dataset has a name
    if format_ != "hf":
        paths -= _unlisted_outputs(filesystem, paths)
        visible = sorted(p for p in paths if not _hidden(p, root))
        entries += [_entry(filesystem, p, found[p]) for p in visible]
    return root, entries


def _find_glob(filesystem: Any, pattern: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, info in filesystem.glob(pattern, detail=True).items():
        if info["type"] == "directory":
            found.update(filesystem.find(path, detail=True))
        else:
            found[path] = info
    return found


def _unlisted_outputs(filesystem: Any, paths: set[str]) -> set[str]:
    """What lies beside the shards in folders that seqmill wrote: manifests, records, quarantined samples."""
    unlisted: set[str] = set()
    for path in paths:
        if not path.endswith(f"/{MANIFEST}"):
            continue
        try:
            manifest = orjson.loads(filesystem.cat_file(path))
        except orjson.JSONDecodeError:
            continue
        if isinstance(manifest, dict) and {"format_version", "kind", "files"} <= manifest.keys():
            folder = _parent(path)
            listed = {f"{folder}/{file['name']}" for file in manifest["files"]}
            unlisted |= {p for p in paths if _inside(p, {folder}) and p not in listed}
    return unlisted


def _entry(filesystem: Any, path: str, info: Mapping[str, Any], named: bool = False) -> _Entry:
    if isinstance(filesystem, LocalFileSystem):
        stat = os.stat(path)
        size, stamp = stat.st_size, str(stat.st_mtime_ns)
    else:
        size = info["size"]
        stamp = next((str(info[key]) for key in _STAMP_KEYS if info.get(key)), "")
    return _Entry(_protocol(filesystem), path, size, stamp, named)


def _saved_dataset(filesystem: Any, folder: str, found: Mapping[str, Any]) -> _Entry:
    members = [_entry(filesystem, p, found[p]) for p in sorted(found) if _inside(p, {folder})]
    stamp = fingerprint([[member.path.rpartition("/")[2], member.size, member.stamp] for member in members])
    size = sum(member.size for member in members if member.path.endswith(".arrow"))
    return _Entry(_protocol(filesystem), folder, size, stamp, named=True, saved_dataset=True)


def _source_file(entry: _Entry, name: str, format_: str) -> SourceFile | None:
    """The entry as a file with a format, or None if it was not asked for by name and has none."""
    stem, compression = _split_compression(name)
    if entry.saved_dataset:
        found, compression = "hf", ""
    elif format_ == "auto":
        found = EXTENSIONS.get(os.path.splitext(stem)[1].lower(), "")
    else:
        found = format_
    if compression and found not in COMPRESSIBLE:
        found = ""
    if not found or (found == "hf" and not entry.saved_dataset):
        if entry.named:
            raise UserError(
                f"{entry.path}: ingest.format = {format_!r} does not fit this file; name a format "
                f"({', '.join(FORMATS)}), or use one of the extensions {' '.join(EXTENSIONS)} "
                "(.gz and .zst after those of jsonl and text)"
            )
        return None
    path = entry.path if entry.protocol in LocalFileSystem.protocol else f"{entry.protocol}://{entry.path.lstrip('/')}"
    return SourceFile(
        name=name,
        path=path,
        format=found,
        compression=compression,
        size=entry.size,
        stamp=entry.stamp,
        source=_source_of(entry, stem),
        ordinal=0,
    )


def _source_of(entry: _Entry, stem: str) -> str:
    parent = _parent(entry.path)
    if not entry.saved_dataset:
        own_name = os.path.splitext(stem.rpartition("/")[2])[0]
        return own_name if entry.named else parent.rpartition("/")[2] or own_name
    filesystem, _ = url_to_fs(f"{entry.protocol}://{parent}")
    is_split = filesystem.exists(f"{parent}/dataset_dict.json")
    return (parent if is_split else entry.path).rpartition("/")[2]


def _split_compression(name: str) -> tuple[str, str]:
    stem, extension = os.path.splitext(name)
    compression = COMPRESSIONS.get(extension.lower(), "")
    return (stem, compression) if compression else (name, "")


def _names(roots: Sequence[tuple[str, list[str]]], entries: Iterable[_Entry]) -> list[str]:
    """Each entry's path below the common parent of its protocol's inputs; behind the protocol if there are several."""
    common: dict[str, list[str]] = {}
    for protocol, root in roots:
        known = common.setdefault(protocol, root)
        shared = next((i for i, (a, b) in enumerate(zip(known, root, strict=False)) if a != b), None)
        common[protocol] = known[: min(len(known), len(root)) if shared is None else shared]
    names = []
    for entry in entries:
        parts = _parts(entry.path)[len(common[entry.protocol]) :]
        names.append("/".join([entry.protocol, *parts] if len(common) > 1 else parts))
    return names


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0]


def _inside(path: str, folders: set[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def _fixed_prefix(pattern: str) -> str:
    """The folders of a glob before its first wildcard."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first])


def _hidden(path: str, root: str) -> bool:
    below = _parts(path)[len(_parts(root)) :]
    return path.endswith(TEMPORARY_SUFFIX) or any(part.startswith((".", "_")) for part in below)
