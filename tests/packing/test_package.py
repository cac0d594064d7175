import subprocess
import sys

import pytest

import seqmill.packing


def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, seqmill.packing\n"
        "assert 'numba' in sys.modules\n"
        "heavy = {'torch', 'ray', 'datasets', 'seqmill.pipeline', 'transformers', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from seqmill.packing import PackedDataset\n"
        "assert 'torch' in sys.modules\n"
        "print(sorted((heavy - {'torch'}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


@pytest.mark.parametrize("name", seqmill.packing.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(seqmill.packing, name).__doc__


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = seqmill.packing.Nothing


def test_the_names_of_functions_are_not_hidden_by_modules() -> None:
    assert callable(seqmill.packing.plan)
    assert callable(seqmill.packing.validate)
