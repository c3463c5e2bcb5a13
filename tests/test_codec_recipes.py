"""Files of other systems' recipes: what is read back is what their rounding says, and damage is named."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from splat_files import scene

from flexgs_lightning.codec.recipes.columns import columns_of, morton_order
from flexgs_lightning.codec.recipes.grid import grid_order, grid_shape
from flexgs_lightning.codec.recipes.halves import read_halves, rounded, write_halves
from flexgs_lightning.codec.recipes.images import Recipe, read_images, write_images
from flexgs_lightning.codec.recipes.package import META, bytes_by_attribute
from flexgs_lightning.errors import InputError
from flexgs_lightning.model.compression.quantization import RANGES
from flexgs_lightning.model.gaussians import Gaussians
from flexgs_lightning.splats import Splats

Way = tuple[Callable[[Splats, Path], None], Callable[[Path], Splats]]
RECIPES = {
    "png": Recipe(),
    "ans": Recipe(coder="ans"),
    "morton": Recipe(sorting="morton"),
    "trained": Recipe(ranges="trained"),
    "five bits": Recipe(bits=5, ranges="trained", coder="ans"),
}
WAYS: dict[str, Way] = {
    "halves": (write_halves, read_halves),
    **{
        name: (lambda splats, path, recipe=recipe: write_images(splats, path, recipe), read_images)  # type: ignore[misc]
        for name, recipe in RECIPES.items()
    },
}


def columns(splats: Splats) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in columns_of(splats).items()}


def paired(source: Splats, read: Splats) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns of both, row by row: files have another order."""
    _, row = cKDTree(read.means.numpy()).query(source.means.numpy())
    assert len(np.unique(row)) == len(source)
    return columns(source), {name: values[row] for name, values in columns(read).items()}


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_halves_are_what_training_saw(tmp_path: Path, degree: int) -> None:
    """``rounded`` and the file agree, but for what sigmoid and logit cost and the quaternions' length."""
    splats = scene(300, degree)
    write_halves(splats, tmp_path / "a")
    found = columns(read_halves(tmp_path / "a"))
    raw = {name: values.detach() for name, values in Gaussians.from_splats(splats).params.items()}
    order = morton_order(splats.means.numpy())
    for name, values in rounded(raw).items():
        np.testing.assert_allclose(found[name], values.numpy()[order], rtol=2e-3 if name == "quats" else 2e-4)


def test_rounding_passes_gradients_on() -> None:
    raw = {
        name: values.detach().requires_grad_()
        for name, values in Gaussians.from_splats(scene(50, 2)).params.items()
    }
    for name, values in rounded(raw).items():
        values.sum().backward()
        assert name == "quats" or raw["sh" if name.startswith("sh") else name].grad is not None
    assert torch.equal(raw["scales"].grad, torch.ones(50, 3))


@pytest.mark.parametrize("name", list(RECIPES))
def test_images_keep_within_half_a_step(tmp_path: Path, name: str) -> None:
    splats, recipe = scene(500, 2), RECIPES[name]
    write_images(splats, tmp_path / "a", recipe)
    before, after = paired(splats, read_images(tmp_path / "a"))
    for attribute in ("scales", "quats", "opacities", "sh0"):
        low, high = (before[attribute].min(axis=0), before[attribute].max(axis=0))
        if recipe.ranges == "trained":
            low, high = RANGES[attribute]
        step = np.max((high - low) / recipe.levels)
        inside = np.clip(before[attribute], low, high)
        if attribute == "quats":  # read back at length 1
            cosine = np.abs((before["quats"] * after["quats"]).sum(axis=1))
            assert (cosine > 1 - 2 * step**2).all()
        else:
            assert np.abs(inside - after[attribute]).max() <= 0.501 * step, attribute
    extent = np.ptp(np.sign(before["means"]) * np.log1p(np.abs(before["means"])))
    factor = 1 + np.abs(before["means"]).max()
    assert np.abs(before["means"] - after["means"]).max() < 0.51 * extent / 65535 * factor
    assert (
        np.abs(before["shN"] - after["shN"]).max() <= 0.51 * np.ptp(before["shN"]) / 255
    )  # a palette of all


