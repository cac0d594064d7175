"""`seqmill bench`: run the files of benchmarks/, which lie in the repository and not in the wheel."""

import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import seqmill
from seqmill.errors import UserError


def run_benchmark(name: str) -> dict[str, Any]:
    """The result of one benchmark: name, machine, and rows of case, system, value, unit, higher_is_better.

    Raises:
        UserError: there is no such benchmark, or this is no checkout of the repository.
    """
    path = _folder() / f"{name}.py"
    if not path.is_file():
        raise UserError(f"there is no benchmark {name!r}; choose one of {', '.join(benchmark_names())}")
    spec = importlib.util.spec_from_file_location(f"seqmill_benchmark_{name}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"name": name, "machine": describe_machine(), "rows": module.run()}


def benchmark_names() -> list[str]:
    """The benchmarks of this checkout."""
    return sorted(path.stem for path in _folder().glob("*.py"))


def describe_machine() -> dict[str, Any]:
    """What a figure depends on, without naming the host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _folder() -> Path:
    folder = Path(seqmill.__file__).resolve().parents[2] / "benchmarks"
    if not folder.is_dir():
        raise UserError("benchmarks lie in the repository: clone it and install it with `pip install -e .[dev]`")
    return folder
