"""Every config of the repository builds the training that it promises, is shipped, and goes by its name."""

import os
import shutil
import subprocess
import sys
import zipfile
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexgs_lightning.cli import main
from flexgs_lightning.errors import InputError
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.settings import (
    CONFIGS,
    config_names,
    element_of,
    find_config,
    with_config_files,
    with_lists,
)

CHECKOUT = Path(__file__).parents[1]
FOLDER = CHECKOUT / "configs"
PROMISES: dict[str, tuple[str, dict[str, Any]]] = {
    "demo.yaml": ("demo", {"data.downscale": 1, "data.test_every": 8}),
    "demo_moving.yaml": ("demo_moving", {"model.stages.total": 3300}),
    "dnerf.yaml": ("mutant", {"model.background": "white", "model.stages.total": 15000}),
    "flexgs.yaml": ("scene", {"model.stages.total": 42000, "trainer.val_check_interval": 1000}),
    "flexgs_paper.yaml": ("scene", {"model.stages.total": 35000}),
    "mipnerf360.yaml": ("garden", {"data.downscale": 4, "data.test_every": 8, "model.background": "black"}),
    "moving/groups_of_frames.yaml": ("film", {"model.stages.total": 50000}),
    "moving/whole_film.yaml": ("film", {"model.stages.total": 50000}),
    "moving/shared_motions.yaml": ("film", {"model.stages.total": 50000}),
    "neural_3d_video.yaml": ("flame_steak", {"data.downscale": 2, "data.frames": None}),
    "panoptic_sports.yaml": ("basketball", {"data.near_plane": 1.0, "model.stages.total": 8000}),
    "tanks_and_temples.yaml": ("truck", {"data.downscale": 1, "data.test_every": 8}),
    "tanks_and_temples_quarter.yaml": ("truck", {"data.downscale": 4, "model.background": "white"}),
    "zipnerf.yaml": ("berlin", {"data.downscale": 2, "data.cache_megabytes": 8192}),
}
"""For each config a scene that it is for, and what the paper's protocol or the README says of it."""
OVERLAYS: dict[str, tuple[str, int | str, str]] = {
    "cpu.yaml": ("cpu", 1, "auto"),
    "single_gpu.yaml": ("cuda", 1, "auto"),
    "slurm.yaml": ("cuda", "auto", "ddp"),
}
"""Accelerator, devices and strategy of each."""
ALL = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml"))
TRAININGS = [
    name for name in ALL if not name.startswith(("hardware/", "ablations/", "codec/", "representations/"))
]


def scene(small_capture: Path, folder: Path, name: str) -> Path:
    """The small capture as a benchmark ships it: under the scene's name, with reduced copies."""
    root = folder / name
    root.mkdir()
    (root / "sparse").symlink_to(small_capture / "sparse")
    for images in ("images", "images_2", "images_4"):
        (root / images).symlink_to(small_capture / "images")
    return root


def value(cli: FlexGSCLI, name: str) -> Any:
    room, _, attribute = name.partition(".")
    return attrgetter(attribute)({"data": cli.datamodule, "model": cli.model, "trainer": cli.trainer}[room])


@pytest.mark.parametrize("name", TRAININGS)
def test_config_builds_what_it_promises(
    name: str, small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlexGSCLI, "_run_subcommand", lambda *_: None)
    folder, expected = PROMISES.get(name, ("garden", {}))
    root = scene(small_capture, tmp_path, folder)
    options = ["--data.root", str(root), "--runs", str(tmp_path / "runs")]
    cpu = ["--config", str(FOLDER / "hardware" / "cpu.yaml")]
    cli = FlexGSCLI(["fit", "--config", str(FOLDER / name), *cpu, *options])
    assert {key: value(cli, key) for key in expected} == expected
    steps = yaml.safe_load((FOLDER / name).read_text())["model"]["reconstruction_steps"]
    assert cli.model.stages.reconstruction == steps
    assert cli.model.stages.total >= steps
    assert cli.trainer.strategy.root_device.type == "cpu"
    cli.datamodule.setup("fit")
    assert len(cli.datamodule.capture.train_views) == 14


