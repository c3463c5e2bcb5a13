"""One browser tab of the viewer: draws what it asks for, on a thread of its own."""

from __future__ import annotations

import functools
import io
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
import torch
import viser
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from flexgs_lightning.cameras import Cameras
from flexgs_lightning.data.capture import View
from flexgs_lightning.deploy.render import draw, read_photo
from flexgs_lightning.deploy.shots import nearest, standing
from flexgs_lightning.deploy.timeline import Playhead
from flexgs_lightning.deploy.vantage import Vantage
from flexgs_lightning.deploy.viewer.canvas import BrowserCamera, compose, depth_picture, framing_fov, reduced
from flexgs_lightning.deploy.viewer.motion_picture import with_motion_lit
from flexgs_lightning.deploy.viewer.panel import Figures, Panel
from flexgs_lightning.deploy.viewer.state import AutomaticCount, Detail, RatioScale, SplatsCache, megabytes
from flexgs_lightning.deploy.viewer.timeline_panel import TimelinePanel
from flexgs_lightning.errors import InputError
from flexgs_lightning.images import to_uint8
from flexgs_lightning.metrics.psnr import psnr
from flexgs_lightning.model.checkpoint import Model
from flexgs_lightning.rendering.rasterizer import rasterize
from flexgs_lightning.rendering.types import Outputs

log = logging.getLogger(__name__)

_FRAME = 1 / 30
"""Shortest time between two frames of a film, in seconds."""
_TELLING = 0.25
"""Seconds between two statements of the panel while a film plays: they cost a browser more than a frame."""
_REST = 0.2
"""Seconds without a change after which the picture is refined."""
_ARRIVAL = 1.0
"""Seconds that the browser's camera may take to arrive at a test view."""
_JPEG_QUALITY, _JPEG_QUALITY_MOVING = 92, 70

_Action = Callable[[], None]


@dataclass(frozen=True)
class Stage:
    """What all tabs share.

    Attributes:
        model: what is drawn.
        views: test views, possibly none.
        vantage: where to look from at first.
        cache: the splats at the sizes in use.
        count: Gaussians that a tab begins with.
        frames: of the film that a moving scene was made of, for steps.
        drawing: held while drawing, so that tabs take turns on the processor.
    """

    model: Model
    views: tuple[View, ...]
    vantage: Vantage
    cache: SplatsCache
    count: int
    frames: int = 30
    drawing: threading.Lock = field(default_factory=threading.Lock)

    @functools.cached_property
    def stops(self) -> list[View]:
        """The test views to visit: of a camera that films, one."""
        return standing(self.views)

    def view_at(self, view: View, time: float) -> View:
        """What the camera of a test view took at the moment nearest to a time."""
        return nearest([other for other in self.views if other.taken_by == view.taken_by], time)[0]

    def playhead(self) -> Playhead:
        """At the beginning of a scene that moves."""
        return Playhead(seconds=self.model.seconds or 1.0, frames=self.frames)

    def draw(
        self,
        count: int,
        camera: Cameras,
        depth: bool = False,
        time: float | None = None,
        lit: bool = False,
    ) -> Float[Tensor, "H W 3"]:
        """The image of one camera on the CPU.

        Args:
            count: Gaussians.
            camera: one.
            depth: depths as colours instead.
            time: of a scene that moves, in [0, 1].
            lit: what moves bright, the rest grey.
        """
        model = self.model
        if lit and time is not None:
            splats = with_motion_lit(model, count, time, self.vantage.unit)
        else:
            splats = self.cache.at(count, time)
        camera = replace(camera, near_plane=model.near_plane)
        with self.drawing:
            if not depth:
                return draw(splats, camera, model.background, model.antialiased).cpu()
            wanted, antialiased = Outputs(depth=True), model.antialiased
            with torch.no_grad():
                seen = rasterize(splats, camera.to(splats.device), antialiased=antialiased, outputs=wanted)
            return depth_picture(seen.depth[0], seen.alpha[0])


@dataclass(frozen=True)
class _Visit:
    """A test view that is being looked at, until the browser's camera moves away from it."""

    view: View
    photo: Float[Tensor, "H W 3"]
    deadline: float
    arrived: bool = False

    def holds(self, camera: BrowserCamera, unit: float) -> bool:
        """Whether the browser's camera still stands and looks as the view's does."""
        pose = self.view.camera
        return camera.near(pose.positions[0].numpy(), pose.viewmats[0, 2, :3].numpy(), unit)


