"""The program as typed: what it prints, what it leaves on disk, and how it refuses."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from colmap_folder import Folder, write_capture
from PIL import Image
from small_scene import pixels

from flexgs_lightning import load, rasterize
from flexgs_lightning.cli import COMMANDS, HELP, TRAINING, main
from flexgs_lightning.data.colmap import read_colmap
from flexgs_lightning.demo.command import summary
from flexgs_lightning.deploy.formats.ply import read_ply
from flexgs_lightning.images import to_uint8
from flexgs_lightning.lightning_cli import FlexGSCLI
from flexgs_lightning.model.checkpoint import CHECKPOINT_KEY

STEPS = 12
SHORT = (
    f"--model.reconstruction_steps={STEPS}",
    "--model.sh_degree_interval=5",
    "--model.lpips=none",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
)


def fit(root: Path, runs: Path, *options: str) -> int:
    return main(["fit", f"--data.root={root}", f"--runs={runs}", *SHORT, *options])


@pytest.fixture(scope="module")
def checkpoint(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on white, every fifth photo held out."""
    runs = tmp_path_factory.mktemp("runs")
    assert fit(small_capture, runs, "--data.test_every=5", "--model.background=white") == 0
    return runs / "small" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_capture(tmp_path / "capture")


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that must fail with one message, and returns the message."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        (message,) = (line for line in captured.err.splitlines() if line.startswith("flexgs: error: "))
        assert captured.err.strip().endswith(message)
        assert "Traceback" not in captured.err
        return message

    return run


def files(folder: Path) -> set[str]:
    """Everything below a folder, hidden files too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -- help ----------------------------------------------------------------------------------------------


def test_without_arguments_it_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text == HELP + HELP
    assert set(TRAINING) == set(FlexGSCLI.subcommands())
    for command in (*COMMANDS, *TRAINING):
        assert re.search(rf"^  {command}\b", HELP, re.MULTILINE), command


def test_the_list_of_commands_comes_without_the_libraries_behind_them() -> None:
    """They take seconds to import."""
    script = "import sys, flexgs_lightning.cli as cli; cli.main(['--help']); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert found.stdout.startswith(HELP)
    loaded = set(found.stdout.removeprefix(HELP).split())
    assert "flexgs_lightning.cli" in loaded
    assert not loaded & {"torch", "numpy", "lightning", "jsonargparse"}


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As in ``flexgs --help | head -1``."""
    command = [sys.executable, "-m", "flexgs_lightning.cli", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("command", ["fit", "test", *COMMANDS])
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main([*command.split(), "--help"])
    assert exit_status.value.code == 0
    text = capsys.readouterr().out
    own = [option for option in options_of(text) if not re.match(r"--(trainer|print_config|help)", option)]
    assert own
    unexplained = [option for option in own if len(explanation(text, option)) < 8]
    assert unexplained == []


def options_of(text: str) -> list[str]:
    return re.findall(r"^  (--[\w.]+)", text, re.MULTILINE)


def explanation(text: str, option: str) -> str:
    """What the help says of an option, without its type and default."""
    rest = text[re.search(rf"^  {re.escape(option)}\b", text, re.MULTILINE).start() :]  # type: ignore[union-attr]
    own = re.split(r"\n(?=  --|\n)", rest)[0]
    return re.sub(r"\s+", " ", own).removeprefix(f" {option}").partition("(type:")[0].partition("  ")[2] or (
        " ".join(own.split()[2:]).partition("(type:")[0].partition("(required")[0].strip()
    )


def test_what_people_type_daily_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for option in ("data.root", "data.downscale", "model.reconstruction_steps", "runs", "ckpt_path"):
        assert f"  --{option} " in text


def test_a_mistyped_option_is_named_in_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["fit", "--data.rot=somewhere"])
    assert exit_status.value.code == 2
    errors = capsys.readouterr().err
    assert "--data.rot" in errors
    assert len(errors.splitlines()) < 8


def test_a_command_reads_its_own_config(refusal: Callable[[list[str]], str]) -> None:
    """jsonargparse has a --config of its own, which must not take it away."""
    assert "nowhere.yaml: no such config" in refusal(["demo", "--config", "nowhere.yaml"])


