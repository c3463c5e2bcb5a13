"""The viewer's controls in one browser tab."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import viser

from flexgs_lightning.deploy.viewer.state import RatioScale

FREE_CAMERA = "Free camera"
BY_HAND = "Off"
GOALS = {f"{milliseconds} ms a frame": milliseconds / 1e3 for milliseconds in (2, 8, 16, 33, 66, 200)}
"""What automatic size can hold, in seconds."""
_STEP = 1e-3
_ONE_SIZE = (
    "This scene has **one size**. Elastic training (stage 2) makes a model that can be drawn at any share "
    "of its Gaussians; open its checkpoint with `--ckpt` to slide."
)
_HIDE_POSITION = "<style>.mantine-Slider-root + * { display: none }</style><div style='height: .4em'></div>"
"""viser puts a number beside each slider; here it would be a position on a log scale, which tells nothing."""
_HELP = "Drag to turn, right-drag to move, scroll to go closer."


@dataclass(frozen=True)
class Figures:
    """What the panel states of the last frame.

    Attributes:
        count: Gaussians drawn.
        total: Gaussians in the full model.
        megabytes: size of the exported file.
        milliseconds: time to draw.
        width: of the drawn image in pixels.
        height: of the drawn image in pixels.
        psnr: against the photo in dB; None where there is none.
        moment: seconds from the beginning of a scene that moves; None of one that stands still.
    """

    count: int
    total: int
    megabytes: float
    milliseconds: float
    width: int
    height: int
    psnr: float | None
    moment: float | None = None

    def rows(self, has_photos: bool) -> list[tuple[str, str, str]]:
        """Key, label and value, as text."""
        rows = [
            ("gaussians", "Gaussians", f"{self.count:,} of {self.total:,}"),
            ("megabytes", "File size", f"{self.megabytes:,.2f} MB"),
            ("time", "Frame time", f"{self.milliseconds:,.1f} ms"),
            ("resolution", "Drawn at", f"{self.width} × {self.height}"),
        ]
        if self.moment is not None:
            rows.append(("moment", "Time", f"{self.moment:.2f} s"))
        psnr = "–" if self.psnr is None else f"{self.psnr:.2f} dB"
        return [*rows, ("psnr", "PSNR against photo", psnr)] if has_photos else rows

    def as_html(self, has_photos: bool) -> str:
        """A table; each value's cell has the id ``flexgs-`` + key."""
        rows = "".join(
            f'<tr><td style="opacity:.7;padding:1px 0">{html.escape(label)}</td>'
            f'<td id="flexgs-{key}" style="text-align:right;font-variant-numeric:tabular-nums">'
            f"{html.escape(value)}</td></tr>"
            for key, label, value in self.rows(has_photos)
        )
        return f'<table style="width:calc(100% - 1.5em);margin:0 .75em;font-size:.8em">{rows}</table>'