@pytest.mark.parametrize("name", sorted(OVERLAYS))
def test_hardware_overlay_changes_the_hardware_only(
    name: str, small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed only: no GPU is needed to know that the GPU's overlay asks for one."""
    monkeypatch.setattr(FlexGSCLI, "instantiate_classes", lambda *_: None)
    monkeypatch.setattr(FlexGSCLI, "_run_subcommand", lambda *_: None)
    root = scene(small_capture, tmp_path, "garden")
    base = ["fit", "--config", str(FOLDER / "mipnerf360.yaml"), "--data.root", str(root)]
    plain = FlexGSCLI(base).config["fit"].as_dict()
    overlaid = FlexGSCLI([*base, "--config", str(FOLDER / "hardware" / name)]).config["fit"].as_dict()
    options = ("accelerator", "devices", "strategy")
    assert tuple(overlaid["trainer"][option] for option in options) == OVERLAYS[name]
    overlaid["trainer"] = plain["trainer"]
    assert {**overlaid, "config": None} == {**plain, "config": None}


def test_every_config_is_known_to_this_test() -> None:
    assert set(TRAININGS) >= set(PROMISES)
    assert {name for name in ALL if name.startswith("hardware/")} == {f"hardware/{name}" for name in OVERLAYS}


def test_later_configs_and_flags_win(small_capture: Path, tmp_path: Path, printed: Any) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("model: {ssim_weight: 0.1, sh_degree: 1, reconstruction_steps: 11}\n")
    second.write_text("model: {ssim_weight: 0.3, sh_degree: 2}\n")
    files = ["--config", str(first), "--config", str(second)]
    config = yaml.safe_load(printed([*files, "--data.root", str(small_capture), "--model.sh_degree=0"]))
    assert config["model"]["ssim_weight"] == 0.3
    assert config["model"]["sh_degree"] == 0
    assert config["model"]["reconstruction_steps"] == 11


@pytest.mark.parametrize("name", TRAININGS)
def test_print_config_round_trips(name: str, tmp_path: Path, printed: Any) -> None:
    """What it prints is a config, and that config prints the same."""
    first = printed(["--config", str(FOLDER / name), "--data.root", "somewhere", "--model.ssim_weight=0.25"])
    assert yaml.safe_load(first)["model"]["ssim_weight"] == 0.25
    (tmp_path / "all.yaml").write_text(first)
    assert printed(["--config", str(tmp_path / "all.yaml")]) == first


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """``flexgs fit … --print_config`` as text."""

    def run(options: list[str]) -> str:
        with pytest.raises(SystemExit) as exit_status:
            main(["fit", *options, "--print_config"])
        assert exit_status.value.code == 0
        return capsys.readouterr().out

    return run


# -- by name, and in the wheel -------------------------------------------------------------------------


def test_configs_go_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("flexgs", "hardware/cpu", "ablations/flexgs/field"):
        assert find_config(name) == CONFIGS / f"{name}.yaml"
    assert len(config_names()) == len(ALL)
    Path("mine.yaml").write_text("{}")
    assert find_config("mine.yaml") == Path("mine.yaml")
    with pytest.raises(InputError, match=r"flexgz: no such config.* flexgs, flexgs_paper, hardware/cpu"):
        find_config("flexgz")


def test_a_named_config_is_merged_in_order(printed: Any, tmp_path: Path) -> None:
    """In every way of writing several."""
    (tmp_path / "mine.yaml").write_text("model: {reconstruction_steps: 7}\n")
    mine, root = str(tmp_path / "mine.yaml"), ["--data.root", "somewhere"]
    expected = printed(["--config", str(FOLDER / "flexgs.yaml"), "--config", mine, *root])
    assert yaml.safe_load(expected)["model"]["reconstruction_steps"] == 7
    assert printed(["--config", "flexgs", "--config", mine, *root]) == expected
    assert printed(["--config", f"flexgs,{mine}", *root]) == expected
    assert printed(["-c", "flexgs", mine, *root]) == expected


@pytest.mark.parametrize("typed", ["0.01,0.05", "0.01 0.05", "0.01, 0.05", "[0.01,0.05]", "[0.01, 0.05]"])
def test_lists_are_written_with_commas_or_spaces(typed: str, printed: Any) -> None:
    words = [typed] if typed.startswith("[") else typed.split()
    for option in ("elastic_validation.ratios", "model.elastic_training.ratios"):
        config = yaml.safe_load(printed(["--data.root=somewhere", f"--{option}", *words]))
        for name in option.split("."):
            config = config[name]
        assert config == [0.01, 0.05]
        joined = printed(["--data.root=somewhere", f"--{option}={words[0]}", *words[1:]])
        assert yaml.safe_load(joined)["elastic_validation"] is not None


def test_words_become_lists_of_what_an_option_holds() -> None:
    lists = {"--methods": "text", "--ratios": "number"}
    typed = ["all", "--methods", "prune:opacity", "flexgs,1e5", "--ratios=-0.5", "--steps", "-3", "--flag"]
    assert with_lists(typed, lists) == [  # type: ignore[arg-type]
        "all",
        '--methods=["prune:opacity", "flexgs", "1e5"]',
        "--ratios=[-0.5]",
        "--steps",
        "-3",
        "--flag",
    ]
    assert with_config_files(["fit", "--data.root", "a,b"]) == ["fit", "--data.root", "a,b"]
    assert [element_of(hint) for hint in (list[float], tuple[int, ...], list[float] | None)] == ["number"] * 3
    assert [element_of(hint) for hint in (list[str], list[Path], list[Path] | None)] == ["text"] * 3
    assert [element_of(hint) for hint in (str, list[int] | str | int, list[dict[str, int]])] == [None] * 3


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built and installed without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "target"
    source.mkdir()
    for name in ("flexgs_lightning", "configs"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def test_the_wheel_holds_every_config_once(installed: Path) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    configs = {name.removeprefix("flexgs_lightning/configs/") for name in names if "configs/" in name}
    assert configs >= {*ALL, "hardware/slurm.sbatch"}
    assert not any(name.startswith(("configs/", "tests/")) for name in names)
    player = CHECKOUT / "flexgs_lightning" / "deploy" / "web" / "player"
    for path in (path for path in player.rglob("*") if path.is_file()):
        assert path.relative_to(CHECKOUT).as_posix() in names


def test_an_installed_wheel_knows_the_configs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "flexgs_lightning.cli", *words]
        return subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)

    found = run("fit", "--print_config", "--config", "flexgs", "--data.root", "somewhere")
    assert found.returncode == 0, found.stderr
    assert yaml.safe_load(found.stdout)["model"]["elastic_training"]["steps"] == 27000
    where = [sys.executable, "-c", "import flexgs_lightning.settings as s; print(s.CONFIGS)"]
    there = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(there.stdout.strip()) == installed / "flexgs_lightning" / "configs"
    refused = run("demo", "--config", "nothing")
    assert refused.returncode == 1
    assert "nothing: no such config" in refused.stderr
    assert "demo, demo_moving, dnerf, flexgs" in refused.stderr
