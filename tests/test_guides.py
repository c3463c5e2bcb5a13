"""Every command and every snippet in README.md and docs/ runs, on a small capture and with short stages.

A block that cannot be run here says so and why, right above it: ``<!-- not run: reason -->``.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import flexgs_lightning
from flexgs_lightning.cli import main

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.DOTALL
)
ALWAYS = {
    "fit": "--model.reconstruction_steps=9 --model.lpips=none --data.downscale=1 --trainer.accelerator=cpu",
    "test": "--trainer.accelerator=cpu",
    "render": "--frames=2",
}
"""What makes a command short; the last of an option's values counts."""
ELASTIC = "--model.elastic_training.steps=3"
IN_PYTHON = {
    "reconstruction_steps=15_000": "reconstruction_steps=9, lpips='none'",
    "ElasticTraining(steps=20_000)": "ElasticTraining(steps=3)",
    "downscale=4": "downscale=1",
    '"--data.downscale", "4"': '"--model.lpips=none", "--model.reconstruction_steps=9", '
    '"--model.elastic_training.steps=3"',
    "Trainer(": "Trainer(accelerator='cpu', enable_progress_bar=False, ",
    "120_000": "50",
}


def blocks(guide: Path) -> list[tuple[str | None, str, str]]:
    """Reason not to run it, language and code of each block."""
    return [match.group("reason", "language", "code") for match in BLOCK.finditer(guide.read_text())]


def run(line: str) -> None:
    """One line of a shell block, in this process."""
    program, *arguments = shlex.split(line, comments=True)
    assert program in ("flexgs", "lightning"), f"not a command of ours, and not marked as not run: {line}"
    arguments += ALWAYS.get(arguments[0], "").split()
    if arguments[0] == "fit" and "flexgs" in arguments:
        arguments.append(ELASTIC)
    arguments = [{"50k": "50", "200k": "200"}.get(argument, argument) for argument in arguments]
    assert main(arguments) == 0, line


@pytest.fixture(scope="module")
def trained(small_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a capture and the two runs that guides speak of."""
    folder = tmp_path_factory.mktemp("guides")
    shutil.copytree(small_capture, folder / "my_capture")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("flexgs fit --data.root my_capture")
        run("flexgs fit --config flexgs --data.root my_capture --name elastic")
    return folder


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_command_runs(
    guide: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = [(language, code) for reason, language, code in blocks(guide) if reason is None]
    if not todo:
        pytest.skip("all that it shows is marked as not run")
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    names: dict[str, object] = {"flexgs_lightning": flexgs_lightning}
    for language, code in todo:
        if language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run(line)
            continue
        for long, short in IN_PYTHON.items():
            code = code.replace(long, short)
        exec(compile(code, str(guide), "exec"), names)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_link_leads_somewhere(guide: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", guide.read_text())
    missing = [target for target in targets if target and not (guide.parent / target).exists()]
    assert missing == []


def test_readme_leads_to_every_guide() -> None:
    text = (ROOT / "README.md").read_text()
    assert [guide.name for guide in GUIDES[1:] if f"docs/{guide.name}" not in text] == []