class Session(threading.Thread):
    """Draws for one tab. The browser's events queue up as actions; all of them run on this thread."""

    def __init__(self, stage: Stage, client: viser.ClientHandle) -> None:
        super().__init__(name=f"viewer-tab-{client.client_id}", daemon=True)
        self._stage, self._client = stage, client
        self._inbox: queue.SimpleQueue[_Action | None] = queue.SimpleQueue()
        self._stopped = False
        self._detail = Detail()
        self._scale = RatioScale(len(stage.model))
        self._count = stage.count
        self._visit: _Visit | None = None
        self._with_photo = True
        self._automatic: AutomaticCount | None = None
        self._depth = False
        self._camera = _camera_of(client)
        self._head = stage.playhead()
        self._lit = False
        self._clock = time.monotonic()
        self._told = 0.0  # when the panel was told last
        self._panel = Panel(
            client.gui,
            self._scale,
            stage.model.elastic,
            stage.count / len(stage.model),
            [view.filmed_by or view.name for view in stage.stops],
            on_ratio=lambda ratio: self._do(lambda: self._choose(ratio)),
            on_view=lambda index: self._do(lambda: self._go_to(index)),
            on_photo=lambda wanted: self._do(lambda: self._show_photo(wanted)),
            on_screenshot=lambda: self._do(self._save_screenshot),
            on_goal=lambda goal: self._do(lambda: self._hold(goal)),
            on_depth=lambda wanted: self._do(lambda: self._show_depth(wanted)),
        )
        self._timeline = TimelinePanel(
            client.gui,
            self._head if stage.model.moves else None,
            on_change=lambda change: self._do(lambda: change(self._head)),
            on_lit=lambda wanted: self._do(lambda: self._light(wanted)),
        )

        @client.camera.on_update
        async def _(_: viser.CameraHandle) -> None:
            camera = _camera_of(client)
            self._do(lambda: self._move(camera))

    def stop(self) -> None:
        """End the thread after the frame at hand, which is not sent any more."""
        self._stopped = True
        self._inbox.put(None)

    def run(self) -> None:
        """Draw coarsely after each change, and finer and finer while nothing changes."""
        divisor, wait = self._detail.moving, 0.0
        while None not in (actions := self._next_actions(self._patience(divisor, wait))):
            for action in actions:
                self._guarded(action)
            went_on = self._play()
            if actions or not divisor or went_on:
                divisor = self._detail.moving
            self._guarded(functools.partial(self._draw, divisor))
            divisor //= 2
            wait = _REST if actions else 0.0

    def _patience(self, divisor: int, wait: float) -> float | None:
        """Seconds to wait for an action before the next frame; None for as long as it takes."""
        if self._head.playing:
            return max(0.0, _FRAME - (time.monotonic() - self._clock))
        return wait if divisor else None

    def _play(self) -> bool:
        """Let time go on; returns whether it does."""
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        if not self._head.playing:
            return False
        self._head.advance(elapsed)
        if not self._head.playing:  # it is over
            self._timeline.show(self._head)
        return True

    @property
    def _time(self) -> float | None:
        """The moment shown, of a scene that moves."""
        return self._head.time if self._stage.model.moves else None

    def _next_actions(self, wait: float | None) -> list[_Action | None]:
        """All that is queued; none after ``wait`` seconds. Without a limit, wait for the first."""
        try:
            actions = [self._inbox.get(timeout=wait)]
        except queue.Empty:
            return []
        while not self._inbox.empty():
            actions.append(self._inbox.get())
        return actions

    def _guarded(self, action: _Action | None) -> None:
        """Run; what fails is told in the browser and the log, and the tab lives on."""
        try:
            if action is not None:
                action()
        except Exception as error:
            log.log(logging.WARNING if isinstance(error, InputError) else logging.ERROR, "viewer: %s", error)
            self._client.add_notification("That did not work", str(error), color="red")

    # The actions.

    def _choose(self, ratio: float) -> None:
        self._count = self._scale.count(ratio)

    def _hold(self, goal: float | None) -> None:
        self._automatic = None if goal is None else AutomaticCount(goal, self._scale.total)

    def _adjust(self, seconds: float) -> None:
        """After a full frame: another size, if the time of a frame is to be held."""
        count = self._count if self._automatic is None else self._automatic.next(self._count, seconds)
        if count != self._count:
            self._count = count
            self._panel.show_ratio(count / self._scale.total)
            self._do(lambda: None)  # draw again

    def _show_depth(self, wanted: bool) -> None:
        self._depth = wanted

    def _move(self, camera: BrowserCamera) -> None:
        self._camera = camera
        if self._visit is None:
            return
        if self._visit.holds(camera, self._stage.vantage.unit):
            self._visit = replace(self._visit, arrived=True)
        elif self._visit.arrived or time.monotonic() > self._visit.deadline:
            self._visit = None
            self._panel.free_camera()

    def _go_to(self, index: int | None) -> None:
        self._visit = None
        if index is None:
            return
        view, vantage, camera = self._stage.stops[index], self._stage.vantage, self._client.camera
        photo = read_photo(view.source, self._stage.model.background)
        with self._client.atomic():
            camera.up_direction = vantage.up.numpy()
            camera.position = view.camera.positions[0].numpy()
            camera.look_at = vantage.turning_point(view.camera).numpy()
            camera.fov = framing_fov(view.camera, self._camera.width / self._camera.height)
        self._visit = _Visit(view, photo, time.monotonic() + _ARRIVAL)

    def _light(self, wanted: bool) -> None:
        self._lit = wanted

    def _show_photo(self, wanted: bool) -> None:
        self._with_photo = wanted

    def _save_screenshot(self) -> None:
        """Send the picture as PNG: of a test view at the photo's size, otherwise of the canvas."""
        camera = self._visit.view.camera if self._visit else self._camera.cameras()
        file = io.BytesIO()
        Image.fromarray(to_uint8(self._rendered(camera))).save(file, format="PNG")
        place = f"_{PurePosixPath(self._visit.view.name).stem}" if self._visit else ""
        name = f"{self._stage.model.name}{place}_{self._count}_gaussians.png"
        self._client.send_file_download(name, file.getvalue(), save_immediately=True)

    # Drawing.

    def _draw(self, divisor: int) -> None:
        start = time.perf_counter()
        self._keep_up()
        splats, visit = self._stage.cache.at(self._count, self._time), self._visit
        camera = reduced(visit.view.camera if visit else self._camera.cameras(), divisor)
        before = time.perf_counter()
        render = self._rendered(camera)
        seconds = time.perf_counter() - before
        if self._stopped:
            return
        quality = _JPEG_QUALITY if divisor == 1 else _JPEG_QUALITY_MOVING
        self._client.scene.set_background_image(
            self._picture(to_uint8(render)), format="jpeg", jpeg_quality=quality
        )
        self._detail.drawn(divisor, time.perf_counter() - start)
        if self._head.playing and time.monotonic() < self._told + _TELLING:
            return
        self._told = time.monotonic()
        if self._head.playing:
            self._timeline.show(self._head)
        self._panel.show(
            Figures(
                count=len(splats),
                total=self._scale.total,
                megabytes=megabytes(splats),
                milliseconds=1e3 * seconds,
                width=camera.width,
                height=camera.height,
                psnr=self._psnr(render) if divisor == 1 else None,
                moment=None if self._time is None else self._time * self._head.seconds,
            )
        )
        if divisor == 1:
            self._adjust(seconds)

    def _psnr(self, render: Float[Tensor, "H W 3"]) -> float | None:
        """Of a full render against the photo of the view that is visited."""
        if self._visit is None or self._depth or self._lit:
            return None
        return psnr(render[None], self._visit.photo[None]).item()

    def _keep_up(self) -> None:
        """Let the photo beside the picture be that of the moment."""
        visit, moment = self._visit, self._time
        if visit is not None and moment is not None and visit.view.filmed_by is not None:
            view = self._stage.view_at(visit.view, moment)
            if view is not visit.view:
                photo = read_photo(view.source, self._stage.model.background)
                self._visit = replace(visit, view=view, photo=photo)

    def _rendered(self, camera: Cameras) -> Float[Tensor, "H W 3"]:
        """What is shown, through a camera."""
        return self._stage.draw(self._count, camera, self._depth, self._time, self._lit)

    def _picture(self, render: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """What fills the canvas: the render, or at a test view the render with the photo beside it."""
        if self._visit is None:
            return render
        pictures = [render, to_uint8(self._visit.photo)] if self._with_photo else [render]
        camera = self._visit.view.camera
        return compose((self._camera.width, self._camera.height), pictures, (camera.width, camera.height))

    def _do(self, action: _Action) -> None:
        self._inbox.put(action)


def _camera_of(client: viser.ClientHandle) -> BrowserCamera:
    camera = client.camera
    return BrowserCamera(
        wxyz=tuple(camera.wxyz),
        position=tuple(camera.position),
        fov=camera.fov,
        width=camera.image_width,
        height=camera.image_height,
    )
