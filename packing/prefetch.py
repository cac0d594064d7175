"""Shards fetched by threads before anyone waits for them.

What is fetched, and in which order, is a wish list that replaces the one before; whoever reads decides what it needs
by itself. So threads change when a shard is here, and never which rows are read.
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from seqmill.packing.cache import CacheFullError, Held, Shard, ShardCache

THREADS: Final = 4
_RETRY: Final = 0.5  # seconds after which a full cache may have room again


class Prefetcher:
    """Fetches shards by number, and holds them until they are taken or no longer wanted."""

    def __init__(self, cache: ShardCache, shards: Sequence[Shard]) -> None:
        self._cache, self._shards = cache, shards
        self._changed = threading.Condition()
        self._queue: deque[int] = deque()
        self._wanted: set[int] = set()
        self._held: dict[int, Held] = {}
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these shards in this order, and let go of all others."""
        with self._changed:
            self._wanted = set(shards)
            for number in self._held.keys() - self._wanted:
                self._held.pop(number).release()
            self._queue = deque(number for number in shards if number not in self._held)
            self._changed.notify_all()
        while self._queue and len(self._threads) < THREADS:
            thread = threading.Thread(target=self._work, name="seqmill-prefetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def take(self, number: int) -> Held | None:
        """A shard that is here, to be held by the caller from now on."""
        with self._changed:
            self._wanted.discard(number)
            return self._held.pop(number, None)

    def stop(self) -> None:
        """Let go of everything; threads end with the shard that they are fetching."""
        with self._changed:
            self._stopped = True
            self._queue.clear()
            self._wanted.clear()
            while self._held:
                self._held.popitem()[1].release()
            self._changed.notify_all()

    def _work(self) -> None:
        while (number := self._next()) is not None:
            try:
                held = self._cache.hold(self._shards[number], wait=False)
            except CacheFullError:
                with self._changed:
                    if number in self._wanted:
                        self._queue.append(number)
                        self._changed.wait(_RETRY)
            except Exception:  # the reader meets the same error if it needs this shard, and can tell of it
                continue
            else:
                self._put(number, held)

    def _next(self) -> int | None:
        with self._changed:
            while not self._queue and not self._stopped:
                self._changed.wait()
            return None if self._stopped else self._queue.popleft()

    def _put(self, number: int, held: Held) -> None:
        with self._changed:
            if number in self._wanted and number not in self._held:
                self._held[number] = held
            else:
                held.release()
