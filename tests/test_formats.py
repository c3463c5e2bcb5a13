"""Every splat format: round trips within what its quantisation states, flags, sizes and names."""

import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.cluster
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from small_scene import around, ball
from splat_files import SINGLE_FILES, angles, matched, scene

from flexgs_lightning.codec.palette import codebook, palette
from flexgs_lightning.deploy.formats.frames import half_turn
from flexgs_lightning.deploy.formats.registry import FORMATS, find_format, read_splats, write_splats
from flexgs_lightning.deploy.formats.splat_file import SplatFile
from flexgs_lightning.deploy.formats.streamed_sog import write_streamed_sog
from flexgs_lightning.deploy.render import draw
from flexgs_lightning.errors import InputError
from flexgs_lightning.splats import SH_C0, Splats

HALF = 0.5 + 1e-3
"""Half a step, and a thousandth for float32."""


def round_trip(splats: Splats, folder: Path, name: str, antialiased: bool = False) -> SplatFile:
    path = folder / f"scene{FORMATS[name].suffix}"
    write_splats(SplatFile(splats, antialiased), path, name)
    return read_splats(path)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("name", SINGLE_FILES)
def test_each_format_keeps_the_scene_and_says_what_it_may_lose(
    tmp_path: Path, name: str, degree: int
) -> None:
    splats = scene(1_000, degree)
    found = round_trip(splats, tmp_path, name)
    read = matched(found.splats, splats)
    assert not found.antialiased
    assert read.sh_degree == (0 if name == "splat" else degree)
    check_bounds(name, splats, read)


def check_bounds(name: str, written: Splats, read: Splats) -> None:
    steps = BOUNDS[name](written)
    kept = written.with_sh_degree(read.sh_degree)
    errors = {
        "means": (read.means - kept.means).abs().amax(dim=0),
        "log_scales": (read.scales.log() - kept.scales.log()).abs().max(),
        "opacities": (read.opacities - kept.opacities).abs().max(),
        "f_dc": (read.sh[:, 0] - kept.sh[:, 0]).abs().max(),
        "angles": angles(read, kept).max(),
    }
    if read.sh_degree:
        errors["sh"] = (read.sh[:, 1:] - kept.sh[:, 1:]).abs().amax(dim=(0, 2)).max()
    for key, error in errors.items():
        assert (error <= torch.as_tensor(steps[key])).all(), (
            f"{name}: {key} off by {error}, at most {steps[key]}"
        )


def _exact(splats: Splats) -> dict[str, float]:
    return {"means": 0, "log_scales": 1e-6, "opacities": 6e-7, "f_dc": 0, "angles": 1e-3, "sh": 0}


def _compressed_ply(splats: Splats) -> dict[str, object]:
    extent = splats.means.amax(dim=0) - splats.means.amin(dim=0)
    log = splats.scales.log()
    colors = splats.sh[:, 0]
    return {
        "means": extent * HALF / torch.tensor([2047, 1023, 2047]),
        "log_scales": float((log.amax(dim=0) - log.amin(dim=0)).max()) * HALF / 1023,
        "opacities": HALF / 255,
        "f_dc": float((colors.amax(dim=0) - colors.amin(dim=0)).max()) * HALF / 255,
        "angles": _angle(np.sqrt(2) / 1023),
        "sh": 8 / 256 * HALF,
    }


def _splat(splats: Splats) -> dict[str, float]:
    return {
        "means": 0,
        "log_scales": 1e-6,
        "opacities": HALF / 255,
        "f_dc": HALF / 255 / SH_C0,
        "angles": _angle(1 / 128),
    }


def _spz(splats: Splats) -> dict[str, float]:
    return {
        "means": HALF / 4096,
        "log_scales": HALF / 16,
        "opacities": HALF / 255,
        "f_dc": HALF / 255 / 0.15,
        "angles": _angle(np.sqrt(0.5) / 511),
        "sh": (HALF * 16 + 0.5) / 128,
    }


def _angle(step: float) -> float:
    """Radians for half a step in each of four components: twice the distance of unit quaternions, and slack
    for the largest component, which moves by up to sqrt 3 of what the others do."""
    return 4 * step


def _glb(splats: Splats) -> dict[str, float]:
    return _exact(splats) | {"opacities": 0}