class Panel:
    """Sliders, fields and buttons. Each user's action calls one function; assignments from here call none.

    Args:
        gui: the tab's own controls.
        scale: the slider's scale.
        elastic: whether the ratio can be chosen.
        ratio: the one to begin with.
        views: names of the test views, possibly none.
        on_ratio: called with the ratio wanted.
        on_view: called with the index of a test view, or None for the free camera.
        on_photo: called with whether the photo is wanted beside the render.
        on_screenshot: called without arguments.
        on_goal: called with the seconds that a frame may take, or None for a size by hand.
        on_depth: called with whether depths are wanted in place of colours.
    """

    def __init__(
        self,
        gui: viser.GuiApi,
        scale: RatioScale,
        elastic: bool,
        ratio: float,
        views: Sequence[str],
        on_ratio: Callable[[float], None],
        on_view: Callable[[int | None], None],
        on_photo: Callable[[bool], None],
        on_screenshot: Callable[[], None],
        on_goal: Callable[[float | None], None],
        on_depth: Callable[[bool], None],
    ) -> None:
        self._gui, self._scale, self._views = gui, scale, views
        self._add_size(elastic, ratio, on_ratio)
        if elastic:
            self._add_automatic(on_goal)
        depth = gui.add_checkbox("Show depth", False, hint="Near is bright, far is dark.")
        self._figures = gui.add_html("")
        if views:
            self._add_views(on_view, on_photo)
        screenshot = gui.add_button(
            "Save screenshot",
            icon=viser.Icon.CAMERA,
            hint="Download this picture as PNG, at full resolution.",
        )

        @depth.on_update
        async def _(_: viser.GuiEvent[Any]) -> None:
            on_depth(depth.value)

        @screenshot.on_click
        async def _(_: viser.GuiEvent[Any]) -> None:
            on_screenshot()

        gui.add_markdown(_HELP)

    def show(self, figures: Figures) -> None:
        """State the figures of a frame."""
        self._figures.content = figures.as_html(has_photos=bool(self._views))

    def show_ratio(self, ratio: float) -> None:
        """Show a ratio that was chosen automatically."""
        self._slider.value = self._scale.position(ratio)
        self._percent.value = round(100 * ratio, 2 if ratio < 0.1 else 1)

    def free_camera(self) -> None:
        """Show that the camera has left the test view."""
        if self._views:
            self._view.value = FREE_CAMERA

    def _add_size(self, elastic: bool, ratio: float, on_ratio: Callable[[float], None]) -> None:
        gui, scale = self._gui, self._scale
        slider = gui.add_slider(
            "Size in %",
            min=0.0,
            max=1.0,
            step=_STEP,
            initial_value=scale.position(ratio),
            marks=tuple(
                (scale.position(r), f"{100 * r:g}") for r in (1e-3, 1e-2, 1e-1, 1.0) if r >= scale.smallest
            ),
            disabled=not elastic,
        )
        gui.add_html(_HIDE_POSITION)
        percent = gui.add_number(
            "",
            max(round(100 * ratio, 2), 100 * scale.smallest),
            min=100 * scale.smallest,
            max=100.0,
            step=0.01,
            disabled=not elastic,
            hint="Share of the Gaussians that are drawn, in percent. The slider above has a log scale.",
        )
        self._slider, self._percent = slider, percent
        if not elastic:
            gui.add_markdown(_ONE_SIZE)

        @slider.on_update
        async def _(event: viser.GuiEvent[Any]) -> None:
            if event.client_id is not None:
                ratio = scale.ratio(slider.value)
                percent.value = round(100 * ratio, 2 if ratio < 0.1 else 1)
                on_ratio(percent.value / 100)

        @percent.on_update
        async def _(event: viser.GuiEvent[Any]) -> None:
            if event.client_id is not None:
                slider.value = scale.position(percent.value / 100)
                on_ratio(percent.value / 100)

    def _add_automatic(self, on_goal: Callable[[float | None], None]) -> None:
        goal = self._gui.add_dropdown(
            "Automatic size",
            (BY_HAND, *GOALS),
            hint="Hold the time of a full frame by changing the size.",
        )

        @goal.on_update
        async def _(_: viser.GuiEvent[Any]) -> None:
            on_goal(GOALS.get(goal.value))

    def _add_views(self, on_view: Callable[[int | None], None], on_photo: Callable[[bool], None]) -> None:
        gui, names = self._gui, self._views
        with gui.add_folder("Test views"):
            self._view = view = gui.add_dropdown("View", (FREE_CAMERA, *names))
            step = gui.add_button_group("Go to", ("Previous", "Next"))
            photo = gui.add_checkbox("Show photo", True)

        @view.on_update
        async def _(event: viser.GuiEvent[Any]) -> None:
            if event.client_id is not None:
                on_view(None if view.value == FREE_CAMERA else names.index(view.value))

        @step.on_click
        async def _(_: viser.GuiEvent[Any]) -> None:
            forward = step.value == "Next"
            if view.value == FREE_CAMERA:
                index = 0 if forward else len(names) - 1
            else:
                index = (names.index(view.value) + (1 if forward else -1)) % len(names)
            view.value = names[index]
            on_view(index)

        @photo.on_update
        async def _(_: viser.GuiEvent[Any]) -> None:
            on_photo(photo.value)
