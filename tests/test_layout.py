"""The one-way rule: what lies further right may know what lies further left, and never the other way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flexgs_lightning"
COLUMNS = (
    ("errors",),
    ("records",),
    ("files | signals", "jit", "processes", "images", "settings", "ply_container", "zip_archives"),
    ("cameras", "splats", "metrics"),
    ("data", "rendering", "model"),
    ("codec", "teacher"),
    ("training", "deploy"),
    ("evaluation | demo",),
    ("lightning_cli", "cli"),
)
"""From left to right. Rooms of one column know nothing of each other; `|` joins what counts as one room."""
ROOMS = {
    name: (column, group)
    for column, groups in enumerate(COLUMNS)
    for group in groups
    for name in group.split(" | ")
}
"""Column and room of each module or package directly below the package."""
LAST = len(COLUMNS) - 1


def room_of(path: Path) -> str:
    """First part of a file's place in the package, without the ending."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str, module: str) -> set[str]:
    """Rooms of this package that a module imports anywhere: at its top, in functions, for types only."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.rsplit(".", node.level)[0] + "." if node.level else ""
            names |= {f"{package}{node.module or ''}".rstrip(".") + f".{alias.name}" for alias in node.names}
    ours = (name.split(".") for name in names if name.startswith("flexgs_lightning."))
    return {parts[1] for parts in ours if parts[1] in ROOMS}


def allowed(importer: str, imported: str) -> bool:
    """Whether the one room may know the other."""
    (here, own), (there, other) = ROOMS[importer], ROOMS[imported]
    return there < here or own == other or here == there == LAST


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_module_has_a_room() -> None:
    assert {room_of(path) for path in sources()} <= set(ROOMS)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_imports_from_its_right(path: Path) -> None:
    module = "flexgs_lightning." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    wrong = {room for room in imported_rooms(path.read_text(), module) if not allowed(room_of(path), room)}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import flexgs_lightning.training.module", {"training"}),
        ("from flexgs_lightning import splats, deploy", {"splats", "deploy"}),
        ("def f():\n    from flexgs_lightning.cli import main", {"cli"}),
        (
            "if TYPE_CHECKING:\n    from flexgs_lightning.data import capture",
            {"data"},
        ),
        ("from ..training import module", {"training"}),
        ("from . import surgery", {"model"}),
        ("import torch, lightning", set()),
    ],
)
def test_no_import_escapes(source: str, found: set[str]) -> None:
    """The reader of imports itself, for a module ``flexgs_lightning.model.scene``."""
    assert imported_rooms(source, "flexgs_lightning.model.scene") == found


def test_pycolmap_comes_from_one_place() -> None:
    """``data.colmap_library`` keeps its logging library from taking SIGTERM over."""
    direct = [path for path in sources() if re.search(r"^\s*(import|from) pycolmap", path.read_text(), re.M)]
    assert [path.name for path in direct] == ["colmap_library.py"], (
        "from flexgs_lightning.data.colmap_library"
    )


def test_the_rule_is_that_of_the_columns() -> None:
    assert allowed("training", "model")
    assert allowed("demo", "evaluation")
    assert not allowed("model", "training")
    assert not allowed("deploy", "training")
    assert not allowed("data", "rendering")
    assert not allowed("evaluation", "cli")
    assert not allowed("cameras", "splats")
