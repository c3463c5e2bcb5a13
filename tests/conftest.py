"""Fixtures that more than one test file uses."""

import os
import signal
from pathlib import Path

import pytest
import torch

import flexgs_lightning  # noqa: F401  (before torch: it sets the thread policy)

SHARED_DATA = Path(os.environ.get("FLEXGS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _as_in_a_terminal() -> None:
    """A shell's background job ignores Ctrl-C, which commands rightly leave so; tests send it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real captures beside the checkout, or $FLEXGS_TEST_DATA; without it tests are skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real captures at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def small_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COLMAP folder of 16 photos of 96x64 pixels: small enough to train on within seconds."""
    from flexgs_lightning.demo.capture import write_demo_capture

    root = tmp_path_factory.mktemp("captures") / "small"
    write_demo_capture(root, views=16, width=96, height=64)
    return root
