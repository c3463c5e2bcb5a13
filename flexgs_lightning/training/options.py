"""Options as plain values, for checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


def plain_arguments(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a class's constructor, from values by name, as plain values."""
    names = inspect.signature(kind.__init__).parameters
    return {name: _plain(values[name]) for name in names if name != "self" and name in values}


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
