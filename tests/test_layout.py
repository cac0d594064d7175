import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "tokenizers_ext", "packing", "compress", "models")
SOURCES = [path for folder in (*FOLDERS, "src/seqmill", "tests") for path in sorted((ROOT / folder).glob("**/*.py"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_linked_into_the_package(folder: str) -> None:
    link = ROOT / "src" / "seqmill" / folder
    assert link.is_symlink(), f"{link} is no link: clone with `git config core.symlinks true`"
    assert link.readlink() == Path("..") / ".." / folder
    assert link.resolve() == ROOT / folder


@pytest.mark.slow
def test_the_wheel_holds_only_seqmill(tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, cwd=tmp_path)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"seqmill"}
    for folder in FOLDERS:
        assert f"seqmill/{folder}/__init__.py" in names
    assert "seqmill/pipeline/dedup/stage.py" in names
    assert "seqmill/py.typed" in names


@cache
def loaded_by(module: str) -> frozenset[str]:
    """The modules that a fresh process has loaded once it has imported this one."""
    code = f"import sys, {module}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert module in found.stdout.split()
    return frozenset(found.stdout.split())


@pytest.mark.parametrize("folder", FOLDERS)
def test_importing_a_folder_leaves_no_bare_name_behind(folder: str) -> None:
    assert loaded_by(f"seqmill.{folder}") & set(FOLDERS) == set()


def imports_of(path: Path) -> set[str]:
    statement = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.MULTILINE)
    return set(statement.findall(path.read_text()))


def test_no_source_imports_a_bare_folder() -> None:
    assert len(SOURCES) > 60
    bare = [(path, name) for path in SOURCES for name in imports_of(path) if name.split(".")[0] in FOLDERS]
    assert bare == []


ALLOWED = {
    "pipeline": {"pipeline", "tokenizers_ext", "packing", "compress"},
    "tokenizers_ext": {"tokenizers_ext", "compress"},
    "packing": {"packing"},
    "compress": {"compress"},
    "models": {"models", "packing", "tokenizers_ext", "compress"},
}
HANDS_DATA_TO_MODELS = "model_steps.py"  # the one module of the pipeline that may


@pytest.mark.parametrize("folder", FOLDERS)
def test_dependencies_between_folders_run_one_way(folder: str) -> None:
    for path in sorted((ROOT / folder).glob("**/*.py")):
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("seqmill.")} & set(FOLDERS)
        allowed = ALLOWED[folder] | ({"models"} if path.name == HANDS_DATA_TO_MODELS else set())
        assert used <= allowed, f"{path} imports {used - allowed}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("seqmill.models", ("ray", "datasets")),
        ("seqmill.packing", ("ray", "torch", "datasets")),
        ("seqmill.tokenizers_ext", ("ray", "torch", "datasets")),
        ("seqmill.pipeline", ("ray", "torch", "datasets")),
        ("seqmill.cli", ("ray", "torch", "datasets", "numba", "pyarrow", "rich")),
    ],
)
def test_importing_a_module_leaves_heavy_libraries_alone(module: str, unwanted: tuple[str, ...]) -> None:
    assert loaded_by(module) & set(unwanted) == set()


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted} - {"seqmill"}  # type: ignore[index]
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert names <= {name.lower() for name in pinned}
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned.values())
