"""Systems that take turns: who takes part, who is left out, and how drivers answer."""

import importlib
import json
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seqmill.pipeline.bench import benchmark_module

DRIVERS = Path(__file__).parents[1] / "benchmarks" / "peers"
contenders = benchmark_module("support.contenders")
peers = benchmark_module("support.peers")

Asked = list[tuple[Any, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What systems were asked; the way "fails" answers in its first turn alone, and the peer "absent" never."""
    told: Asked = []

    def ask(system: Any, folder: Path, task: str, *arguments: Any) -> Any:
        told.append((system.name, system.tasks, system.one_core, folder.name, task, *arguments))
        if system.name == "absent" or (arguments[:1] == ("fails",) and not folder.name.endswith("-0")):
            raise peers.PeerError(f"{system.name} {task}: no memory")
        variants = {"seqmill": ["packed"]}.get(system.name, ["works", "fails"])
        if task == "describe":
            return SimpleNamespace(result={"version": "1.0", "variants": variants})
        return SimpleNamespace(result={"threads": 2 if arguments[0] == "fails" else 1, "seconds": 1.0})

    monkeypatch.setattr(peers.System, "ask", ask)
    monkeypatch.setattr(peers, "installed", lambda name: peers.System(name, Path("python")))
    return told


def test_every_way_of_every_system_that_is_there_takes_part_and_ours_is_first(tmp_path: Path, asked: Asked) -> None:
    notes: list[str] = []
    found = contenders.find_contenders(tmp_path, "train", ["absent", "other"], notes)
    assert [one.label for one in found] == ["seqmill", "other 1.0 works", "other 1.0 fails"]
    assert {one.system.tasks for one in found} == {"train"}
    assert notes == ["absent describe: no memory"]


def test_who_fails_in_one_turn_has_no_further_ones_and_is_not_shown(tmp_path: Path, asked: Asked) -> None:
    found = contenders.find_contenders(tmp_path, "train", ["other"], [])
    asked.clear()
    turns = contenders.take_turns(found, 3, tmp_path, False, "step", tmp_path / "work", "cpu")
    assert [(one[3], one[5]) for one in asked] == [
        ("seqmill-0", "packed"), ("other-1.0-works-0", "works"), ("other-1.0-fails-0", "fails"),
        ("seqmill-1", "packed"), ("other-1.0-works-1", "works"), ("other-1.0-fails-1", "fails"),
        ("seqmill-2", "packed"), ("other-1.0-works-2", "works"),
    ]  # fmt: skip
    assert asked[0] == ("seqmill", "train", False, "seqmill-0", "step", "packed", tmp_path / "work", "cpu")
    assert {label: str(error) for label, error in turns.failed.items()} == {"other 1.0 fails": "other step: no memory"}
    assert {label: len(answers) for label, answers in turns.whole.items()} == {"seqmill": 3, "other 1.0 works": 3}
    assert turns.threads == "1, 2"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["describe"], {"variants": ["a", "b"]}),
        (["add", "2", "3"], {"sum": 5}),
    ],
)
def test_a_driver_answers_with_what_a_task_found_and_its_version(
    command: list[str], told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(DRIVERS))
    answer = importlib.import_module("protocol").answer
    name, *arguments = command
    monkeypatch.setattr("sys.argv", ["driver.py", name, str(tmp_path), *arguments])
    answer("python", {"add": lambda out, a, b: {"sum": int(a) + int(b)}}, variants=["a", "b"])
    assert json.loads((tmp_path / "result.json").read_text()) == {"version": platform.python_version(), **told}
