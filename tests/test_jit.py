"""Compiled kernels: the process that compiles them and those that load them compute the same, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

FINGERPRINT = """
import sys
from dataclasses import replace
from hashlib import sha256
import flexgs_lightning, torch
from flexgs_lightning import Outputs
sys.path.insert(0, sys.argv[1])
from small_scene import around, ball
from flexgs_lightning.metrics.ssim import ssim
splats = ball()
names = ("means", "quats", "scales", "opacities", "sh")
splats = replace(splats, **{name: getattr(splats, name).requires_grad_() for name in names})
rendering = flexgs_lightning.rasterize(splats, around(2, 96, 64), outputs=Outputs(depth=True, weights=True))
photo = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(0))
(rendering.image.square().sum() + rendering.depth.sum() + ssim(rendering.image, photo).sum()).backward()
tensors = [rendering.image, rendering.depth, rendering.weights]
tensors += [getattr(splats, name).grad for name in names]
print(sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest())
"""


def test_a_fresh_compilation_computes_what_the_cache_does(tmp_path: Path) -> None:
    """Or the first training on a machine would differ from all later ones, and from its own resumption."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", FINGERPRINT, str(Path(__file__).parent)]
    found = []
    for _ in range(2):
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=200, check=True
        )
        found.append(result.stdout)
    assert any(tmp_path.rglob("*.nbc")), "nothing was cached, so nothing was compared"
    assert found[0] == found[1]


INLINED = """
from flexgs_lightning.jit import inlined
@inlined
def term(x):
    return x + {}
"""
CALLER = """
from flexgs_lightning.jit import kernel
from part import term
@kernel
def total(x):
    return 10.0 * term(x)
print(total(1.0))
"""


def test_a_kernel_is_compiled_anew_when_a_function_of_another_file_changes(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    (tmp_path / "whole.py").write_text(CALLER)
    found = []
    for constant in (1.0, 1.0, 2.0):
        (tmp_path / "part.py").write_text(INLINED.format(constant))
        result = subprocess.run(
            [sys.executable, "whole.py"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=True,
        )  # fmt: skip
        found.append(float(result.stdout))
    assert any(tmp_path.rglob("*.nbc")), "nothing was cached"
    assert found == [20.0, 20.0, 30.0]
