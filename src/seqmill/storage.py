"""Files that are either whole or absent: atomic writes, hashes, fingerprints, Arrow shards with metadata.

Every file of the project is written to a temporary name beside its final one, flushed to disk and renamed, so a
reader never sees half a file and a killed run leaves only names that end in `.tmp`.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from seqmill.errors import UserError, as_user_error

FORMAT_VERSION = 1
METADATA_KEY = b"seqmill"
TEMPORARY_SUFFIX = ".tmp"
LOCK = ".lock"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on failure delete it.

    The temporary name carries the process id, so that two writers never share one.

    Raises:
        UserError: the disk is full, a quota is reached or the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
    except OSError as error:
        raise as_user_error(error, f"writing {path}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def local_folder(text: str | Path) -> Path:
    """An output folder as an absolute path: workers on a cluster have other working directories.

    Raises:
        UserError: `text` is a URL; outputs are renamed into place, which object stores cannot do.
    """
    if ":/" in str(text):
        raise UserError(
            f"--out {text}: outputs go to a local or shared file system, not to a URL; write to a path and copy the "
            "finished folder"
        )
    return Path(text).absolute()


@contextmanager
def only_writer(folder: Path, lock_name: str = LOCK) -> Iterator[None]:
    """Hold `folder` against other seqmill processes on this machine; a killed process lets go by itself.

    Args:
        lock_name: of the file in `folder` that is locked.

    Raises:
        UserError: another process holds it, or it cannot be created.
    """
    try:
        (folder / lock_name).parent.mkdir(parents=True, exist_ok=True)
        lock = (folder / lock_name).open("w")
    except OSError as error:
        raise as_user_error(error, f"opening {folder} for writing") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another seqmill process is writing to {folder}; wait for it to end, or choose another --out"
            ) from error
        yield


def remove_temporary_files(folder: Path) -> None:
    """Delete what killed writers left below `folder`. Only the single writer of `folder` may call this."""
    for leftover in folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fingerprint(value: Any) -> str:
    """32 hex digits that identify a JSON value: the first half of the sha256 of its canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with sorted keys and a final newline."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        UserError: `path` holds no JSON (a file edited or truncated by hand; ours are written atomically).
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run the same command again") from error


def hash_file(path: Path) -> str:
    """The xxh3-128 of a file's bytes, as 32 hex digits."""
    import xxhash  # here, so that reading shards needs no more than numpy and pyarrow

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def with_metadata(schema: pa.Schema, kind: str, **entries: Any) -> pa.Schema:
    """`schema` with the project's metadata added, as JSON: format version, kind of table, `entries` (JSON values that
    say how it was made), and their fingerprint."""
    described = {"format_version": FORMAT_VERSION, "kind": kind, "fingerprint": fingerprint([kind, entries]), **entries}
    return schema.with_metadata({**(schema.metadata or {}), METADATA_KEY: canonical_json(described)})


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """What `with_metadata` stored, or an empty dict when the table was not written by seqmill."""
    described: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    return described


def write_arrow(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], compression: str | None = None
) -> int:
    """Write an Arrow IPC stream atomically; returns the number of rows.

    Args:
        compression: "zstd" or "lz4" of every buffer, for what is read seldom: it cannot be mapped without a copy.

    The stream format, not the file format, so that `datasets.Dataset.from_file` maps it without a copy.
    """
    rows = 0
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def read_arrow(path: Path) -> pa.Table:
    """Map an Arrow IPC stream into memory without copying its buffers.

    Raises:
        UserError: the file is missing, truncated or not an Arrow stream.
    """
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"cannot read {path} as an Arrow stream ({error}); delete it and run its stage again"
        ) from error
