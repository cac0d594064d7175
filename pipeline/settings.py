"""From TOML tables to frozen dataclasses: unknown keys, wrong types and impossible values fail before any work."""

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from seqmill.errors import UserError

T = TypeVar("T")


def build(settings: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Make a `settings` dataclass from a TOML table; tables inside become the dataclasses of their fields.

    Args:
        settings: a dataclass whose fields are bool, int, float, str, tuple[str, ...], Mapping[str, one of these],
            dataclasses, or one of these or None.
        where: the table's dotted name, for messages: "" for the whole file, "dedup" for [dedup].

    Raises:
        UserError: an unknown key (with the nearest known one), a missing key, or a value of the wrong type; what the
            dataclass itself refuses passes through.
    """
    assert is_dataclass(settings)
    hints = typing.get_type_hints(settings)
    known = {field.name: field for field in fields(settings)}
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise UserError(f"unknown key {_dotted(where, key)!r} in the configuration; {hint}")
    values = {key: _convert(hints[key], value, _dotted(where, key)) for key, value in table.items()}
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"the configuration needs {_dotted(where, name)!r}")
    return settings(**values)


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as the field's type: a list becomes a tuple, an int becomes a float where one is wanted."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if is_dataclass(origin) and isinstance(value, Mapping):
            return build(typing.cast(type, origin), value, key)
        if origin is tuple and isinstance(value, list | tuple):
            return _convert_items(option, value, key)
        if origin is Mapping and isinstance(value, Mapping):
            return _convert_values(option, value, key)
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(origin, type) and isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    wanted = " or ".join(_type_name(option) for option in options if option is not type(None))
    raise UserError(f"{key} = {value!r} is of the wrong type: {wanted} is needed")


def _convert_items(hint: Any, value: list[Any] | tuple[Any, ...], key: str) -> tuple[Any, ...]:
    arguments = typing.get_args(hint)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{key}[{k}]") for k, item in enumerate(value))
    if len(arguments) != len(value):
        raise UserError(f"{key} = {list(value)!r} has {len(value)} values: {len(arguments)} are needed")
    return tuple(
        _convert(kind, item, f"{key}[{k}]") for k, (kind, item) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_values(hint: Any, value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table of free keys: the values as the hint's, or as they are for Mapping and Mapping[str, Any]."""
    _, kind = typing.get_args(hint) or (str, Any)
    if kind is Any:
        return value
    return {name: _convert(kind, item, _dotted(key, name)) for name, item in value.items()}


def _type_name(hint: Any) -> str:
    if is_dataclass(hint):
        return "a table"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", tuple: "a list"}
    return names.get(typing.get_origin(hint) or hint, "a table")
