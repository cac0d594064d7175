from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from seqmill.errors import UserError
from seqmill.pipeline.settings import build


@dataclass(frozen=True)
class Inner:
    size: int = 1
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    on: bool = True
    inner: Inner = field(default_factory=Inner)
    many: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    maybe: int | None = None


def test_tables_become_nested_dataclasses() -> None:
    table = {
        "name": "x",
        "on": False,
        "inner": {"size": 3, "share": 1},
        "many": ["a", "b"],
        "pair": [1, 2.5],
        "maybe": 4,
    }
    assert build(Outer, table) == Outer("x", False, Inner(3, 1.0), ("a", "b"), (1.0, 2.5), 4)
    assert build(Outer, {"name": "x"}) == Outer("x")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "x", "inner": {"siez": 3}}, "unknown key 'inner.siez' in the configuration; did you mean 'size'"),
        ({"name": "x", "zzz": 3}, "unknown key 'zzz' in the configuration; known keys: name, on, inner"),
        ({}, "needs 'name'"),
        ({"name": 3}, "name = 3 is of the wrong type: a string is needed"),
        ({"name": "x", "on": 1}, "on = 1 is of the wrong type: true or false"),
        ({"name": "x", "inner": {"size": 1.5}}, "inner.size = 1.5 is of the wrong type: a whole number"),
        ({"name": "x", "inner": {"size": True}}, "inner.size = True is of the wrong type"),
        ({"name": "x", "inner": 3}, "inner = 3 is of the wrong type: a table is needed"),
        ({"name": "x", "many": "abc"}, "many = 'abc' is of the wrong type: a list"),
        ({"name": "x", "many": ["a", 3]}, r"many\[1\] = 3 is of the wrong type: a string"),
        ({"name": "x", "pair": [1]}, "has 1 values: 2 are needed"),
        ({"name": "x", "maybe": "many"}, "maybe = 'many' is of the wrong type: a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Outer, table)


@dataclass(frozen=True)
class Free:
    shares: Mapping[str, float] = field(default_factory=dict)
    anything: Mapping[str, Any] = field(default_factory=dict)


def test_tables_of_free_keys_have_values_of_the_stated_type() -> None:
    assert build(Free, {"shares": {"web": 1, "books.old": 0.5}}) == Free({"web": 1.0, "books.old": 0.5})
    assert build(Free, {"anything": {"a": [1, "b"]}}) == Free(anything={"a": [1, "b"]})
    with pytest.raises(UserError, match=r"mix\.shares\.web = True is of the wrong type: a number is needed"):
        build(Free, {"shares": {"web": True}}, "mix")