def test_lightning_is_the_same_program() -> None:
    scripts = {script.name: script for script in entry_points(group="console_scripts")}
    assert scripts["lightning"].load() is scripts["flexgs"].load() is main
    program = Path(sys.executable).parent / "lightning"
    if program.is_file():
        found = subprocess.run([program, "--help"], capture_output=True, check=True, text=True)
        assert found.stdout == HELP


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["trian"], ["data"], ["data", "--help"]):
        assert main(words) == 2
        errors = capsys.readouterr().err
        assert errors == f"flexgs: error: unknown command '{words[0]}'.\n\n{HELP}"


# -- what a run leaves ---------------------------------------------------------------------------------


def test_metrics_json_holds_all_that_a_report_needs(checkpoint: Path, small_capture: Path) -> None:
    report = json.loads((checkpoint.parents[1] / "metrics.json").read_text())
    names = [view.name for view in read_colmap(small_capture, test_every=5).test_views]
    assert [image["name"] for image in report["images"]] == names
    for metric in ("psnr", "ssim"):
        values = [image[metric] for image in report["images"]]
        assert all(math.isfinite(value) for value in values)
        assert report["mean"][metric] == pytest.approx(sum(values) / len(values))
    model = load(checkpoint)
    assert report["gaussians"] == len(model.splats())
    parameters = sum(parameter.numel() for parameter in model.gaussians.parameters())
    assert report["megabytes"] == pytest.approx(4 * parameters / 1e6)
    assert report["milliseconds"] > 0
    assert all(image["milliseconds"] > 0 for image in report["images"])
    assert report["iteration"] == STEPS
    assert report["capture"] == small_capture.name
    protocol = report["protocol"]
    assert protocol["images"] == "images/ as shipped"
    assert "every 5th" in protocol["split"]
    assert protocol["background"] == "white"
    assert {"psnr", "ssim", "lpips", "average"} <= set(protocol)
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(report["versions"]) == {"flexgs-lightning", "torch", "lightning", "gsplat", "numba"}
    assert report["device"]


