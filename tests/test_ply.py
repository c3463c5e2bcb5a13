"""The PLY file is the model: exact round trips, files of other programs, and bad files one by one."""

import errno
import struct
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.deploy.formats import ply
from flexgs_lightning.deploy.formats.ply import ply_bytes, read_ply, write_ply
from flexgs_lightning.errors import InputError
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.splats import SH_C0, Splats

SH_C1 = 0.4886025119029199
NAMES = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
NAMES += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def trained_like(count: int, degree: int = 3, seed: int = 0) -> Splats:
    """Activations of float32 parameters, as a model's are."""
    g = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(count, 3, generator=g),
        quats=torch.randn(count, 4, generator=g),
        scales=(torch.rand(count, 3, generator=g) * 6 - 5).exp(),
        opacities=(torch.randn(count, generator=g) * 3).sigmoid(),
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=g) * 0.3,
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).abs() / expected.double()).max().item()


# -- round trips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip_of_a_model_is_exact_to_a_few_units_in_the_last_place(tmp_path: Path, degree: int) -> None:
    splats = trained_like(20_011, degree)  # no multiple of the chunk
    write_ply(splats, tmp_path / "scene.ply")
    read = read_ply(tmp_path / "scene.ply")
    for name in ("means", "quats", "sh"):
        assert torch.equal(getattr(read, name), getattr(splats, name)), name
    assert relative_error(read.scales, splats.scales) <= 2.5e-7
    assert relative_error(read.opacities, splats.opacities) <= 2.5e-7
    assert (read.scales == splats.scales).float().mean() > 0.99


