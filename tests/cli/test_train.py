"""`seqmill train` with its settings on the command line, in a file, and in both."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.cli.conftest import Call

from seqmill.cli.models import app
from seqmill.models import TrainConfig

FILE = """
packed = "packed"
out = "run"
steps = 2
batch_tokens = 128
device = "cpu"
betas = [0.9, 0.99]
[shape]
dim = 32
layers = 1
[memory]
mlp_tile = 16
"""


@pytest.fixture
def here(seqmill_here: Call) -> Call:
    """The command line in a folder with "train.toml"."""
    Path("train.toml").write_text(FILE)
    return seqmill_here


@pytest.fixture
def with_rows(here: Call) -> Call:
    """The same with "packed"."""
    Path("raw.jsonl").write_text("".join(json.dumps({"text": "word " * (1 + k % 7)}) + "\n" for k in range(40)))
    workers = ("--workers", "1", "--quiet")
    for command in (
        ("tokenizer", "train", "raw.jsonl", "--kind", "byte", "--out", "bytes", *workers),
        ("tokenize", "raw.jsonl", "--tokenizer", "bytes", "--out", "tokens", *workers),
        ("pack", "tokens", "--seq-len", "64", "--out", "packed", *workers),
    ):
        assert here(*command)[0] == 0
    return here


def asked(out: str) -> dict[str, Any]:
    """The settings that are saved with a run."""
    settings: dict[str, Any] = json.loads((Path(out) / "train.json").read_text())["asked"]
    return settings


def trained(call: Call, *arguments: str) -> dict[str, Any]:
    code, printed, errors = call("train", *arguments, "--quiet", "--json")
    assert code == 0, errors
    result: dict[str, Any] = json.loads(printed)
    return result


def refused(call: Call, *arguments: str) -> str:
    code, _, errors = call("train", *arguments, "--quiet")
    assert code == 2
    assert errors.count("\n") == 1
    return errors


def test_a_file_tells_all_that_flags_could(with_rows: Call) -> None:
    assert trained(with_rows, "train.toml")["steps"] == 2
    by_file = asked("run")
    assert by_file == {**by_file, "steps": 2, "batch_tokens": 128, "device": "cpu", "betas": [0.9, 0.99]}
    assert (by_file["shape"], by_file["memory"]["mlp_tile"]) == ({"dim": 32, "layers": 1}, 16)
    flags = ("--steps", "2", "--batch-tokens", "128", "--device", "cpu", "--set", "betas=[0.9, 0.99]")
    sets = ("--set", "shape.dim=32", "--set", "shape.layers=1", "--set", "memory.mlp_tile=16")
    trained(with_rows, "packed", "--out", "by-flags", *flags, *sets)
    assert asked("by-flags") == by_file


def test_only_flags_that_are_given_win_over_the_file_and_set_wins_over_both(with_rows: Call) -> None:
    trained(with_rows, "train.toml", "--out", "other", "--batch-tokens", "192", "--steps", "3", "--set", "steps=1")
    found = asked("other")
    assert (found["batch_tokens"], found["steps"], found["device"], found["shape"]["dim"]) == (192, 1, "cpu", 32)
    assert not Path("run").exists()


def test_folders_in_the_file_are_relative_to_the_working_directory(with_rows: Call) -> None:
    Path("configs").mkdir()
    Path("train.toml").rename("configs/train.toml")
    trained(with_rows, "configs/train.toml", "--steps", "1")
    assert Path("run/log.jsonl").is_file()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("steps", "step"), (), "unknown key 'step' in the configuration; did you mean 'steps'?"),
        (("mlp_tile", "mlp"), (), "unknown key 'memory.mlp' in the configuration"),
        (("dim = 32", "width = 32"), (), "shape has 'width'"),
        (("steps = 2", 'steps = "two"'), (), "steps = 'two' is of the wrong type: a whole number is needed"),
        (('out = "run"\n', ""), (), "train.toml: there is no 'out'; give --out"),
        (('packed = "packed"\n', ""), (), "train.toml: there is no 'packed'; name a packed folder there"),
        (('"packed"', "3"), (), "train.toml: packed = 3 is no folder's name"),
        (("[shape]", "[shape"), (), "train.toml is not a TOML file"),
        (("", ""), ("--set", "steps"), "write it as table.key=value"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    here: Call, change: tuple[str, str], arguments: tuple[str, ...], message: str
) -> None:
    Path("train.toml").write_text(FILE.replace(*change, 1))
    assert message in refused(here, "train.toml", *arguments)
    assert not Path("run").exists()


def test_without_a_file_a_folder_to_write_is_needed(here: Call) -> None:
    assert "there is no 'out'; give --out" in refused(here, "packed")
    assert "there is no configuration file none.toml" in refused(here, "none.toml", "--out", "run")


def test_help_shows_the_defaults_that_settings_have() -> None:
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    shown = {parameter.name: parameter.show_default for parameter in command.params if parameter.show_default}
    told = {name: text for name, text in shown.items() if isinstance(text, str)}
    assert len(told) == 10
    assert told == {name: str(getattr(TrainConfig(), name)) for name in told}