def test_test_measures_lpips_with_real_weights(
    checkpoint: Path, small_capture: Path, shared_data: Path, tmp_path: Path
) -> None:
    """``flexgs test`` of a finished run, end to end: metrics.json is written anew beside the checkpoint."""
    shutil.copytree(checkpoint.parents[1], tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / checkpoint.name
    options = ["--model.lpips=squeeze", f"--model.lpips_weights={shared_data / 'lpips_squeeze'}"]
    options += ["--data.test_every=5", "--model.background=white", *SHORT[3:]]
    before = json.loads((checkpoint.parents[1] / "metrics.json").read_text())
    assert main(["test", f"--data.root={small_capture}", f"--ckpt_path={checkpoint}", *options]) == 0
    report = json.loads((checkpoint.parents[1] / "metrics.json").read_text())
    values = [image["lpips"] for image in report["images"]]
    assert all(0 < value < 1 for value in values)
    assert report["mean"]["lpips"] == pytest.approx(sum(values) / len(values))
    assert report["mean"]["psnr"] == pytest.approx(before["mean"]["psnr"])
    assert report["protocol"]["lpips"].startswith("squeeze")
    for chosen, names in {"false": {"psnr", "ssim"}, "true": {"psnr", "ssim", "lpips"}}.items():
        command = ["validate", f"--data.root={small_capture}", f"--ckpt_path={checkpoint}", *options]
        cli = FlexGSCLI([*command, f"--model.validation_lpips={chosen}"])
        assert {name for name in cli.trainer.callback_metrics if name.startswith("val/")} == {
            f"val/{name}" for name in names
        }


def test_a_checkpoint_measured_otherwise_than_it_was_trained_is_told(
    checkpoint: Path, small_capture: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the run's own config repeats its settings, so that there is nothing to tell."""
    copy = tmp_path / "model.ckpt"
    copy.write_bytes(checkpoint.read_bytes())
    again = [f"--ckpt_path={copy}", f"--runs={tmp_path}"]
    assert main(["validate", f"--data.root={small_capture}", *again, *SHORT]) == 0
    assert "data.test_every: the checkpoint was trained with 5, but is measured with 8" in caplog.text
    assert "model.background: the checkpoint was trained with [1.0, 1.0, 1.0]" in caplog.text
    assert "data.downscale" not in caplog.text
    caplog.clear()
    assert main(["validate", "--config", str(checkpoint.parents[1] / "config.yaml"), *again]) == 0
    assert "was trained with" not in caplog.text


def test_a_splat_file_is_measured_as_its_checkpoint_is(
    checkpoint: Path, small_capture: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Into a run folder of its own; of what a splat file does not say nothing is told."""
    file = tmp_path / "small.ply"
    assert main(["export", "--ckpt", str(checkpoint), "--output", str(file)]) == 0
    options = ["--data.test_every=5", "--model.background=white", f"--runs={tmp_path}", *SHORT[2:]]
    caplog.clear()
    assert main(["test", f"--data.root={small_capture}", f"--ckpt_path={file}", *options]) == 0
    assert "was trained with" not in caplog.text
    report = json.loads((tmp_path / "small" / "version_0" / "metrics.json").read_text())
    trained = json.loads((checkpoint.parents[1] / "metrics.json").read_text())
    assert report["mean"]["psnr"] == pytest.approx(trained["mean"]["psnr"], abs=1e-4)
    assert report["gaussians"] == trained["gaussians"]
    assert report["protocol"] == trained["protocol"]
    assert main(["validate", f"--data.root={small_capture}", f"--ckpt_path={file}", *options]) == 0


def test_training_does_not_go_on_from_a_splat_file(
    small_capture: Path, tmp_path: Path, refusal: Callable[[list[str]], str]
) -> None:
    root = f"--data.root={small_capture}"
    told = refusal(["fit", root, f"--ckpt_path={tmp_path / 'small.ply'}", f"--runs={tmp_path}"])
    assert "small.ply: expected a checkpoint to go on from" in told
    assert "--start_from" in told
    missing = tmp_path / "nowhere.egs"
    assert "nowhere.egs: could not be read" in refusal(["test", root, f"--ckpt_path={missing}"])
    assert not list(tmp_path.iterdir())


def test_last_finds_the_run_from_another_folder_and_with_relative_paths(
    small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(small_capture)
    assert fit(Path("photos"), Path("runs"), "--name=mine") == 0
    run = tmp_path / "runs" / "mine" / "version_0"
    (run / "metrics.json").unlink()
    options = ["--data.root=photos", "--name=mine", "--ckpt_path=last", *SHORT[2:]]
    assert main(["test", *options]) == 0
    assert (run / "metrics.json").is_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["render", "--ckpt", str(run / "checkpoints" / "last.ckpt"), "--output", "frames"]) == 0
    assert len(list(Path("frames").glob("*.png"))) == 2


def test_the_exported_ply_draws_as_the_trained_model(
    checkpoint: Path, small_capture: Path, tmp_path: Path
) -> None:
    ply, frames = tmp_path / "scene.ply", tmp_path / "frames"
    assert main(["export", "--ckpt", str(checkpoint), "--output", str(ply)]) == 0
    options = ["--data_root", str(small_capture), "--background", "white", "--test_every", "5"]
    assert main(["render", "--ply", str(ply), "--output", str(frames), *options]) == 0
    model, exported = load(checkpoint), read_ply(ply)
    assert exported.sh_degree == model.sh_degree
    for view in read_colmap(small_capture, test_every=5).test_views:
        images = [
            rasterize(splats, view.camera, background=model.background).image[0]
            for splats in (model.splats(), exported)
        ]
        torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-6)
        shown = pixels((frames / view.name).with_suffix(".png")).astype(int)
        assert abs(shown - to_uint8(images[0])).max() <= 1


def test_the_demos_table_names_the_ratios_asked_for(tmp_path: Path) -> None:
    """1 % of 1,234 Gaussians are 12, which are 0.972 %."""
    results = {"0.01": {"gaussians": 12, "psnr": 16.5, "worst": {"name": "a.png", "psnr": 7.4}}}
    report = {"ratios": results, "gaussians": 1234, "mean": {"psnr": 25.25}, "iteration": 3000}
    report |= {"capture": "demo", "milliseconds": 4.0}
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    table = [line.split() for line in summary(tmp_path).splitlines()]
    assert ["1", "%", "12", "16.500", "7.400", "dB,", "a.png"] in table
    assert ["100", "%", "1,234", "25.250", "–"] in table, "an older file without the worst view"


# -- bad captures --------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def without_photo(folder: Folder) -> None:
    folder.image(folder.names[1]).unlink()


def with_unreadable_photo(folder: Folder) -> None:
    folder.image(folder.names[1]).write_bytes(b"no photo at all")


def with_empty_photo(folder: Folder) -> None:
    folder.image(folder.names[1]).write_bytes(b"")


def with_photo_of_another_shape(folder: Folder) -> None:
    Image.new("RGB", (40, 90)).save(folder.image(folder.names[1]))


BAD_CAPTURES: list[tuple[Callable[[Folder], object], tuple[str, ...]]] = [
    (lambda folder: truncate(folder.sparse / "images.bin"), ("images.bin: truncated", "found", "expected")),
    (lambda folder: truncate(folder.sparse / "points3D.bin"), ("points3D.bin", "truncated", "expected")),
    (without_photo, ("photo_01.png", "no such file", "expected")),
    (with_unreadable_photo, ("photo_01.png", "expected a readable image", "found")),
    (with_empty_photo, ("photo_01.png", "expected a readable image", "an empty file")),
    (with_photo_of_another_shape, ("photo_01.png", "found 40x90", "expected", "161x121")),
]


@pytest.mark.parametrize(("damage", "parts"), BAD_CAPTURES)
def test_bad_capture(
    damage: Callable[[Folder], object],
    parts: tuple[str, ...],
    folder: Folder,
    tmp_path: Path,
    refusal: Callable[[list[str]], str],
) -> None:
    damage(folder)
    message = refusal(["fit", f"--data.root={folder.root}", f"--runs={tmp_path / 'runs'}", *SHORT])
    assert all(part in message for part in parts), message
    assert not (tmp_path / "runs").exists()


BAD_SETTINGS = {
    "checkpoint: [1]": "checkpoint: expected options by name, found [1]",
    "temperature: 1.5": "temperature: expected options by name, found 1.5",
    "model: {sh_degree: null}": "model.sh_degree: expected a value, found null",
    "model: {elastic_training: {steps: null}}": "model.elastic_training.steps: expected a value, found null",
    "model: {densification: {class_path: MCMC, init_args: {every: null}}}": "model.densification.every: ",
    "trainer: {devices: -1}": "trainer: `devices` selected",
    "model: {densification: {class_path: flexgs_lightning.AdaptiveDensityControl, "
    "init_args: {prune_opacity: 7}}}": "model.densification.prune_opacity: expected a number",
    "model: {compression_training: {steps: 1000000000000}}": "model.compression_training.steps: expected",
    "model: {compression: {psnr_loss: .inf}}": "model.compression.psnr_loss: expected",
    "model: {initialization: {random_gaussians: 1000000000000}}": "model.initialization.random_gaussians: ",
    "data: {near_plane: -1}": "near_plane of capture: expected a positive number",
}


@pytest.mark.parametrize("settings", BAD_SETTINGS)
def test_settings_that_a_parser_lets_pass(
    settings: str, folder: Folder, tmp_path: Path, refusal: Callable[[list[str]], str]
) -> None:
    (tmp_path / "bad.yaml").write_text(settings)
    options = [f"--data.root={folder.root}", f"--runs={tmp_path / 'runs'}", *SHORT]
    message = refusal(["fit", *options, "--config", str(tmp_path / "bad.yaml")])
    assert f"error: {BAD_SETTINGS[settings]}" in message
    assert not (tmp_path / "runs").exists()


def test_missing_empty_and_small_captures(tmp_path: Path, refusal: Callable[[list[str]], str]) -> None:
    def message(root: Path) -> str:
        return refusal(["fit", f"--data.root={root}", f"--runs={tmp_path / 'runs'}", *SHORT])

    assert f"{tmp_path / 'nowhere'}: no such folder, expected" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: the folder is empty, expected" in message(tmp_path / "empty")
    two = write_capture(tmp_path / "two", count=2)
    assert "found 2 registered images, expected at least 3" in message(two.root)
    assert not (tmp_path / "runs").exists()


def test_a_photo_that_breaks_in_the_middle_stops_training(
    small_capture: Path, tmp_path: Path, refusal: Callable[[list[str]], str]
) -> None:
    """Its header is whole, so that it is only found out when it is decoded."""
    root = tmp_path / "capture"
    shutil.copytree(small_capture, root)
    path = root / "images" / "0003.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refusal(["fit", f"--data.root={root}", f"--runs={tmp_path / 'runs'}", *SHORT])
    assert f"{path}: expected a readable image, found: " in message
    assert not any(name.endswith(".ckpt") or ".partial" in name for name in files(tmp_path / "runs"))


# -- bad checkpoints and scenes ------------------------------------------------------------------------


class Malicious:
    """Unpickled carelessly, it creates a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.touch, (self.victim,)


def of_another_version(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content[CHECKPOINT_KEY]["version"] = 99
    torch.save(content, path)


def malicious(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({**content, "extra": Malicious(path.with_name("owned"))}, path)


BAD_CHECKPOINTS: list[tuple[Callable[[Path], object], tuple[str, ...]]] = [
    (Path.unlink, ("no such checkpoint",)),
    (lambda path: path.write_bytes(path.read_bytes()[:5000]), ("not a readable checkpoint", "expected")),
    (lambda path: path.write_bytes(b""), ("not a readable checkpoint", "expected")),
    (of_another_version, ("version 99", "this release reads version")),
    (lambda path: torch.save({"state_dict": {}}, path), ("not a checkpoint of this package",)),
    (malicious, ("not a readable checkpoint", "expected")),
]


@pytest.mark.parametrize("command", ["export", "test", "fit"])
@pytest.mark.parametrize(("damage", "parts"), BAD_CHECKPOINTS)
def test_bad_checkpoint(
    damage: Callable[[Path], object],
    parts: tuple[str, ...],
    command: str,
    checkpoint: Path,
    small_capture: Path,
    tmp_path: Path,
    refusal: Callable[[list[str]], str],
) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(checkpoint.read_bytes())
    damage(path)
    before = files(tmp_path)
    training = [f"--data.root={small_capture}", f"--runs={tmp_path / 'runs'}", f"--ckpt_path={path}", *SHORT]
    deploy = ["--ckpt", str(path), "--output", str(tmp_path / "scene.ply")]
    message = refusal([command, *(deploy if command == "export" else training)])
    assert f"{path}: " in message
    assert all(part in message for part in parts), message
    assert files(tmp_path) == before


def test_the_malicious_checkpoint_would_run_code_if_it_were_let(checkpoint: Path, tmp_path: Path) -> None:
    """So that the test above cannot pass for want of a threat."""
    path = tmp_path / "model.ckpt"
    path.write_bytes(checkpoint.read_bytes())
    malicious(path)
    torch.load(path, weights_only=False)
    assert (tmp_path / "owned").exists()


def test_test_needs_a_checkpoint(small_capture: Path, refusal: Callable[[list[str]], str]) -> None:
    assert "--ckpt_path: test needs a checkpoint" in refusal(["test", f"--data.root={small_capture}"])


def test_ply_with_missing_fields(
    checkpoint: Path, small_capture: Path, tmp_path: Path, refusal: Callable[[list[str]], str]
) -> None:
    ply = tmp_path / "scene.ply"
    assert main(["export", "--ckpt", str(checkpoint), "--output", str(ply)]) == 0
    ply.write_bytes(ply.read_bytes().replace(b"property float opacity\n", b"property float opaqueX\n"))
    options = ["--data_root", str(small_capture), "--output", str(tmp_path / "frames")]
    message = refusal(["render", "--ply", str(ply), *options])
    assert f"{ply}: not a 3DGS file: missing properties opacity" in message
    ply.write_bytes(ply.read_bytes()[:-100])
    message = refusal(["render", "--ply", str(ply), *options])
    assert f"{ply}: the PLY header states" in message
    assert files(tmp_path) == {"scene.ply"}


# -- disks, devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_keeps_the_last_checkpoint(
    failure: Exception,
    small_capture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[[list[str]], str],
) -> None:
    save, calls = torch.save, []

    def full(content: Any, path: Path, *rest: Any) -> None:
        calls.append(path)
        if len(calls) < 2:
            return save(content, path, *rest)
        Path(path).write_bytes(b"the beginning of a checkpoint")
        raise failure

    monkeypatch.setattr(torch, "save", full)
    options = [f"--runs={tmp_path}", *SHORT, "--checkpoint.every_n_steps=5"]
    message = refusal(["fit", f"--data.root={small_capture}", *options])
    last = tmp_path / "small" / "version_0" / "checkpoints" / "last.ckpt"
    assert f"{last}: could not be written" in message
    assert "No space left" in message or "file write failed" in message
    monkeypatch.undo()
    assert load(last).iteration == 5
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(
    small_capture: Path, tmp_path: Path, refusal: Callable[[list[str]], str]
) -> None:
    options = [f"--runs={tmp_path / 'runs'}", "--trainer.accelerator=cuda"]
    message = refusal(["fit", f"--data.root={small_capture}", *options])
    assert "trainer: `CUDAAccelerator` can not run on your system" in message
    assert not (tmp_path / "runs").exists()
