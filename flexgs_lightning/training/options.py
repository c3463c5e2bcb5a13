"""Options as plain values, for checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any


def plain_arguments(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a class's constructor, from values by name, as plain values."""
    names = inspect.signature(kind.__init__).parameters
    return {name: _plain(values[name]) for name in names if name != "self" and name in values}


def plain_defaults(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """As ``plain_arguments``, with defaults in place of values; objects without one have their class's."""
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    if is_dataclass(kind):
        defaults |= {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    names = [name for name in parameters if name in values]
    return {name: _plain_default(defaults[name], values[name]) for name in names}


def _plain_default(default: Any, value: Any) -> Any:
    simple = value is None or isinstance(value, (bool, int, float, str, list, tuple, Path))
    if simple or type(default) is type(value):
        return None if default is inspect.Parameter.empty else _plain(default)
    named = {} if is_dataclass(value) else {"kind": type(value).__name__}
    return {**named, **plain_defaults(type(value), vars(value))}


def _plain(value: Any) -> Any:
    """Numbers, words, lists and dictionaries only."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return {"kind": type(value).__name__, **plain_arguments(type(value), vars(value))}