def test_round_trip_of_any_values_is_within_the_stated_tolerance(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    count = 100_000
    scales = 10.0 ** (torch.rand(count, 3, generator=g, dtype=torch.float64) * 12 - 6)
    opacities = torch.rand(count, generator=g).clamp_min(1 / 255)
    splats = Splats(
        torch.zeros(count, 3), torch.ones(count, 4), scales.float(), opacities, torch.zeros(count, 1, 3)
    )
    write_ply(splats, tmp_path / "scene.ply")
    read = read_ply(tmp_path / "scene.ply")
    assert relative_error(read.scales, splats.scales) <= 6e-7
    assert relative_error(read.opacities, splats.opacities) <= 6e-7


def test_extreme_opacities_and_scales_stay_finite_and_drawable(tmp_path: Path) -> None:
    splats = trained_like(4)
    splats.opacities[:] = torch.tensor([0.0, 1.0, 1e-38, 1 - 2**-24])
    splats.scales[:] = torch.tensor([0.0, 1e-30, 1e30])
    write_ply(splats, tmp_path / "scene.ply")
    vertex = plyfile.PlyData.read(tmp_path / "scene.ply")["vertex"]
    assert np.isfinite([vertex[name] for name in ("opacity", "scale_0", "scale_1", "scale_2")]).all()
    read = read_ply(tmp_path / "scene.ply")
    assert ((read.opacities > 0) & (read.opacities < 1)).all()
    assert (read.scales > 0).all()
    torch.testing.assert_close(read.opacities, splats.opacities, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(read.scales, splats.scales, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(("degree", "per_gaussian"), [(0, 68), (1, 104), (2, 164), (3, 248)])
def test_size_is_known_before_writing(tmp_path: Path, degree: int, per_gaussian: int) -> None:
    write_ply(trained_like(123, degree), tmp_path / "scene.ply")
    assert (tmp_path / "scene.ply").stat().st_size == ply_bytes(123, degree)
    assert ply_bytes(124, degree) - ply_bytes(123, degree) == per_gaussian


def test_layout_is_the_reference_implementations(tmp_path: Path) -> None:
    """Read back by another program: names, their order, raw values, f_rest channel by channel."""
    splats = trained_like(50)
    write_ply(splats, tmp_path / "scene.ply")
    data = plyfile.PlyData.read(tmp_path / "scene.ply")
    assert data.byte_order == "<"
    assert [element.name for element in data.elements] == ["vertex"]
    vertex = data["vertex"]
    rest = [f"f_rest_{i}" for i in range(45)]
    expected = ["x", "y", "z", "nx", "ny", "nz", *NAMES[3:6], *rest, *NAMES[6:]]
    assert [p.name for p in vertex.properties] == expected
    assert {p.val_dtype for p in vertex.properties} == {"f4"}
    read = {name: torch.from_numpy(np.array(vertex[name])) for name in expected}
    assert torch.equal(read["z"], splats.means[:, 2])
    assert not read["ny"].any()
    assert torch.equal(read["f_dc_1"], splats.sh[:, 0, 1])
    for index, (basis, channel) in {0: (1, 0), 14: (15, 0), 15: (1, 1), 31: (2, 2), 44: (15, 2)}.items():
        assert torch.equal(read[f"f_rest_{index}"], splats.sh[:, basis, channel])
    assert torch.equal(read["rot_0"], splats.quats[:, 0])
    torch.testing.assert_close(read["scale_2"], splats.scales[:, 2].log())
    torch.testing.assert_close(read["opacity"], splats.opacities.logit(), rtol=1e-5, atol=1e-5)


# -- files of other programs ---------------------------------------------------------------------------


def by_hand(
    path: Path,
    rows: list[dict[str, float]],
    encoding: str = "binary_little_endian",
    kind: str = "float",
    count: int | None = None,
    line_end: str = "\n",
) -> Path:
    """A PLY file packed value by value, with properties in the order of the first row."""
    header = ["ply", f"format {encoding} 1.0", "comment by hand", f"element vertex {count or len(rows)}"]
    header += [f"property {kind} {name}" for name in rows[0]]
    content = (line_end.join([*header, "end_header"]) + line_end).encode()
    for row in rows:
        if encoding == "ascii":
            content += (" ".join(repr(value) for value in row.values()) + line_end).encode()
        else:
            code = (">" if "big" in encoding else "<") + {"float": "f", "double": "d"}[kind] * len(row)
            content += struct.pack(code, *row.values())
    path.write_bytes(content)
    return path


def gaussian(**values: float) -> dict[str, float]:
    row = dict.fromkeys(NAMES, 0.0) | {"rot_0": 1.0}
    return row | values


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("encoding", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_reads_every_encoding_in_any_order(tmp_path: Path, encoding: str, kind: str) -> None:
    rows = []
    for i in range(3):
        values = {
            "x": 0.5 + i,
            "y": -2.0,
            "z": 0.25,
            "opacity": 1.5,
            "scale_1": -3.0,
            "rot_3": 2.0,
            "f_dc_2": 0.125,
        }
        row = gaussian(**values) | {f"f_rest_{k}": float(k + i) for k in range(9)} | {"confidence": 7.0}
        rows.append(dict(sorted(row.items(), key=lambda item: item[0][::-1])))
    read = read_ply(
        by_hand(tmp_path / "other.ply", rows, encoding, kind, line_end="\r\n" if kind == "double" else "\n")
    )
    assert len(read) == 3
    assert read.sh_degree == 1
    assert read.means.tolist() == [[0.5 + i, -2.0, 0.25] for i in range(3)]
    assert read.quats[1].tolist() == [1.0, 0.0, 0.0, 2.0]
    assert read.opacities[2].item() == pytest.approx(1 / (1 + np.exp(-1.5)), rel=2e-7)
    assert read.scales[0].tolist() == pytest.approx([1.0, np.exp(-3.0), 1.0], rel=2e-7)
    assert read.sh[0, 0].tolist() == [0.0, 0.0, 0.125]
    assert read.sh[1, 1:, 1].tolist() == [4.0, 5.0, 6.0]  # green follows red


def test_reads_past_other_elements(tmp_path: Path) -> None:
    header = (
        "ply\nformat binary_little_endian 1.0\nelement camera 2\nproperty uchar id\nproperty double fov\n"
    )
    header += "element vertex 1\n" + "".join(f"property float {name}\n" for name in NAMES)
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    content = header.encode() + struct.pack("<BdBd", 1, 2.0, 3, 4.0)
    content += struct.pack("<14f", *gaussian(x=9.0).values()) + struct.pack("<Biii", 3, 0, 0, 0)
    (tmp_path / "mesh.ply").write_bytes(content)
    assert read_ply(tmp_path / "mesh.ply").means.tolist() == [[9.0, 0.0, 0.0]]


def axis_camera(axis: int, side: float) -> Cameras:
    """A camera 4 units from the origin on an axis, looking at the origin."""
    forward = torch.zeros(3)
    forward[axis] = -side
    right = torch.roll(forward, 1)
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat[2, 3] = 4.0
    K = torch.tensor([[40.0, 0, 10.5], [0, 40.0, 10.5], [0, 0, 1]])
    return Cameras(viewmat[None], K[None], 21, 21)


def test_spherical_harmonics_mean_what_other_viewers_take_them_for(tmp_path: Path) -> None:
    """Red varies along z, green along x, blue along y: -C1 y, C1 z, -C1 x are the degree-1 basis."""
    rest = {f"f_rest_{i}": 0.0 for i in range(9)} | {"f_rest_1": 0.6, "f_rest_5": 0.5, "f_rest_6": 0.4}
    row = gaussian(f_dc_0=0.2, f_dc_1=-0.3, opacity=4.0, scale_0=-1.0, scale_1=-1.0, scale_2=-1.0)
    splats = read_ply(by_hand(tmp_path / "one.ply", [row | rest]))
    for axis in range(3):
        for side in (-1.0, 1.0):
            direction = [0.0, 0.0, 0.0]
            direction[axis] = -side  # from the camera to the Gaussian
            x, y, z = direction
            drawn = rasterize(splats, axis_camera(axis, side))
            colour = drawn.image[0, 10, 10] / drawn.alpha[0, 10, 10]
            expected = [
                0.5 + SH_C0 * 0.2 + SH_C1 * z * 0.6,
                0.5 - SH_C0 * 0.3 - SH_C1 * x * 0.5,
                0.5 - SH_C1 * y * 0.4,
            ]
            assert colour.tolist() == pytest.approx(expected, abs=1e-5), (axis, side)


@pytest.mark.parametrize("degree", [0, 3])
def test_rendering_the_file_equals_the_models_own_render(tmp_path: Path, degree: int) -> None:
    splats = trained_like(3_000, degree, seed=3)
    camera = axis_camera(2, -1.0)
    camera = camera.resized(126, 84)
    write_ply(splats, tmp_path / "scene.ply")
    own, read = (
        rasterize(s, camera, background=torch.ones(3)) for s in (splats, read_ply(tmp_path / "scene.ply"))
    )
    assert own.alpha.mean() > 0.5  # something is there
    torch.testing.assert_close(read.image, own.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(read.alpha, own.alpha, rtol=0, atol=1e-6)


# -- bad input -----------------------------------------------------------------------------------------


def truncated(path: Path, keep: int) -> Path:
    path.write_bytes(path.read_bytes()[:keep])
    return path


def without(name: str) -> dict[str, float]:
    return {key: value for key, value in gaussian().items() if key != name}


@pytest.mark.parametrize("name", NAMES)
def test_missing_field_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"missing.*{name}"):
        read_ply(by_hand(tmp_path / "bad.ply", [without(name)]))


@pytest.mark.parametrize("count", [1, 3, 8, 12, 46, 72])
def test_number_of_f_rest_that_is_no_degree(tmp_path: Path, count: int) -> None:
    row = gaussian() | {f"f_rest_{i}": 0.0 for i in range(count)}
    with pytest.raises(InputError, match=f"{count} properties f_rest.*0, 9, 24 or 45"):
        read_ply(by_hand(tmp_path / "bad.ply", [row]))


def test_gap_in_f_rest_is_named(tmp_path: Path) -> None:
    row = gaussian() | {f"f_rest_{i}": 0.0 for i in (*range(8), 11)}
    with pytest.raises(InputError, match=r"missing.*f_rest_8"):
        read_ply(by_hand(tmp_path / "bad.ply", [row]))


@pytest.mark.parametrize("encoding", ["binary_little_endian", "ascii"])
@pytest.mark.parametrize(("name", "value"), [("x", np.nan), ("f_dc_1", np.inf), ("scale_1", -np.inf)])
def test_values_that_are_not_finite_are_named_and_counted(
    tmp_path: Path, encoding: str, name: str, value: float
) -> None:
    rows = [gaussian(), gaussian(**{name: float(value)}), gaussian(**{name: float(value)})]
    with pytest.raises(InputError, match=rf"{name}: 2 values are NaN or infinite \(3 Gaussians\)"):
        read_ply(by_hand(tmp_path / "bad.ply", rows, encoding))


def test_double_beyond_float32(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="y: 1 values are NaN or infinite"):
        read_ply(by_hand(tmp_path / "bad.ply", [gaussian(y=1e300)], kind="double"))


def test_scale_beyond_float32(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scale.*beyond exp"):
        read_ply(by_hand(tmp_path / "bad.ply", [gaussian(scale_0=100.0)]))


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e25])
def test_rotation_that_cannot_be_normalised(tmp_path: Path, size: float) -> None:
    with pytest.raises(InputError, match=r"rot.*1 values are quaternions that cannot be normalised"):
        read_ply(by_hand(tmp_path / "bad.ply", [gaussian(), gaussian(rot_0=size)]))


@pytest.mark.parametrize("encoding", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_fewer_records_than_stated(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match="states 5 records of 'vertex', the file holds only 2"):
        read_ply(by_hand(tmp_path / "bad.ply", [gaussian()] * 2, encoding, count=5))


@pytest.mark.parametrize("encoding", ["binary_little_endian", "ascii"])
def test_more_records_than_stated(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match="states 2 records of 'vertex', the file holds at least 3"):
        read_ply(by_hand(tmp_path / "bad.ply", [gaussian()] * 3, encoding, count=2))


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = by_hand(tmp_path / "whole.ply", [gaussian()] * 3).read_bytes()
    for keep in range(0, len(whole), 7):
        (tmp_path / "cut.ply").write_bytes(whole[:keep])
        with pytest.raises(InputError, match=r"cut\.ply"):
            read_ply(tmp_path / "cut.ply")


def test_absurd_count_takes_no_memory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds only 1"):
        read_ply(by_hand(tmp_path / "bad.ply", [gaussian()], count=10**18))


HEADER = "format ascii 1.0\nelement vertex 1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a PLY file"),
        ("\x89PNG\r\n", "not a PLY file"),
        ("plywood\n", "not a PLY file"),
        ("ply\n" + HEADER, "header does not end"),
        ("ply\nformat zip 1.0\n", "unknown PLY header line 'format zip 1.0'"),
        ("ply\nelement vertex 1\nproperty float x\nend_header\n0\n", "states no format"),
        ("ply\n" + HEADER + "property float x\nproperty float x\nend_header\n", "'x' twice"),
        ("ply\n" + HEADER + "property quaternion q\nend_header\n", "unknown PLY header line"),
        ("ply\nformat ascii 1.0\nelement vertex -1\nend_header\n", "unknown PLY header line"),
        ("ply\nformat ascii 1.0\nproperty float x\nend_header\n", "unknown PLY header line"),
        ("ply\nformat ascii 1.0\nelement point 1\nproperty float x\nend_header\n0\n", "no element 'vertex'"),
        ("ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n", "is empty"),
        (
            "ply\n" + HEADER + "property list uchar float x\nproperty int y\nend_header\n1 0 0\n",
            "list properties",
        ),
        ("ply\n" + HEADER + "property float x\nend_header\nhello\n", "cannot be read as text"),
        ("ply\n" + HEADER + "property uint packed_position\nend_header\n0\n", "compressed PLY"),
        (
            "ply\n" + HEADER + "property float x\nproperty float y\nend_header\n0 0\n",
            "not a 3DGS file.*z, f_dc_0",
        ),
    ],
)
def test_bad_header_or_text(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.ply").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=rf"bad\.ply.*{message}"):
        read_ply(tmp_path / "bad.ply")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.ply: could not be read"):
        read_ply(tmp_path / "none.ply")
    with pytest.raises(InputError, match="could not be read"):
        read_ply(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("means", np.nan, "means: 3 values are NaN"),
        ("sh", -np.inf, "sh: 48 values are NaN or infinite"),
        ("scales", -1.0, "scales: 3 values are negative"),
        ("opacities", 1.5, r"opacities: 1 values are outside \[0, 1\]"),
        ("opacities", -0.5, r"opacities: 1 values are outside \[0, 1\]"),
        ("quats", 0.0, "quats: 1 values are quaternions that cannot be normalised"),
    ],
)
def test_refuses_to_write_what_cannot_be_drawn(
    tmp_path: Path, field: str, value: float, message: str
) -> None:
    splats = trained_like(10)
    getattr(splats, field)[4] = value
    with pytest.raises(InputError, match=message):
        write_ply(splats, tmp_path / "scene.ply")
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Gaussians"):
        write_ply(trained_like(3)[:0], tmp_path / "scene.ply")


def test_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scene.ply"
    write_ply(trained_like(5), path)
    before = path.read_bytes()
    encode, calls = ply._encode, []

    def encode_until_full(splats: Splats) -> bytes:
        calls.append(len(splats))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(splats)

    monkeypatch.setattr(ply, "_encode", encode_until_full)
    with pytest.raises(InputError, match=r"scene\.ply: could not be written \(No space left on device\)"):
        write_ply(trained_like(30_000), path)
    assert len(calls) == 2  # the first chunk had gone to the disk
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