def _sog(splats: Splats) -> dict[str, object]:
    """Positions by their formula; codebooks' errors are in a test of their own, these are four even steps."""
    logs = splats.means.abs().log1p() * splats.means.sign()
    extent = logs.amax(dim=0) - logs.amin(dim=0)
    further = splats.sh[:, 1:] if splats.sh_degree else splats.sh
    spread = [float(each.max() - each.min()) for each in (splats.scales.log(), splats.sh[:, 0], further)]
    return {
        "means": extent * HALF / 65535 * (1 + splats.means.abs().amax(dim=0)),
        "log_scales": spread[0] * 4 / 256,
        "opacities": HALF / 255,
        "f_dc": spread[1] * 4 / 256,
        "angles": _angle(np.sqrt(2) / 255),
        "sh": spread[2] * 4 / 256,
    }


BOUNDS = {
    "glb": _glb,
    "sog": _sog,
    "ply": _exact,
    "compressed-ply": _compressed_ply,
    "splat": _splat,
    "spz": _spz,
    "spz3": _spz,
}


@pytest.mark.parametrize("name", [name for name in SINGLE_FILES if name != "splat"])
def test_the_antialiased_flag_is_written_and_read_back(tmp_path: Path, name: str) -> None:
    assert round_trip(scene(300), tmp_path, name, antialiased=True).antialiased
    assert not round_trip(scene(300), tmp_path, name, antialiased=False).antialiased


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if each.size])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 3])
def test_sizes_are_known_before_writing(tmp_path: Path, name: str, antialiased: bool, degree: int) -> None:
    for count in (1, 255, 256, 1_000):
        round_trip(scene(count, degree), tmp_path, name, antialiased)
        size = FORMATS[name].size
        assert size is not None
        found = (tmp_path / f"scene{FORMATS[name].suffix}").stat().st_size
        assert found == size(count, degree, antialiased), count


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_extremes_stay_drawable(tmp_path: Path, name: str) -> None:
    """What SPZ makes of a trained scene: opacities of 0 and 1; flat and single Gaussians; equal ones."""
    splats = scene(8)
    splats.opacities[:4] = torch.tensor([0.0, 1.0, 1e-38, 1 - 2**-24])
    splats.scales[4:6, 2] = 1e-30
    splats.means[6:8] = splats.means[5]
    for each in (splats, splats[:1], splats[5:8]):
        read = round_trip(each, tmp_path, name).splats
        assert len(read) == len(each)
        assert ((read.opacities > 0) & (read.opacities < 1)).all()
        assert (read.scales > 0).all()
        again = round_trip(read, tmp_path, name).splats
        assert len(again) == len(each)


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_what_cannot_be_drawn_is_refused_and_the_file_before_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"scene{FORMATS[name].suffix}"
    write_splats(SplatFile(scene(5)), path, name)
    before = path.read_bytes()
    for splats, message in (
        (scene(3)[:0], "no Gaussians"),
        (broken(scene(3)), "means: 1 values are NaN"),
    ):
        with pytest.raises(InputError, match=message):
            write_splats(SplatFile(splats), path, name)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def broken(splats: Splats) -> Splats:
    splats.means[1, 1] = float("nan")
    return splats


def test_suffixes_choose_the_format_and_names_override() -> None:
    assert find_format(Path("a.ply")).name == "ply"
    assert find_format(Path("a.compressed.ply")).name == "compressed-ply"
    assert find_format(Path("A.SPZ")).name == "spz"
    assert find_format(Path("a.spz"), "spz3").name == "spz3"
    with pytest.raises(InputError, match=r"a\.obj: expected the name of a splat file.*\.ply"):
        find_format(Path("a.obj"))
    with pytest.raises(InputError, match=r"ends in \.spz for spz3"):
        find_format(Path("a.ply"), "spz3")
    with pytest.raises(InputError, match=r"format: expected one of ply.*found 'usd'"):
        find_format(Path("a.ply"), "usd")


# -- SOG -----------------------------------------------------------------------------------------------


def test_a_codebook_is_nearly_as_good_as_the_best_quantiser_of_normal_values() -> None:
    """Panter and Dite (1951): the smallest mean squared error of many levels is sqrt(3) pi / (2 levels^2)."""
    values = np.random.default_rng(0).normal(size=(100_000, 3))
    codes, indices = codebook(values, emphasis=0)
    error = np.square(codes[indices] - values).mean()
    assert error <= 1.3 * np.sqrt(3) * np.pi / 2 / 256**2
    assert (np.diff(codes) >= 0).all()
    nearest = np.abs(values[:2_000, 0, None] - codes).argmin(axis=1)
    assert np.abs(codes[nearest] - values[:2_000, 0]).sum() == pytest.approx(
        np.abs(codes[indices[:2_000, 0]] - values[:2_000, 0]).sum()
    )


