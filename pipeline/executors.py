"""Two ways to run work units, with byte-identical output: on this machine, or as tasks on a Ray cluster."""

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

from seqmill.errors import UserError
from seqmill.pipeline.execution import Executor, Record

IN_FLIGHT_PER_WORKER = 2  # enough to hide scheduling, few enough that a failure wastes little
SECONDS_TO_ANSWER = 10.0
RAY_RETRIES = 3  # of a task whose worker or node died; a unit's own exception is never retried


class LocalExecutor:
    """In this process with one worker, in a pool of spawned processes with more (never forked: threads survive).

    The pool stays from one call to the next: a process takes two seconds to start and to load compiled kernels, and a
    stage has up to ten phases.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def run(self, call: Callable[[Any], Record], arguments: Sequence[Any]) -> Iterable[Record]:
        """Yield `call(argument)` as results come; see `Executor.run`."""
        if self.workers == 1 or len(arguments) <= 1:
            yield from map(call, arguments)
            return
        if self._pool is None:  # its processes start one by one as there is work for them
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=_begin_worker)
        waiting = deque(arguments)
        running: set[Future[Record]] = set()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers * IN_FLIGHT_PER_WORKER:
                    running.add(self._pool.submit(call, waiting.popleft()))
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BaseException:
            self._pool.shutdown(cancel_futures=True)  # units that have begun end before the folder is let go
            self._pool = None
            raise

    def close(self) -> None:
        """End the pool's processes; see `Executor.close`."""
        if self._pool:
            self._pool.shutdown()
            self._pool = None


def _begin_worker() -> None:
    """One core for this worker, and its end when the process that started it is killed: no orphan writes into a later
    run."""
    _use_one_core()

    def watch() -> None:
        parent = parent_process()
        assert parent
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _use_one_core() -> None:
    """Native libraries start a thread a core when they first work; beside other workers that is too many."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # tokenizers and gigatoken


def _call_on_one_core(call: Callable[[Any], Record], argument: Any) -> Record:
    _use_one_core()
    return call(argument)


@dataclass(frozen=True)
class RayExecutor:
    """Ray Core tasks with a bounded number in flight. Tasks get paths; documents never enter the object store."""

    workers: int
    address: str | None  # None: the cluster this job runs on, or an embedded one

    def run(self, call: Callable[[Any], Record], arguments: Sequence[Any]) -> Iterable[Record]:
        """Yield `call(argument)` as results come; see `Executor.run`."""
        if not arguments:
            return
        ray = self.connect()
        remote = ray.remote(num_cpus=1, max_retries=RAY_RETRIES)(_call_on_one_core)
        waiting = deque(arguments)
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < self.workers * IN_FLIGHT_PER_WORKER:
                running.append(remote.remote(call, waiting.popleft()))
            finished, running = ray.wait(running)
            try:
                yield from ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                for reference in running:
                    ray.cancel(reference)
                raise error.cause from None

    def close(self) -> None:
        """Nothing to do: the cluster ends idle workers itself, and an embedded one ends with this process."""

    def connect(self) -> Any:
        """The `ray` module, connected: to `address`, to the job's own cluster, or to an embedded one."""
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "the ray executor needs Ray: pip install 'seqmill[ray]', or use --executor local"
            ) from error
        if ray.is_initialized():
            return ray
        if self.address is not None:
            _require_answer(self.address)
        embedded = self.address is None and "RAY_ADDRESS" not in os.environ
        try:
            ray.init(
                address="local" if embedded else self.address,
                num_cpus=self.workers if embedded else None,
                include_dashboard=False if embedded else None,
                log_to_driver=False,
                logging_level="error",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(self.address, error) from error
        return ray


def _require_answer(address: str) -> None:
    """Refuse a cluster address where nothing listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():  # "auto", "local": for Ray to understand
        return
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster answers at {address!r} ({error}); start one with `ray start --head`, correct --address, "
        "or leave it out to start an embedded one"
    )


EXECUTORS: dict[str, Callable[[int, str | None], Executor]] = {
    "local": lambda workers, address: LocalExecutor(workers),
    "ray": RayExecutor,
}


def make_executor(kind: str, workers: int | None, address: str | None) -> Executor:
    """The executor called `kind`, with `workers` workers (default: every core of this machine).

    Raises:
        UserError: `kind` is not in `EXECUTORS`, or `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers}: at least 1 is needed")
    if kind not in EXECUTORS:
        raise UserError(f"executor = {kind!r}: choose one of {', '.join(EXECUTORS)}")
    return EXECUTORS[kind](workers or os.cpu_count() or 1, address)
