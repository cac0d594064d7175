"""Every command and output of the README, run as a reader would run it."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pools import local
from seqmill.cli import main
from seqmill.pipeline.executors import EXECUTORS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("readme")]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
Stages = list[tuple[str, str, list[str]]]  # command, what it prints, what the README shows


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block with the lines printed below each."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return [(command, shown.splitlines()) for command, shown in zip(parts[::2], parts[1::2], strict=True)]


def pattern_of(line: str) -> str:
    """What a shown line promises: "..." stands for anything; losses may differ by machine, counts may not."""
    escaped = re.escape(" ".join(line.split())).replace(r"\.\.\.", ".*")
    if "nats per token" in line:
        escaped = re.sub(r"\d+\\\.\d+", r"\\d+\\.\\d+", escaped)
    return escaped


def assert_shows(printed: str, shown: list[str]) -> None:
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    promised = [pattern_of(line) for line in shown if line.strip() != "..."]
    for pattern in promised:
        assert any(re.fullmatch(pattern, line) for line in lines), f"no line matches {pattern!r}\n{printed}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository for the README's purposes, so that nothing is written into the real one."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run(command: str, workplace: Path) -> str:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        shlex.split(command), cwd=workplace, env=environment, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def demo(workplace: Path) -> str:
    """What `make demo` prints, once it has installed."""
    recipe = re.search(r"^demo:.*\n\t\$\(BIN\)/(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    return run(f"{recipe[1]} --quiet", workplace)


def test_the_first_screen_fits_forty_lines() -> None:
    assert README.index("## The pipeline") < sum(len(line) + 1 for line in README.split("\n")[:40])


def test_the_demo_prints_what_the_readme_shows(demo: str, workplace: Path) -> None:
    shown = dict(commands(blocks("console")[0]))["make demo"]
    assert len(shown) > 10
    assert_shows(demo, shown)
    training = re.search(r"loss ([\d.]+) -> ([\d.]+) nats per token .* unigram entropy ([\d.]+)", demo)
    promised = re.search(r"loss ([\d.]+) -> ([\d.]+) nats per token .* unigram entropy ([\d.]+)", README)
    assert training
    assert promised
    for found, expected in zip(training.groups(), promised.groups(), strict=True):
        assert float(found) == pytest.approx(float(expected), abs=0.15)
    assert float(training[2]) < float(training[3]) - 0.5
    assert (workplace / "runs/demo/report.json").exists()


def test_the_test_command_is_what_continuous_integration_runs() -> None:
    assert "make test" in dict(commands(blocks("console")[0]))
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_the_configuration_shown_is_the_demo() -> None:
    shown, _ = blocks("toml")
    assert tomllib.loads(shown) == tomllib.loads((ROOT / "examples" / "demo.toml").read_text())


@pytest.fixture(scope="module")
def stages(workplace: Path) -> Stages:
    """The commands of the first stages with what they print and what is shown; the others read their folders."""
    return [(command, run(command, workplace), shown) for command, shown in commands(blocks("console")[1])]


def test_every_stage_command_prints_what_the_readme_shows(stages: Stages) -> None:
    assert [command.split()[1] for command, _, _ in stages] == [
        "ingest", "dedup", "tokenizer", "tokenize", "pack", "inspect", "train",
    ]  # fmt: skip
    for _, printed, shown in stages:
        assert_shows(printed, shown)


@pytest.fixture
def run_here(
    stages: Stages, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Run a command in this process and the workers that all commands share, which have imported everything: that
    takes longer than the work."""
    monkeypatch.chdir(workplace)
    monkeypatch.setitem(EXECUTORS, "local", lambda workers, address: local(workers))

    def call(command: str) -> str:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("block", blocks("console")[2:-1], ids=lambda block: block.split()[2])
def test_more_stages_print_what_the_readme_shows(block: str, run_here: Callable[[str], str]) -> None:
    for command, shown in commands(block):
        assert set(shown) - {"..."}
        assert_shows(run_here(command), shown)


