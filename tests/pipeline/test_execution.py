import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seqmill.errors import UserError
from seqmill.manifest import write_manifest
from seqmill.pipeline.execution import Unit, run_units
from seqmill.pipeline.executors import LocalExecutor, RayExecutor, make_executor
from seqmill.pipeline.progress import Silent
from work_functions import die_once, write_text


class Bench:
    def __init__(self, tmp_path: Path) -> None:
        self.out, self.marks = tmp_path / "out", tmp_path / "marks"
        self.marks.mkdir()

    def units(self, *texts: str, **more: Any) -> list[Unit]:
        return [
            Unit(f"part-{k}", {"name": f"part-{k}", "text": text, "marks": str(self.marks), **more})
            for k, text in enumerate(texts)
        ]

    def run(self, units: list[Unit], executor: Any = LocalExecutor(1), work: Any = write_text) -> list[Any]:  # noqa: B008
        return run_units("test", work, units, self.out, executor, Silent())

    def times_run(self, name: str) -> int:
        mark = self.marks / name
        return len(mark.read_text().splitlines()) if mark.exists() else 0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_records_come_in_the_order_of_units_with_sizes_and_statistics(bench: Bench) -> None:
    records = bench.run(bench.units("a", "bb", "ccc"), LocalExecutor(2))
    assert [record.unit for record in records] == ["part-0", "part-1", "part-2"]
    assert [record.stats["length"] for record in records] == [1, 2, 3]
    assert [record.files[0].bytes for record in records] == [1, 2, 3]


def test_finished_units_are_not_run_again(bench: Bench) -> None:
    bench.run(bench.units("a", "b"))
    assert bench.run(bench.units("a", "b"))[0].stats == {"length": 1}
    assert [bench.times_run("part-0"), bench.times_run("part-1")] == [1, 1]


def test_a_changed_payload_a_missing_output_and_a_changed_output_are_redone(bench: Bench) -> None:
    bench.run(bench.units("a", "b", "c", "d"))
    (bench.out / "part-1").unlink()
    (bench.out / "part-2").write_text("X")  # the same size, other bytes
    bench.run(bench.units("A", "b", "c", "d"))
    assert [bench.times_run(f"part-{k}") for k in range(4)] == [2, 2, 2, 1]
    assert [(bench.out / f"part-{k}").read_text() for k in range(4)] == ["A", "b", "c", "d"]


def test_a_manifest_of_an_earlier_run_does_not_vouch_for_rewritten_files(bench: Bench) -> None:
    files = [file for record in bench.run(bench.units("aaaa")) for file in record.files]
    write_manifest(bench.out, "documents", files)
    record = (bench.out / ".state" / "part-0.json").read_bytes()
    bench.run(bench.units("bbbb"))
    (bench.out / ".state" / "part-0.json").write_bytes(record)  # as if killed before the new record was written
    bench.run(bench.units("aaaa"))
    assert (bench.out / "part-0").read_text() == "aaaa"


def test_a_failing_unit_keeps_the_finished_ones(bench: Bench) -> None:
    good, bad = bench.units("a", "b")
    with pytest.raises(UserError, match="fails as asked"):
        bench.run([good, Unit("part-1", {**bad.payload, "fail": True})])
    bench.run([good, bad])
    assert [bench.times_run("part-0"), bench.times_run("part-1")] == [1, 1]


def test_an_error_in_a_pool_is_the_units_own_error(bench: Bench) -> None:
    with pytest.raises(UserError, match="fails as asked"):
        bench.run(bench.units("a", "b", "c", fail=True), LocalExecutor(2))


def test_pool_workers_are_other_processes_and_bounded(bench: Bench) -> None:
    bench.run(bench.units(*"abcdefgh"), LocalExecutor(2))
    workers = {(bench.marks / f"part-{k}").read_text() for k in range(8)}
    assert 1 <= len(workers) <= 2
    assert f"{os.getpid()}\n" not in workers


def test_impossible_executors_are_refused() -> None:
    with pytest.raises(UserError, match="choose one of local, ray"):
        make_executor("slurm", None, None)
    with pytest.raises(UserError, match="workers = 0"):
        make_executor("local", 0, None)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
class TestRay:
    @pytest.fixture(autouse=True)
    def cluster(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Embedded clusters whose workers can import the functions of these tests."""
        import ray

        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
        yield
        ray.shutdown()

    def test_tasks_run_elsewhere_and_errors_come_back_as_they_are(self, bench: Bench) -> None:
        records = bench.run(bench.units("a", "bb"), RayExecutor(2, None))
        assert [record.stats["length"] for record in records] == [1, 2]
        assert f"{os.getpid()}\n" != (bench.marks / "part-0").read_text()
        with pytest.raises(UserError, match="fails as asked"):
            bench.run(bench.units("c", "d", fail=True), RayExecutor(2, None))

    def test_a_task_whose_worker_died_is_tried_again(self, bench: Bench) -> None:
        bench.run(bench.units("a"), RayExecutor(2, None), die_once)
        assert bench.times_run("part-0") == 1
        assert (bench.out / "part-0").read_text() == "a"


def test_a_cluster_that_does_not_answer_is_a_user_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"no Ray cluster answers at '{address}'"):
        list(RayExecutor(1, address).run(print, [1]))  # type: ignore[arg-type]


POOL = """
import sys
from pathlib import Path
from work_functions import wait_for_ever
from seqmill.pipeline.execution import Unit, run_units
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent

if __name__ == "__main__":
    units = [Unit(f"part-{k}", {"marks": sys.argv[1], "name": f"{k}"}) for k in range(2)]
    run_units("test", wait_for_ever, units, Path(sys.argv[1]) / "out", LocalExecutor(2), Silent())
"""


def test_pool_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    marks = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
    parent.kill()
    parent.wait()
    for mark in marks:
        wait_until(lambda mark=mark: not is_running(int(mark.read_text())))  # type: ignore[misc]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie has ended, though nobody has asked for its exit code
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
