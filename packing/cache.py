"""Shards of a remote folder, kept in a local folder of limited size that any number of processes share.

    HASH.arrow           a whole shard, named by its xxh3-128: renamed to this when its bytes had that hash
    HASH.arrow.N.tmp     the same while it is fetched; N, its size, counts as used from the start
    .lock                held for the moment in which room is made

Whoever reads a shard holds a shared lock on the file, whoever fetches one an exclusive lock on the temporary file, and
whoever needs room removes the files that were used longest ago and that nobody holds. The locks are of the kind that
the system lets go of when a process ends, however it ends: a killed process leaves a temporary file that nobody holds,
which the next one removes, and nothing else.
"""

import errno
import fcntl
import json
import os
import re
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa

from seqmill.errors import UserError, as_user_error
from seqmill.manifest import MANIFEST, check_manifest
from seqmill.storage import TEMPORARY_SUFFIX, hash_file, read_arrow

ATTEMPTS: Final = 4  # to fetch a shard
PAUSE: Final = 0.25  # seconds before the second attempt, doubled for each further one
PATIENCE: Final = 30.0  # seconds to wait for room that others hold
_LOCK: Final = ".lock"
_WHOLE: Final = re.compile(r"[0-9a-f]{32}\.arrow")  # names of ours: nothing else in the folder is touched
_UNFINISHED: Final = re.compile(r"[0-9a-f]{32}\.arrow\.([0-9]+)" + re.escape(TEMPORARY_SUFFIX))

Shard = Mapping[str, Any]  # an entry of manifest["files"]: name, bytes, rows, xxh3_128


class CacheFullError(Exception):
    """What is held leaves no room for a shard."""


class Held:
    """An open file with a lock on it, until `release` or the end of the process."""

    _all: ClassVar["weakref.WeakSet[Held]"] = weakref.WeakSet()

    def __init__(self, path: Path, flags: int, lock: int) -> None:
        """Open and lock; OSError if there is no such file, BlockingIOError if `lock` says not to wait."""
        self.path = path
        self._descriptor: int | None = None
        self._descriptor = os.open(path, flags, 0o666)
        Held._all.add(self)
        try:
            fcntl.flock(self._descriptor, lock)
        except BaseException:
            self._close()
            raise

    @property
    def bytes(self) -> int:
        """Size of the open file."""
        assert self._descriptor is not None
        return os.fstat(self._descriptor).st_size

    def is_at_path(self) -> bool:
        """Whether the open file still has its name, which another process may have removed or given away."""
        assert self._descriptor is not None
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Unlock and close; nothing happens the second time."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing alone would leave it to a forked copy
            self._close()

    __del__ = release

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    @classmethod
    def _forget_all(cls) -> None:
        """In a forked process: give up the parent's locks without unlocking them."""
        for held in list(cls._all):
            held._close()
        cls._all.clear()


os.register_at_fork(after_in_child=Held._forget_all)


class RemoteFolder:
    """A finished folder of shards behind a URL that fsspec can open.

    Attributes:
        url: of the folder.
        manifest: read once.
    """

    def __init__(self, url: str, kind: str, manifest: dict[str, Any] | None = None) -> None:
        """Read the manifest, unless it is given.

        Raises:
            UserError: there is none, or it is of another kind; or a package for this kind of URL is missing.
        """
        self.url = url.rstrip("/")
        self.manifest = self._read_manifest(kind) if manifest is None else manifest

    def fetch(self, name: str, path: Path) -> None:
        """Copy the file `name` to `path`."""
        filesystem, folder = _open_url(self.url)
        filesystem.get_file(f"{folder}/{name}", str(path))

    def _read_manifest(self, kind: str) -> dict[str, Any]:
        filesystem, folder = _open_url(self.url)
        where = f"{self.url}/{MANIFEST}"
        try:
            manifest: dict[str, Any] = json.loads(_retried(lambda: filesystem.cat_file(f"{folder}/{MANIFEST}"), where))
        except FileNotFoundError as error:
            raise UserError(
                f"{self.url} has no {MANIFEST}: it is no seqmill output, or was not copied whole; copy it again"
            ) from error
        except ValueError as error:
            raise UserError(f"{where} is not valid JSON ({error}); copy the folder again") from error
        check_manifest(manifest, self.url, kind)
        for file in manifest["files"]:
            if not re.fullmatch("[0-9a-f]{32}", file["xxh3_128"]):
                raise UserError(f"{where}: {file['name']} has no hash of 32 hex digits; copy the folder again")
        return manifest


def _open_url(url: str) -> tuple[Any, str]:
    """File system and path of a folder; fsspec keeps the connections, each process its own."""
    from fsspec.core import url_to_fs  # here, so that reading local rows needs no more than numpy and pyarrow

    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {url}: {error}") from error
    return filesystem, path.rstrip("/")