def test_few_values_are_kept_exactly() -> None:
    values = np.float32([[3.5, -1.0, 3.5], [2.0, -1.0, 7.25]])
    codes, indices = codebook(values)
    assert (codes[indices] == values).all()


def test_a_palette_is_nearly_as_good_as_plain_k_means() -> None:
    """Although it compares each vector with a few entries only; SciPy's compares all."""
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(600, 9, generator=g)
    vectors = centers[torch.randint(600, (6_000,), generator=g)] + 0.3 * torch.randn(6_000, 9, generator=g)
    entries, labels = palette(vectors, 1_024)
    error = (vectors - entries[labels]).square().sum().item()
    assert len(entries) == 1_024
    assert len(labels.unique()) == 1_024
    reference, of = scipy.cluster.vq.kmeans2(vectors.double().numpy(), 1_024, iter=10, minit="points", rng=0)
    assert error <= 1.15 * np.square(vectors.numpy() - reference[of]).sum()
    again, _ = palette(vectors, 1_024)
    assert torch.equal(again, entries)


def test_a_palette_of_vectors_that_repeat() -> None:
    """Few distinct ones are kept exactly; of many, those that occur often count as often."""
    g = torch.Generator().manual_seed(0)
    some = torch.randn(900, 9, generator=g)
    vectors = some[torch.randint(900, (20_000,), generator=g)]
    entries, labels = palette(vectors, 1_024)
    assert len(entries) == len(torch.unique(vectors, dim=0))
    assert torch.equal(entries[labels], vectors)
    vectors = torch.randn(30_000, 9, generator=g)
    vectors[torch.rand(30_000, generator=g) < 0.9] = 0
    vectors[:200] = 5 + 1e-6 * torch.randn(200, 9, generator=g)
    entries, labels = palette(vectors, 1_024)
    assert len(entries) == 1_024
    errors = (vectors - entries[labels]).square().sum(dim=1)
    assert errors[(vectors == 0).all(dim=1)].max() < 1e-8
    assert errors.sum() < 0.2 * vectors.square().sum()


def test_sog_keeps_each_value_to_the_nearest_of_its_codebook(tmp_path: Path) -> None:
    splats = scene(1_000)
    write_splats(SplatFile(splats), tmp_path / "a.sog")
    read = matched(read_splats(tmp_path / "a.sog").splats, splats)
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        meta = json.loads(archive.read("meta.json"))
    for key, found, expected in (
        ("scales", read.scales.log(), splats.scales.log()),
        ("sh0", read.sh[:, 0], splats.sh[:, 0]),
        ("shN", read.sh[:, 1:], splats.sh[:, 1:]),  # fewer Gaussians than entries: each has its own
    ):
        codes = torch.tensor(meta[key]["codebook"])
        best = (expected.reshape(-1, 1) - codes).abs().amin(dim=1).reshape(expected.shape)
        torch.testing.assert_close((found - expected).abs(), best, rtol=0, atol=2e-5)


def test_sog_files_of_the_same_scene_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.sog", "b.sog"):
        write_splats(SplatFile(scene(3_000)), tmp_path / name)
    assert (tmp_path / "a.sog").read_bytes() == (tmp_path / "b.sog").read_bytes()


def test_unpacked_sog_is_a_folder_that_its_meta_json_stands_for(tmp_path: Path) -> None:
    splats = scene(500)
    write_splats(SplatFile(splats, antialiased=True), tmp_path / "packed.sog")
    write_splats(SplatFile(splats, antialiased=True), tmp_path / "new" / "meta.json")
    packed, unpacked = read_splats(tmp_path / "packed.sog"), read_splats(tmp_path / "new" / "meta.json")
    assert unpacked.antialiased
    assert torch.equal(packed.splats.sh, unpacked.splats.sh)
    write_splats(SplatFile(splats[:300]), tmp_path / "new" / "meta.json")
    assert len(read_splats(tmp_path / "new" / "meta.json").splats) == 300
    (tmp_path / "new" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"new: is not empty"):
        write_splats(SplatFile(splats), tmp_path / "new" / "meta.json")
    assert (tmp_path / "new" / "thesis.txt").exists()


