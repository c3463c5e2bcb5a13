"""Our files as ``gsply``, software that is not ours, reads them; and its files as we read them."""

from pathlib import Path

import gsply
import numpy as np
import pytest
import torch
from gsply.sog_reader import sogread
from splat_files import angles, matched, scene
from test_formats import check_bounds

from flexgs_lightning.deploy.formats.registry import FORMATS, read_splats, write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.splats import Splats

gsply.use_backend("auto")  # its C++ where there is a wheel with it: numba would compile for a minute

READERS = {
    "ply": gsply.plyread,
    "compressed-ply": gsply.plyread,
    "spz": gsply.read_spz,
    "spz3": gsply.read_spz,
    "sog": sogread,
}
RUB = np.array([1.0, -1.0, -1.0])
"""gsply leaves SPZ files in their own frame: y up, z backward."""


def opened(name: str, path: Path) -> Splats:
    """What gsply reads, with its activations undone and in the capture's frame."""
    data = READERS[name](path)
    rest = np.zeros((len(data.means), 0, 3)) if data.shN is None else data.shN.reshape(len(data.means), -1, 3)
    means, quats, sh = data.means, data.quats, np.concatenate([data.sh0[:, None], rest], axis=1)
    if name.startswith("spz"):
        means, quats = means * RUB, quats * np.array([1.0, *RUB])
        sh = sh * _parity()[: sh.shape[1], None]
    arrays = (means, quats, np.exp(data.scales), 1 / (1 + np.exp(-data.opacities)), sh)
    return Splats(*(torch.from_numpy(np.asarray(array, np.float32)) for array in arrays))


def _parity() -> np.ndarray:
    """Signs of the 16 harmonics under (x, -y, -z), from their definition: one direction, both ways."""
    x, y, z = 0.3, 0.5, 0.8

    def basis(x: float, y: float, z: float) -> np.ndarray:
        xx, yy, zz = x * x, y * y, z * z
        second = [x * y, y * z, 2 * zz - xx - yy, x * z, xx - yy]
        third = [y * (3 * xx - yy), x * y * z, y * (4 * zz - xx - yy), z * (2 * zz - 3 * xx - 3 * yy)]
        third += [x * (4 * zz - xx - yy), z * (xx - yy), x * (xx - 3 * yy)]
        return np.array([1, y, z, x, *second, *third])

    return np.sign(basis(x, -y, -z) / basis(x, y, z))


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("name", READERS)
def test_gsply_reads_what_we_write(tmp_path: Path, name: str, degree: int) -> None:
    splats = scene(700, degree)
    path = tmp_path / f"scene{FORMATS[name].suffix}"
    write_splats(SplatFile(splats), path, name)
    theirs = opened(name, path)
    if name == "ply":
        torch.testing.assert_close(theirs.means, splats.means, rtol=0, atol=0)
    check_bounds(name, splats, matched(theirs, splats))
    ours = matched(read_splats(path).splats, theirs)
    torch.testing.assert_close(ours.scales, theirs.scales, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.sh, theirs.sh, rtol=0, atol=2e-5)
    assert angles(ours, theirs).max() < 2e-3


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("name", ["ply", "spz", "spz3"])
def test_we_read_what_gsply_writes(tmp_path: Path, name: str, degree: int) -> None:
    splats = scene(700, degree)
    path = tmp_path / f"scene{FORMATS[name].suffix}"
    sh = splats.sh.numpy()
    data = gsply.GSData(
        means=splats.means.numpy(),
        quats=splats.quats.numpy(),
        scales=splats.scales.log().numpy(),
        opacities=splats.opacities.logit().numpy(),
        sh0=sh[:, 0],
        shN=sh[:, 1:] if degree else None,
    )
    if name.startswith("spz"):
        gsply.write_spz(path, data, version=4 if name == "spz" else 3)
    else:
        gsply.plywrite(path, data)
    theirs, ours = opened(name, path), read_splats(path).splats
    assert ours.sh_degree == degree
    ours = matched(ours, theirs)
    torch.testing.assert_close(ours.means, theirs.means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.scales, theirs.scales, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.sh, theirs.sh, rtol=0, atol=2e-5)
    assert angles(ours, theirs).max() < 2e-3
