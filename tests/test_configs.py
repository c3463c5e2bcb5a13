"""Every config of the repository builds the training that it promises, so that none rots."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flexgs_lightning.cli import main
from flexgs_lightning.lightning_cli import FlexGSCLI

FOLDER = Path(__file__).parents[1] / "configs"
PROMISES: dict[str, tuple[str, dict[str, Any]]] = {
    "demo.yaml": ("demo", {"data.downscale": 1, "data.test_every": 8}),
    "flexgs.yaml": ("scene", {"trainer.max_steps": 35000, "trainer.val_check_interval": 1000}),
    "flexgs_paper.yaml": ("scene", {"trainer.max_steps": 35000}),
    "mipnerf360.yaml": ("garden", {"data.downscale": 4, "data.test_every": 8, "model.background": "black"}),
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
TRAININGS = [name for name in ALL if not name.startswith(("hardware/", "ablations/"))]


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
    return getattr({"data": cli.datamodule, "model": cli.model, "trainer": cli.trainer}[room], attribute)


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
    assert cli.model.reconstruction_steps == steps
    assert cli.trainer.max_steps >= steps
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
