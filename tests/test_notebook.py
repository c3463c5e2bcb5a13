"""The notebook runs from top to bottom on a freshly trained elastic model."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

from flexgs_lightning.lightning_cli import FlexGSCLI

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "elastic_model.ipynb"


def test_every_cell_runs(small_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = FlexGSCLI(
        [
            "fit",
            f"--data.root={small_capture}",
            f"--runs={tmp_path}",
            "--model.reconstruction_steps=10",
            "--model.elastic_training.steps=10",
            "--model.lpips=none",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ]
    )
    monkeypatch.setenv("FLEXGS_RUN", str(cli.run_folder))
    matplotlib.use("Agg")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    figures = [matplotlib.pyplot.figure(number) for number in matplotlib.pyplot.get_fignums()]
    assert len(figures) == 3
    assert len(figures[1].axes[0].lines[0].get_xdata()) == 7, "six ratios and the full model"
    matplotlib.pyplot.close("all")


def test_its_outputs_are_kept_small_and_name_no_place_of_a_machine() -> None:
    text = NOTEBOOK.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run from the top"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert len(text) < 1_000_000
    words = [output.get("text", []) for output in outputs] + [cell["source"] for cell in cells]
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|mnt)\b", str(words))
