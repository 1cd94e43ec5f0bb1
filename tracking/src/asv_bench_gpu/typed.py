"""Dataclasses from JSON, every type checked: a file may be damaged, or written by somebody else."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def loads(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def build(kind: type[Kind], data: object) -> Kind:
    """Make a dataclass of what `json.loads` gave.

    Its annotations may be dataclasses, lists, dicts, numbers, text, and any of these or None. Fields with a default may
    be missing.

    Raises:
        ValueError: something is missing, unknown or of another type; the message says where.
    """
    built: Kind = _build(kind, data, "")
    return built


def _build(hint: Any, data: Any, where: str) -> Any:
    inner = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        (some,) = (kind for kind in inner if kind is not types.NoneType)
        return None if data is None else _build(some, data, where)
    if dataclasses.is_dataclass(hint) and isinstance(data, dict):
        return _build_dataclass(hint, data, where)
    if typing.get_origin(hint) is list and isinstance(data, list):
        return [_build(inner[0], value, f"{where}[{number}]") for number, value in enumerate(data)]
    if typing.get_origin(hint) is dict and isinstance(data, dict):
        # JSON knows only text for a key.
        return {inner[0](key): _build(inner[1], value, f"{where}[{key!r}]") for key, value in data.items()}
    if type(data) is hint in (int, str) or (hint is float and _is_finite(data)):
        return data
    raise ValueError(f"{where or 'it'}: expected {getattr(hint, '__name__', hint)}, got {data!r:.100}")


def _build_dataclass(kind: Any, data: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    if unknown := data.keys() - hints.keys():
        raise ValueError(f"{where or 'it'}: expected one of {', '.join(hints)}, got {min(unknown)!r}")
    dot = f"{where}." if where else ""
    try:
        return kind(**{name: _build(hints[name], value, dot + name) for name, value in data.items()})
    except TypeError as error:  # something without a default is missing
        raise ValueError(f"{where or 'it'}: {error}") from error


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer that no float can hold
        return False
