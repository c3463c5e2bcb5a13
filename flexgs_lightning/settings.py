"""Settings: YAML files by path or by the name they are shipped under, and options as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from flexgs_lightning.errors import InputError, printable
from flexgs_lightning.records import read_yaml, shown

_INSTALLED = Path(__file__).parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"
"""Folder of the configs that are shipped: in the package where it is installed, beside it in a checkout."""

_LONGEST_ERROR = 1_000
_OVERLAYS = ("ablations/", "representations/")
"""Folders of configs that only reports lay over others."""

Element = Literal["number", "text"]
"""What a list holds."""


class OneLineErrors:
    """For argument parsers: an error is one line, whatever of it comes from a file."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """See ``jsonargparse.ArgumentParser.error``."""
        line = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", printable(message)).replace("NoneType", "null")
        line = re.sub(r"module '([\w.]+)' has no attribute '([^']*)'", r"there is no \2 in \1", line)
        super().error(line if len(line) <= _LONGEST_ERROR else f"{line[:_LONGEST_ERROR]}…", ex)
        raise AssertionError("unreachable: a parser's error ends the program or raises")


def config_names() -> list[str]:
    """Names of the shipped configs, such as ``flexgs`` and ``hardware/cpu``."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """The file of a config: a path, or the name of one that is shipped.

    Raises:
        InputError: it is neither; the message lists what there is.
    """
    if Path(name).is_file():
        return Path(name)
    if str(name) in config_names():
        return CONFIGS / f"{name}.yaml"
    if Path(name).suffix:
        raise InputError(f"{name}: no such config; expected a YAML file.")
    known = (known for known in config_names() if not known.startswith(_OVERLAYS))
    raise InputError(
        f"{name}: no such config; expected a YAML file or the name of one of these: {', '.join(known)}."
    )


def read_config(name: str | Path) -> dict[str, Any]:
    """A YAML file of settings; one that is empty, or has comments only, says nothing.

    Raises:
        InputError: there is no such config, or it holds something else; see ``read_yaml``.
    """
    path = find_config(name)
    content = read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: expected settings by name, found {shown(content)}.")
    _check_classes(content, path, ())
    return content


def _check_classes(content: Any, path: Path, place: tuple[str, ...]) -> None:
    """Refuse a class whose settings are not settings by name, where the parser has only Python's words."""
    if isinstance(content, list):
        for number, item in enumerate(content):
            _check_classes(item, path, (*place, str(number)))
    if not isinstance(content, dict):
        return
    settings = content.get("init_args", {}) if "class_path" in content else {}
    if not isinstance(settings, dict):
        where = ".".join((*place, "init_args"))
        raise InputError(f"{path}: {where}: expected settings by name, found {shown(settings)}.")
    for name, value in content.items():
        _check_classes(value, path, (*place, str(name)))


def with_config_files(arguments: Sequence[str]) -> list[str]:
    """Arguments with the file of each config: ``--config a,b`` becomes ``--config=a.yaml --config=b.yaml``.

    Raises:
        InputError: see ``read_config``; every file is read here once, before a parser does.
    """
    result = []
    for option, words, typed in _options(arguments):
        configs = _parts(words) if option in ("--config", "-c") else []
        saying = [find_config(name) for name in configs if read_config(name)]
        result += [f"--config={path}" for path in saying] if configs else typed
    return result


def with_lists(arguments: Sequence[str], lists: Mapping[str, Element]) -> list[str]:
    """Arguments with each list as YAML: ``--ratios 0.01 0.05`` and ``--ratios 0.01,0.05`` mean [0.01, 0.05].

    Args:
        arguments: as typed.
        lists: options that take a list, and what it holds.
    """
    result = []
    for option, words, typed in _options(arguments):
        if option is not None and option in lists and words and not words[0].startswith("["):
            parts = _parts(words)
            values = parts if lists[option] == "number" else [json.dumps(part) for part in parts]
            typed = [f"{option}=[{', '.join(values)}]"]
        result += typed
    return result


def element_of(hint: Any) -> Element | None:
    """What a list of this type holds; None if the type is no list of numbers or words, or more than that."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if get_origin(hint) in (Union, UnionType):
        return element_of(kinds[0]) if len(kinds) == 1 else None
    if get_origin(hint) not in (list, tuple):
        return None
    kinds = [kind for kind in kinds if kind is not Ellipsis]
    if all(kind in (int, float) for kind in kinds):
        return "number"
    return "text" if all(kind in (str, Path) or get_origin(kind) is Literal for kind in kinds) else None


def _options(arguments: Sequence[str]) -> Iterator[tuple[str | None, list[str], list[str]]]:
    """Each option, the words that follow it up to the next, and both as typed; at first those without one."""
    groups: list[list[str]] = [[]]
    for argument in arguments:
        if re.match(r"--?[A-Za-z]", argument):
            groups.append([])
        groups[-1].append(argument)
    yield None, groups[0], groups[0]
    for typed in groups[1:]:
        option, equals, value = typed[0].partition("=")
        yield option, [*([value] if equals else []), *typed[1:]], typed


def _parts(words: Sequence[str]) -> list[str]:
    return [part.strip() for word in words for part in word.split(",") if part.strip()]
