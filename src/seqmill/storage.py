"""Files that are either whole or absent: atomic writes, hashes, fingerprints, Arrow shards with metadata.

Every file of the project is written to a temporary name beside its final one, flushed to disk and renamed, so a
reader never sees half a file and a killed run leaves only names that end in `.tmp`.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import xxhash

from seqmill.errors import UserError, as_user_error

FORMAT_VERSION = 1
METADATA_KEY = b"seqmill"
TEMPORARY_SUFFIX = ".tmp"


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


def remove_temporary_files(folder: Path) -> None:
    """Delete what killed writers left below `folder`. Only the single writer of `folder` may call this."""
    for leftover in folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces: equal values give equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def fingerprint(value: Any) -> str:
    """32 hex digits that identify a JSON value: the first half of the sha256 of its canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with sorted keys and a final newline."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    with atomic_path(path) as temporary:
        temporary.write_bytes(orjson.dumps(value, option=options))


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        UserError: `path` holds no JSON (a file edited or truncated by hand; ours are written atomically).
    """
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run the same command again") from error


def hash_file(path: Path) -> str:
    """The xxh3-128 of a file's bytes, as 32 hex digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def with_metadata(schema: pa.Schema, kind: str, **entries: Any) -> pa.Schema:
    """`schema` with the project's metadata added: format version, kind of table and `entries`, as JSON."""
    described = {"format_version": FORMAT_VERSION, "kind": kind, **entries}
    return schema.with_metadata({**(schema.metadata or {}), METADATA_KEY: canonical_json(described)})


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """What `with_metadata` stored, or an empty dict when the table was not written by seqmill."""
    return orjson.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write an Arrow IPC stream atomically; returns the number of rows.

    The stream format, not the file format, so that `datasets.Dataset.from_file` maps it without a copy.
    """
    rows = 0
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
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
