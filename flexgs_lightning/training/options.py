"""Options as plain values, for checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from flexgs_lightning.errors import InputError


def require_values(where: str, kind: type, values: object) -> None:
    """Refuse null for what needs a value: parsers let it pass, whatever the type.

    Args:
        where: dotted name of the options, for messages.
        kind: a class, whose constructor's types say what may be null; parts that are dataclasses, or classes
            chosen by name, are checked, too.
        values: parsed arguments as attributes.

    Raises:
        InputError: naming the first such option.
    """
    found, hints = vars(values), get_type_hints(kind.__init__)
    for name, hint in hints.items():
        value = found.get(name, ...)
        if value is None and type(None) not in get_args(hint):
            raise InputError(f"{where}.{name}: expected a value, found null.")
        if hasattr(value, "class_path"):
            module, _, chosen = value.class_path.rpartition(".")
            own = getattr(value, "init_args", value)
            require_values(f"{where}.{name}", getattr(import_module(module), chosen), own)
        elif is_dataclass(hint) and hasattr(value, "__dict__"):
            require_values(f"{where}.{name}", cast(type, hint), value)


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