def test_sog_of_version_1_is_read(tmp_path: Path) -> None:
    """As its writer lays it out: minima and maxima instead of codebooks, opacities as logits."""
    count, rng = 20, np.random.default_rng(0)
    bytes_of = {
        name: rng.integers(0, 256, (8, 4, channels), np.uint8)
        for name, channels in {
            "means_l": 3,
            "means_u": 3,
            "scales": 3,
            "sh0": 4,
            "quats": 4,
            "shN_labels": 3,
        }.items()
    }
    bytes_of["quats"][..., 3] = 253  # x is the largest
    bytes_of["shN_labels"][..., :] = [5, 0, 0]
    bytes_of["shN_centroids"] = rng.integers(0, 256, (1, 64 * 3, 3), np.uint8)
    for name, pixels in bytes_of.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.webp", lossless=True, exact=True)
    files = {name: [f"{name}.webp"] for name in bytes_of}
    meta = {
        "means": {"shape": [count, 3], "mins": [-1, -2, -3], "maxs": [1, 2, 3]},
        "scales": {"mins": [-6, -6, -6], "maxs": [-1, -1, -1], "files": files["scales"]},
        "quats": {"files": files["quats"]},
        "sh0": {"mins": [-1, -1, -1, -4], "maxs": [1, 1, 1, 4], "files": files["sh0"]},
        "shN": {"mins": -0.5, "maxs": 0.5, "files": ["shN_centroids.webp", "shN_labels.webp"]},
    }
    meta["means"]["files"] = ["means_l.webp", "means_u.webp"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    read = read_splats(tmp_path / "meta.json").splats
    flat = {name: pixels.reshape(-1, pixels.shape[-1]).astype(float) for name, pixels in bytes_of.items()}
    i = 13
    level = (flat["means_l"][i] + 256 * flat["means_u"][i]) / 65535
    logs = np.array([-1, -2, -3]) + np.array([2, 4, 6]) * level
    np.testing.assert_allclose(read.means[i], np.sign(logs) * (np.exp(np.abs(logs)) - 1), rtol=1e-5)
    np.testing.assert_allclose(read.scales[i].log(), -6 + 5 * flat["scales"][i] / 255, rtol=1e-5)
    assert read.opacities[i].logit().item() == pytest.approx(-4 + 8 * flat["sh0"][i, 3] / 255, rel=1e-4)
    assert read.quats[i].argmax() == 1 or (flat["quats"][i, :3] - 127.5).max() > 127.5 / 2
    entry = bytes_of["shN_centroids"][0, 5 * 3 : 6 * 3].astype(float)
    np.testing.assert_allclose(read.sh[i, 1:], -0.5 + entry / 255, rtol=0, atol=1e-6)


# -- GLB -----------------------------------------------------------------------------------------------


def changed_glb(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same file with another JSON."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    content = json.loads(data[20 : 20 + length])
    change(content)
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    path.write_bytes(
        struct.pack("<IIIII", 0x46546C67, 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest
    )
    return path


def test_glb_is_turned_into_the_frame_of_gltf(tmp_path: Path) -> None:
    splats = scene(50)
    write_splats(SplatFile(splats), tmp_path / "a.glb")
    data = (tmp_path / "a.glb").read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    content = json.loads(data[20 : 20 + length])
    primitive = content["meshes"][0]["primitives"][0]
    view = content["bufferViews"][content["accessors"][primitive["attributes"]["POSITION"]]["bufferView"]]
    points = np.frombuffer(data, "<f4", 150, 28 + length + view["byteOffset"]).reshape(50, 3)
    np.testing.assert_array_equal(points, splats.means.numpy() * [-1, -1, 1])  # y up, +z forward, -x right
    accessor = content["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_allclose(accessor["max"], points.max(axis=0))
    assert content["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert primitive["mode"] == 0


def test_nodes_of_a_glb_move_its_gaussians_and_what_they_look_like(tmp_path: Path) -> None:
    """A turned, scaled and shifted scene seen by a camera moved along shows the same picture."""
    splats = ball()
    write_splats(SplatFile(splats), tmp_path / "a.glb")
    turn = Rotation.from_euler("xyz", [0.4, -1.1, 2.0])
    scale, shift = 2.5, np.array([1.0, -2.0, 0.5])

    def change(content: dict[str, Any]) -> None:
        content["nodes"] = [
            {"children": [1], "translation": shift.tolist(), "rotation": turn.as_quat().tolist()},
            {"mesh": 0, "scale": [scale] * 3},
        ]

    moved = read_splats(changed_glb(tmp_path / "a.glb", change)).splats
    camera = around(5, 90, 70)[2]
    half = np.diag([-1.0, -1.0, 1.0])
    world = np.eye(4)  # the same motion in the capture's frame
    world[:3, :3] = half @ turn.as_matrix() @ half * scale
    world[:3, 3] = half @ shift
    viewmat = torch.from_numpy(camera.viewmats[0].double().numpy() @ np.linalg.inv(world))
    viewmat[:3] *= scale
    follower = replace(camera, viewmats=viewmat.float()[None])
    expected, found = draw(splats, camera), draw(moved, follower)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_glb_of_several_primitives_interleaved_and_of_integers(tmp_path: Path) -> None:
    """Attributes interleaved by a stride, rotations as shorts, opacities as bytes, colours only."""
    splats = half_turn(scene(6, 0), "z")
    record = np.zeros(
        6, np.dtype([("p", "<f4", 3), ("r", "<i2", 4), ("s", "<f4", 3), ("c", "u1", 4), ("o", "u1", 4)])
    )
    record["p"], record["s"] = splats.means, splats.scales
    record["r"] = np.rint(splats.quats[:, [1, 2, 3, 0]].numpy() * 32767)
    record["o"][:, 0] = np.rint(splats.opacities * 255)
    record["c"][:, :3] = np.rint((0.5 + SH_C0 * splats.sh[:, 0]).clamp(0, 1) * 255)
    stride = record.itemsize
    kinds = {"POSITION": (5126, "VEC3", 0), "R": (5122, "VEC4", 12), "S": (5126, "VEC3", 20)}
    kinds |= {"COLOR_0": (5121, "VEC4", 32), "O": (5121, "SCALAR", 36)}
    names = {"R": "ROTATION", "S": "SCALE", "O": "OPACITY"}
    names = {key: f"KHR_gaussian_splatting:{name}" for key, name in names.items()}
    accessors = [
        {
            "bufferView": 0,
            "byteOffset": at,
            "componentType": kind,
            "count": 6,
            "type": form,
            "normalized": kind != 5126,
        }
        for kind, form, at in kinds.values()
    ]
    primitive = {
        "attributes": {names.get(name, name): i for i, name in enumerate(kinds)},
        "extensions": {"KHR_gaussian_splatting": {}},
    }
    content = {
        "scenes": [{"nodes": [0, 1]}],
        "nodes": [{"mesh": 0}, {"mesh": 0, "translation": [100, 0, 0]}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": [{"buffer": 0, "byteLength": record.nbytes, "byteStride": stride}],
        "buffers": [{"byteLength": record.nbytes}],
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    binary = record.tobytes()
    head = struct.pack("<IIIII", 0x46546C67, 2, 28 + len(text) + len(binary), len(text), 0x4E4F534A)
    (tmp_path / "a.glb").write_bytes(head + text + struct.pack("<II", len(binary), 0x004E4942) + binary)
    read = read_splats(tmp_path / "a.glb").splats
    assert len(read) == 12
    expected = scene(6, 0)
    torch.testing.assert_close(read.means[:6], expected.means)
    torch.testing.assert_close(
        read.means[6:], expected.means - torch.tensor([100.0, 0, 0]), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(read.scales[:6], expected.scales)
    assert angles(read[6:], expected).max() < 1e-3
    torch.testing.assert_close(read.opacities[:6], expected.opacities, rtol=0, atol=HALF / 255)
    shown = (expected.sh * SH_C0 + 0.5).clamp(0, 1)
    torch.testing.assert_close(read.sh[:6] * SH_C0 + 0.5, shown, rtol=0, atol=HALF / 255)


def _below_itself(content: dict[str, Any]) -> None:
    content["nodes"][0]["children"] = [0]


def _twice(content: dict[str, Any]) -> None:
    content["nodes"] = [{"children": [i + 1, i + 1]} for i in range(40)] + [{"mesh": 0}]


def _far_count(content: dict[str, Any]) -> None:
    content["accessors"][0]["count"] = 2**31


def _far_offset(content: dict[str, Any]) -> None:
    content["bufferViews"][2]["byteOffset"] = 10**12


def _elsewhere(content: dict[str, Any]) -> None:
    content["buffers"][0]["uri"] = "file:///etc/passwd"


def _sheared(content: dict[str, Any]) -> None:
    content["nodes"][0]["scale"] = [1, 2, 1]


def _compressed(content: dict[str, Any]) -> None:
    content["extensionsRequired"] = ["KHR_draco_mesh_compression"]


def _plain(content: dict[str, Any]) -> None:
    content["meshes"][0]["primitives"][0]["extensions"] = {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_below_itself, "lies below two nodes, itself"),
        (_twice, "lies below two nodes, itself"),
        (_far_count, "need 25,769,803,776 bytes of a view of 360"),
        (_far_offset, "the binary chunk has"),
        (_elsewhere, "lies outside the GLB file"),
        (_sheared, "a node's transform"),
        (_compressed, "KHR_draco_mesh_compression"),
        (_plain, "no primitive with KHR_gaussian_splatting"),
    ],
)
def test_glb_that_makes_no_sense(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    write_splats(SplatFile(scene(30)), tmp_path / "a.glb")
    with pytest.raises(InputError, match=rf"a\.glb: .*{message}"):
        read_splats(changed_glb(tmp_path / "a.glb", change))


# -- streamed SOG --------------------------------------------------------------------------------------


def test_streamed_sog_parts_space_and_holds_every_level_whole(tmp_path: Path) -> None:
    levels = [scene(40_000, 0), scene(40_000, 0)[:9_000], scene(40_000, 0)[:400]]
    write_streamed_sog([SplatFile(level, antialiased=True) for level in levels], tmp_path / "new")
    meta = json.loads((tmp_path / "new" / "lod-meta.json").read_text())
    assert (meta["version"], meta["lodLevels"], meta["counts"]) == (1, 3, [40_000, 9_000, 400])
    folders = [read_splats(tmp_path / "new" / name).splats for name in meta["filenames"]]
    seen = [torch.zeros(len(folder), dtype=torch.int64) for folder in folders]
    held = [0, 0, 0]
    nodes, depths = [(meta["tree"], 0)], []
    while nodes:
        node, depth = nodes.pop()
        low, high = (torch.tensor(node["bound"][end]) for end in ("min", "max"))
        for child in node.get("children", []):
            inner = torch.tensor(child["bound"]["min"]), torch.tensor(child["bound"]["max"])
            assert (inner[0] >= low - 1e-4).all()
            assert (inner[1] <= high + 1e-4).all()
            nodes.append((child, depth + 1))
        if "lods" in node:
            depths.append(depth)
            assert set(node["lods"]) == {"0", "1", "2"}  # no level has a hole
            for level, where in node["lods"].items():
                rows = slice(where["offset"], where["offset"] + where["count"])
                seen[where["file"]][rows] += 1
                held[int(level)] += where["count"]
                means = folders[where["file"]].means[rows]
                assert (means >= low - 2e-3).all()
                assert (means <= high + 2e-3).all()
    assert held == meta["counts"]
    assert all((rows == 1).all() for rows in seen)
    assert max(depths) >= 1
    finest = read_splats(tmp_path / "new" / "lod-meta.json")
    assert finest.antialiased
    assert len(finest.splats) == 40_000
    torch.testing.assert_close(finest.splats.means.sum(dim=0), levels[0].means.sum(dim=0), rtol=0, atol=5)


def test_streamed_sog_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the largest first"):
        write_streamed_sog([SplatFile(scene(5)), SplatFile(scene(9))], tmp_path / "new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="old: is not empty"):
        write_streamed_sog([SplatFile(scene(5))], tmp_path / "old")
    write_streamed_sog([SplatFile(scene(9))], tmp_path / "new")
    write_streamed_sog([SplatFile(scene(5))], tmp_path / "new")  # in its place
    meta = tmp_path / "new" / "lod-meta.json"
    sound = json.loads(meta.read_text())
    for change, message in (
        ({"filenames": ["../../secret/meta.json"]}, "below the same folder"),
        ({"tree": {"lods": {"0": {"file": 3, "offset": 0, "count": 5}}}}, "of file 3; there are 1"),
        ({"tree": {"lods": {"0": {"file": 0, "offset": 3, "count": 10**12}}}}, "rows beyond the 5"),
        ({"tree": {}}, "no leaf"),
        ({"tree": []}, "tree: expected object, found array"),
    ):
        meta.write_text(json.dumps(sound | change))
        with pytest.raises(InputError, match=rf"lod-meta\.json: .*{message}"):
            read_splats(meta)