def test_who_has_no_colour_gets_none_and_others_keep_theirs(tmp_path: Path) -> None:
    splats = scene(200, 1)
    colored = np.arange(200) % 3 == 0
    write_images(splats, tmp_path / "a", Recipe(), colored)
    before, after = paired(splats, read_images(tmp_path / "a"))
    assert not after["shN"][~colored].any()
    assert np.abs(before["shN"] - after["shN"])[colored].max() < 0.02 * np.ptp(before["shN"])
    write_images(splats, tmp_path / "b", Recipe(), np.zeros(200, bool))
    assert not read_images(tmp_path / "b").sh[:, 1:].any()


def test_fewer_bits_and_a_smaller_palette_make_smaller_files(tmp_path: Path) -> None:
    splats = scene(2000, 3)

    def size(recipe: Recipe) -> int:
        write_images(splats, tmp_path / "a", recipe)
        return (tmp_path / "a").stat().st_size

    full = size(Recipe(sorting="morton", entries=64))
    assert size(Recipe(bits=6, sorting="morton", entries=64)) < 0.9 * full
    assert size(Recipe(sorting="morton", entries=1024)) > 1.2 * full


def test_the_sorted_grid_is_smoother_than_the_curve() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    means = generator.random((1500, 3))
    features = np.concatenate([means, generator.random((1500, 2))], axis=1)
    height, width = grid_shape(1500)

    def roughness(sorting: str) -> float:
        order = grid_order(means, features, sorting)  # type: ignore[arg-type]
        assert np.array_equal(np.sort(order), np.arange(1500))
        image = features[order[: (height - 1) * width]].reshape(height - 1, width, -1)
        return float(np.square(np.diff(image, axis=0)).mean() + np.square(np.diff(image, axis=1)).mean())

    assert roughness("grid") < 0.7 * roughness("morton")


@pytest.mark.parametrize("name", list(WAYS))
def test_the_same_scene_gives_the_same_bytes_and_they_add_up(tmp_path: Path, name: str) -> None:
    write, _ = WAYS[name]
    for file in ("a", "b"):
        write(scene(100, 1), tmp_path / file)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    sizes = bytes_by_attribute(tmp_path / "a")
    assert sum(sizes.values()) == (tmp_path / "a").stat().st_size
    assert {"means", "quats", "scales", "opacities", "sh0", "shN", "frame"} == set(sizes)


def failure(read: Callable[[Path], Splats], path: Path) -> str | None:
    """Message of the ``InputError``, if there is one."""
    try:
        read(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["halves", "png", "ans"])
def test_damaged_files_are_refused_in_one_message(tmp_path: Path, name: str) -> None:
    """Or read: a bit of a name that nobody asks for harms nobody. Never anything but ``InputError``."""
    write, read = WAYS[name]
    write(scene(60, 1), tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    generator = np.random.Generator(np.random.PCG64(1))
    refused = 0
    for trial in range(60):
        broken = bytearray(data[: generator.integers(1, len(data))] if trial % 3 == 0 else data)
        broken[generator.integers(len(broken))] ^= 1 << int(generator.integers(8))
        (tmp_path / "broken").write_bytes(broken)
        error = failure(read, tmp_path / "broken")
        refused += error is not None
        assert error is None or str(tmp_path / "broken") in error
    assert refused > 50


def edited(source: Path, target: Path, **changes: object) -> Path:
    """The file with other facts, its checksums right."""
    with zipfile.ZipFile(source) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    members[META] = json.dumps(json.loads(members[META]) | changes).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


@pytest.mark.parametrize("name", ["halves", "png", "ans"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 10**9}, "count"),
        ({"count": 70}, "expected"),
        ({"sh_degree": 2}, "expected"),
        ({"sh_degree": 7}, "sh_degree"),
        ({"scales": {}}, "scales"),
        ({"recipe": "cake"}, "cake"),
    ],
)
def test_facts_that_lie_are_refused(
    tmp_path: Path, name: str, changes: dict[str, object], message: str
) -> None:
    write, read = WAYS[name]
    write(scene(60, 1), tmp_path / "whole")
    with pytest.raises(InputError, match=message):
        read(edited(tmp_path / "whole", tmp_path / "lies", **changes))


def test_numbers_that_only_activation_makes_infinite_are_refused(tmp_path: Path) -> None:
    write_images(scene(60, 1), tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as archive:
        scales = json.loads(archive.read(META))["scales"]
    scales["scales"][0] = [1000.0, 0.1]  # logarithms
    with pytest.raises(InputError, match="scales: NaN or infinity"):
        read_images(edited(tmp_path / "whole", tmp_path / "lies", scales=scales))