def read_table(path: str | Path) -> pa.Table:
    """A small Arrow stream: mapped from a path, or fetched whole from a URL.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if "://" not in str(path):
        return read_arrow(Path(path))
    folder, _, name = str(path).rpartition("/")
    filesystem, inside = _open_url(folder)
    try:
        return pa.ipc.open_stream(_retried(lambda: filesystem.cat_file(f"{inside}/{name}"), str(path))).read_all()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; copy its folder again") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"cannot read {path} as an Arrow stream ({error}); copy it again") from error


class ShardCache:
    """Local copies of the shards of one remote folder.

    Attributes:
        remote: where they come from.
        folder: where they are kept; other datasets and processes may use it too.
        limit: bytes that the folder may hold, of all datasets together; None for no limit.
    """

    def __init__(self, remote: RemoteFolder, folder: Path, limit: int | None) -> None:
        self.remote, self.folder, self.limit = remote, Path(folder).absolute(), limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise as_user_error(error, f"opening the cache {folder}") from error
        with self._alone():
            self._remove_unfinished()

    def hold(self, shard: Shard, wait: bool = True) -> Held:
        """The local copy of a shard, fetched if it is not here; it stays as long as it is held.

        Args:
            wait: for others to let go of what they hold, if there is no room.

        Raises:
            UserError: the shard is missing, cannot be fetched, or is not what the manifest lists.
            CacheFullError: there is no room.
        """
        final = self.folder / f"{shard['xxh3_128']}.arrow"
        temporary = final.with_name(f"{final.name}.{shard['bytes']}{TEMPORARY_SUFFIX}")
        deadline = time.monotonic() + (PATIENCE if wait else 0)
        while True:
            if held := self._hold_finished(final, shard):
                return held
            try:
                being_fetched = self._reserve(final, temporary, shard)
            except CacheFullError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)
                continue
            if being_fetched is None:
                _wait_for(temporary)
                continue
            try:
                self._fetch(shard, temporary, final)
            finally:
                temporary.unlink(missing_ok=True)
                being_fetched.release()

    def _hold_finished(self, path: Path, shard: Shard) -> Held | None:
        """The whole copy, marked as just used; None if there is none."""
        try:
            held = Held(path, os.O_RDONLY, fcntl.LOCK_SH)
        except FileNotFoundError:
            return None
        if held.is_at_path():
            if held.bytes == shard["bytes"]:
                os.utime(path)
                return held
            with self._alone():  # changed after it was checked: fetch it again
                if held.is_at_path():
                    path.unlink()
        held.release()
        return None

    def _reserve(self, final: Path, temporary: Path, shard: Shard) -> Held | None:
        """The temporary file to fetch into, locked, with room for the whole; None while another process fetches.

        Raises:
            CacheFullError: there is no room.
        """
        with self._alone():
            self._remove_unfinished()
            if temporary.exists() or final.exists():
                return None
            self._make_room(shard["bytes"])
            return Held(temporary, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago and is not held, until `size` bytes fit."""
        if self.limit is None:
            return
        whole = [(entry.stat(), entry) for entry in os.scandir(self.folder) if _WHOLE.fullmatch(entry.name)]
        fetched = sum(int(match[1]) for name in os.listdir(self.folder) if (match := _UNFINISHED.fullmatch(name)))
        excess = sum(stat.st_size for stat, _ in whole) + fetched + size - self.limit
        for stat, entry in sorted(whole, key=lambda pair: (pair[0].st_mtime_ns, pair[1].name)):
            if excess <= 0:
                return
            excess -= stat.st_size if _remove_unless_held(Path(entry)) else 0
        if excess > 0:
            raise CacheFullError(f"{excess} bytes too many are held")

    def _remove_unfinished(self) -> None:
        """Remove what killed processes were fetching."""
        for name in os.listdir(self.folder):
            if _UNFINISHED.fullmatch(name):
                _remove_unless_held(self.folder / name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = Held(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.release()

    def _fetch(self, shard: Shard, temporary: Path, final: Path) -> None:
        """Fetch a shard, compare it with its hash, and give it its name."""
        where = f"{self.remote.url}/{shard['name']}"

        def fetch() -> None:
            self.remote.fetch(shard["name"], temporary)
            size = temporary.stat().st_size
            if size != shard["bytes"]:
                raise _DamagedError(f"the manifest lists {shard['bytes']} bytes, found {size}")
            if (found := hash_file(temporary)) != shard["xxh3_128"]:
                raise _DamagedError(f"the manifest lists the hash {shard['xxh3_128']}, its bytes have {found}")

        try:
            _retried(fetch, where)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            with self._alone():  # so that whoever counts finds it under one name
                temporary.rename(final)
        except FileNotFoundError as error:
            raise UserError(f"{where} is missing, but the manifest lists it; copy the folder again") from error
        except _DamagedError as error:
            raise UserError(f"{where}: {error}; the shard was changed or damaged, copy it again") from error
        except OSError as error:
            raise as_user_error(error, f"fetching {where} into {self.folder}") from error


class _DamagedError(Exception):
    """A fetched shard is not the one that the manifest lists."""


def _retried(do: Any, where: str) -> Any:
    """The result of `do`, tried again after errors that may pass: each transport has exceptions of its own.

    Raises:
        FileNotFoundError: at once.
        UserError: when all attempts failed.
    """
    for attempt in range(ATTEMPTS):
        try:
            return do()
        except FileNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            last = error
            if attempt < ATTEMPTS - 1:
                time.sleep(PAUSE * 2**attempt)
    if isinstance(last, _DamagedError):
        raise last
    raise UserError(
        f"{where} cannot be read after {ATTEMPTS} attempts: {type(last).__name__}: {last}; check the connection and "
        "the permissions, then run again"
    ) from last


def _wait_for(temporary: Path) -> None:
    """Until nobody fetches into a temporary file."""
    with suppress(FileNotFoundError):
        Held(temporary, os.O_RDONLY, fcntl.LOCK_SH).release()


def _remove_unless_held(path: Path) -> bool:
    """Whether the file is gone. Only inside `_alone`."""
    try:
        held = Held(path, os.O_RDONLY, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    path.unlink(missing_ok=True)
    held.release()
    return True
