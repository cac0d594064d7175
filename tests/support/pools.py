"""Worker processes that tests share."""

from functools import cache

from seqmill.pipeline.executors import LocalExecutor


@cache
def local(workers: int) -> LocalExecutor:
    """The executor of this many workers that all tests of this process use, open to its end: a process of a pool takes
    two seconds of a core to import what it needs. Tests of pools themselves make their own."""
    return LocalExecutor(workers)