def test_the_further_tables_shown_run_with_the_data_of_the_demo(
    run_here: Callable[[str], str], workplace: Path
) -> None:
    demo, tables = blocks("toml")
    (workplace / "all.toml").write_text(demo.split("[train]")[0] + tables)
    every = [command for block in blocks("console")[2:-1] for command, _ in commands(block)]
    run_here(next(command for command in every if " traps make " in command))
    report = json.loads(run_here("seqmill run all.toml --set tokenizer.kind=byte --set out=all --json --quiet"))
    lost = {entry["stage"]: entry["reasons"] for entry in report["funnel"]}
    assert all(lost[stage] for stage in ("filter", "near dedup", "substrings", "traps", "mix"))
    assert report["mix"]["by_source"]["sotu"]["epochs"] == pytest.approx(2.5, abs=0.05)


def test_the_python_examples_run(
    demo: str, run_here: Callable[[str], str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    merging, streaming, mixing, generating = blocks("python")
    if not (workplace / "ordered").exists():
        run_here("seqmill pack tokens --seq-len 2048 --algorithm windowed --window 256 --out ordered --quiet")
    exec(mixing, {})
    exec(merging, {})
    names: dict[str, Any] = {}
    exec(streaming, names)
    assert names["batch"]["input_ids"].shape == names["batch"]["targets"].shape
    resumed, dataset = names["resumed"], names["dataset"]
    dataset.load_state_dict(names["state"])
    following = next(iter(dataset))["row_ids"].tolist()
    assert next(iter(resumed))["row_ids"].tolist() == following[6:]  # rank 3 of 4 has the last quarter of 8 rows
    run_here("seqmill export runs/demo/train --out hub")
    exec(generating, names)
    assert [len(sequence.tokens) for sequence in names["sequences"]] <= [8, 8]
    assert [len(sequence.tokens) for sequence in names["both"]] == [8, 8]


def test_datasets_maps_a_shard(demo: str, workplace: Path) -> None:
    import datasets

    shown = re.search(r'datasets\.Dataset\.from_file\("(.*?)"\)', README)
    assert shown
    dataset = datasets.Dataset.from_file(str(workplace / shown[1]))
    assert dataset[0]["n_tokens"] == len(dataset[0]["input_ids"]) > 400


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """A Ray cluster of one node with a job server; gives a function that puts its address into a command."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    gcs, dashboard = ports
    start = f"{BIN}/ray start --head --port {gcs} --dashboard-port {dashboard} --num-cpus 2 --disable-usage-stats"
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")  # jobs find the command as in an active environment
    head = subprocess.Popen([*shlex.split(start), "--block"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield lambda command: command.replace("http://127.0.0.1:8265", f"http://127.0.0.1:{dashboard}")
    finally:
        head.terminate()
        head.wait(60)


def wait_for_jobs(address: str) -> None:
    """Until the cluster takes a job: its server answers before the agent that starts jobs is up, or never answers what
    it was asked before that. Asked from a fresh process, since this one may have used Ray without a token."""
    command = [BIN / "ray", "job", "submit", "--no-wait", "--address", address, "--", "true"]
    told = "nothing"
    for _ in range(30):
        try:
            submitted = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except subprocess.TimeoutExpired:
            continue
        if submitted.returncode == 0:
            return
        told = submitted.stderr
        time.sleep(1)
    raise AssertionError(told)


def test_a_ray_job_runs_the_same_configuration(
    cluster: Callable[[str], str], small_config: str, tmp_path: Path
) -> None:
    ((command, _),) = commands(blocks("console")[-1])
    command = cluster(command)
    submitted = tmp_path / "submitted"
    submitted.mkdir()
    (submitted / "small.toml").write_text(small_config.split("[train]")[0])
    command = command.replace("examples/demo.toml", "small.toml").replace("/shared/runs/demo", str(tmp_path / "run"))
    address = re.search(r"--address (\S+)", command)
    assert address
    wait_for_jobs(address[1])
    printed = run(command, submitted)
    assert "succeeded" in printed
    assert (tmp_path / "run" / "report.json").exists()
    assert "packing" in printed
