"""What was written is valid (see test_sets), and no damage passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from damage import flipped_bits
from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, OutputFile, write_manifest
from seqmill.packing.sets import validate_sets
from seqmill.storage import read_arrow, read_json, write_arrow

SIZES = [40, 3, 17, 0, 8, 1, 25]


@pytest.fixture
def folder(pack_bags: Callable, bags_of: Callable) -> Path:
    found: Path = pack_bags(bags_of(SIZES, 4), shards=1, capacity=16)[0]
    return found


def edit(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> set[str]:
    """Rewrite the first shard after `change` of its rows, with a manifest that fits; what is violated then."""
    path = folder / "part-00000.arrow"
    table = read_arrow(path)
    rows = table.to_pylist()
    change(rows)
    schema = table.schema
    write_arrow(path, schema, pa.Table.from_pylist(rows, schema).to_batches())
    manifest = read_json(folder / MANIFEST)
    files = [OutputFile.of(folder, path.name, len(rows)), *(OutputFile(**file) for file in manifest["files"][1:])]
    write_manifest(folder, "sets", files, sets=manifest["sets"], totals=manifest["totals"])
    return {violation.invariant for violation in validate_sets(folder).violations}


CHANGES: dict[str, tuple[set[str], Callable[[list[dict[str, Any]]], Any]]] = {
    "nothing": (set(), lambda rows: None),
    "an instance that is there twice": (
        {"I4"},
        lambda rows: rows[0]["instance"].__setitem__(1, rows[0]["instance"][0]),
    ),
    "another bag": ({"I4"}, lambda rows: rows[0]["bag"].__setitem__(0, 5)),
    "a feature": ({"I10"}, lambda rows: rows[0]["features"][2].__setitem__(1, 7.0)),
    "a bound": ({"I1", "totals"}, lambda rows: rows[0]["cu_seqlens"].__setitem__(0, 1)),
    "a length": ({"I2"}, lambda rows: rows[0]["seq_lengths"].__setitem__(0, 1)),
    "a longest segment": ({"I2"}, lambda rows: rows[0].__setitem__("max_seqlen", 99)),
    "a label too many": ({"I1", "I7", "I4", "totals"}, lambda rows: rows[0]["label"].append(1)),
    "a row number": ({"I7"}, lambda rows: rows[0].__setitem__("row_id", 3)),
    "a kind": ({"I7"}, lambda rows: rows[0].__setitem__("is_residual", True)),
    "a lost row": ({"I4", "I7", "totals"}, lambda rows: rows.pop(0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_inconsistency_is_named(folder: Path, name: str) -> None:
    expected, change = CHANGES[name]
    found = edit(folder, change)
    if not expected:
        assert found == set()
    assert found & expected or found == expected
    assert found <= expected | {"I10", "I4"}


def test_every_flipped_bit_is_noticed_and_none_crashes(folder: Path) -> None:
    def is_noticed() -> bool:
        try:
            return not validate_sets(folder).ok
        except UserError:
            return True

    assert [place for place in flipped_bits(folder, 50) if not is_noticed()] == []
    assert not is_noticed()
