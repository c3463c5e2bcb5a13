"""rasterize: the one front door to drawing Gaussians, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.rendering.shading import Shader
from flexgs_lightning.rendering.types import CHANNELS, IMAGE, Drawn, Outputs, Picture, Projection, Rendering
from flexgs_lightning.splats import Splats


def rasterize(
    splats: Drawn,
    cameras: Cameras,
    *,
    background: Float[Tensor, " D"] | Float[Tensor, "C D"] | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    outputs: Outputs = IMAGE,
    shader: Shader | None = None,
) -> Rendering:
    """Draw ``splats`` through ``cameras``; differentiable in every field of ``splats``.

    CUDA tensors go to gsplat, CPU tensors to this package's own kernels; both give the same result
    (README, "Rendering"). On CUDA, gradients are summed with atomics, so they differ in the last bits from
    run to run.

    Args:
        splats: N Gaussians; N = 0 gives the background. Or a list of as many for each camera: the same
            Gaussians as that camera sees them, at a time of its own.
        cameras: C cameras on the same device. No gradient flows to them or to the background.
        background: colour behind the Gaussians, one for all cameras or one each; black if None.
        sh_degree: spherical-harmonics degree to evaluate, at most the stored one (the default); features
            have none.
        antialiased: scale opacities so that the low-pass filter keeps each Gaussian's total weight
            (Mip-Splatting's 2D filter).
        outputs: what to compute beside image and alpha.
        shader: makes colours of features; by default they are drawn as they are.

    Raises:
        ValueError: devices or numbers differ, a tensor on the CPU is not float32, ``sh_degree`` or the
            background's shape is out of range, or the shader has no features or gives channels of a wrong
            shape.
        InputError: CUDA tensors, but gsplat's kernels are not available on this machine.
    """
    shader = shader_of(splats, shader)
    projection = project(splats, cameras, sh_degree, antialiased, shader)
    picture = blend(projection, cameras, background, outputs, shader)
    return Rendering(picture, projection, cameras.width, cameras.height)


def shader_of(splats: Drawn, shader: Shader | None) -> Shader | None:
    """The shader to use; None is the spherical harmonics' own."""
    if (splats if isinstance(splats, Splats) else splats[0]).has_features:
        return shader or Shader()
    if shader is not None:
        raise ValueError("rasterize: a shader needs splats with features, found spherical harmonics.")
    return None


def project(
    splats: Drawn, cameras: Cameras, sh_degree: int | None, antialiased: bool, shader: Shader | None
) -> Projection:
    """The first step: Gaussians on the image planes, with the channels to blend."""
    if not isinstance(splats, Splats):
        return _project_each(splats, cameras, sh_degree, antialiased, shader)
    if splats.device != cameras.device:
        raise ValueError(f"rasterize: splats are on {splats.device}, cameras on {cameras.device}.")
    backend = backend_of(splats.device)
    if shader is None:
        projection: Projection = backend.project(splats, cameras, _degree(splats, sh_degree), antialiased)
        return projection
    projection = backend.project(splats, cameras, 0, antialiased)
    channels = shader.before(splats, cameras)
    expected = (len(cameras), len(splats))
    if channels.shape[:-1] != expected or channels.shape[-1] == 0:
        raise ValueError(
            f"rasterize: the shader must give {(*expected, 'D')} channels before blending, "
            f"found {tuple(channels.shape)}."
        )
    return projection._replace(features=torch.cat([projection.features, channels], dim=-1))


def _project_each(
    splats: Sequence[Splats],
    cameras: Cameras,
    sh_degree: int | None,
    antialiased: bool,
    shader: Shader | None,
) -> Projection:
    if len(splats) != len(cameras) or len({len(own) for own in splats}) != 1:
        raise ValueError(
            f"rasterize: expected as many Gaussians for each of {len(cameras)} cameras, "
            f"found {[len(own) for own in splats]}."
        )
    parts = [project(own, cameras[i], sh_degree, antialiased, shader) for i, own in enumerate(splats)]
    return Projection(*map(torch.cat, zip(*parts, strict=True)))


def blend(
    projection: Projection,
    cameras: Cameras,
    background: Tensor | None,
    outputs: Outputs,
    shader: Shader | None,
) -> Picture:
    """The second step: images of what was projected; a shader's are laid over the background at last."""
    features, size = projection.features, (cameras.width, cameras.height)
    backend, channels = backend_of(features.device), features[..., CHANNELS].shape[-1]
    picture: Picture
    if shader is None:
        behind = _background(background, len(cameras), channels, features)
        picture = backend.blend(projection, *size, behind, outputs)
        return picture
    picture = backend.blend(projection, *size, features.new_zeros(len(cameras), channels), outputs)
    image = shader.after(picture.image, picture.alpha, cameras)
    if background is not None:
        behind = _background(background, len(cameras), image.shape[-1], features)
        image = image + (1 - picture.alpha) * behind[:, None, None]
    return picture._replace(image=image)


def backend_of(device: torch.device) -> ModuleType:
    """The module that has both steps for a device."""
    if device.type == "cuda":
        from flexgs_lightning.rendering import gsplat_backend

        return gsplat_backend
    from flexgs_lightning.rendering import cpu_backend

    return cpu_backend


def _degree(splats: Splats, sh_degree: int | None) -> int:
    degree = splats.sh_degree if sh_degree is None else sh_degree
    if not 0 <= degree <= splats.sh_degree:
        raise ValueError(f"rasterize: sh_degree must lie in 0..{splats.sh_degree}, found {degree}.")
    return degree


def _background(background: Tensor | None, count: int, channels: int, like: Tensor) -> Float[Tensor, "C D"]:
    if background is None:
        return like.new_zeros(count, channels)
    if background.shape not in ((channels,), (count, channels)):
        raise ValueError(
            f"rasterize: background must be [{channels}] or [{count}, {channels}], "
            f"found {tuple(background.shape)}."
        )
    return background.to(like).expand(count, channels)
