"""`seqmill bench`: run the files of benchmarks/, which lie in the repository and not in the wheel."""

import importlib
import importlib.util
import inspect
import os
import platform
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import seqmill
from seqmill.errors import UserError

PACKAGE = "seqmill_benchmarks"  # the name under which files of benchmarks/ import each other


def run_benchmark(name: str, **options: Any) -> dict[str, Any]:
    """The result of one benchmark: name, machine, rows of case, system, value, unit, higher_is_better, and notes.

    Raises:
        UserError: there is no such benchmark, it takes no such option, or this is no checkout of the repository.
    """
    if name not in benchmark_names():
        raise UserError(f"there is no benchmark {name!r}; choose one of {', '.join(benchmark_names())}")
    run = benchmark_module(name.replace("-", "_")).run
    for option in options:
        if option not in inspect.signature(run).parameters:
            raise UserError(f"the benchmark {name!r} takes no --{option}; leave it out")
    return {"name": name, "machine": describe_machine(), **run(**options)}


def benchmark_names() -> list[str]:
    """The benchmarks of this checkout."""
    return sorted(path.stem.replace("_", "-") for path in _folder().glob("*.py"))


def benchmark_module(name: str) -> ModuleType:
    """A module of benchmarks/ by its dotted name, such as `support.quality`."""
    if PACKAGE not in sys.modules:
        spec = ModuleSpec(PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(_folder())]
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{PACKAGE}.{name}")


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
