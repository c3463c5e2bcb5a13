"""The viewer's controls of time in one browser tab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import viser

from flexgs_lightning.deploy.timeline import Playhead

_PLAY, _PAUSE = "Play", "Pause"
_BACK, _ON = "Frame back", "Frame on"
_FASTEST = 4.0


class TimelinePanel:
    """Time, play, loop, steps, speed and "what moves", where the scene moves; nothing where it does not.

    Args:
        gui: the tab's own controls.
        head: where time stands; None of a scene that stands still.
        on_change: called with what is to be done to the playhead, for the thread that owns it.
        on_lit: called with whether what moves is to be shown in place of colours.
    """

    def __init__(
        self,
        gui: viser.GuiApi,
        head: Playhead | None,
        on_change: Callable[[Callable[[Playhead], None]], None],
        on_lit: Callable[[bool], None],
    ) -> None:
        self._slider: viser.GuiSliderHandle[float] | None = None
        if head is None:
            return
        with gui.add_folder("Time"):
            self._add_time(gui, head, on_change)
            lit = gui.add_checkbox("Show what moves", False, hint="The faster, the brighter.")

        @lit.on_update
        async def _(_: viser.GuiEvent[Any]) -> None:
            on_lit(lit.value)

    def show(self, head: Playhead) -> None:
        """State where time stands; calls nothing."""
        if self._slider is not None:
            self._slider.value = head.time * head.seconds
            self._play.label = _PAUSE if head.playing else _PLAY

    def _add_time(
        self, gui: viser.GuiApi, head: Playhead, on_change: Callable[[Callable[[Playhead], None]], None]
    ) -> None:
        self._slider = slider = gui.add_slider(
            "Time in s", min=0.0, max=head.seconds, step=head.seconds / 1000, initial_value=0.0
        )
        self._play = play = gui.add_button(_PLAY)
        steps = gui.add_button_group("Step", (_BACK, _ON))
        loop = gui.add_checkbox("Loop", head.loop)
        speed = gui.add_slider("Speed", min=-_FASTEST, max=_FASTEST, step=0.25, initial_value=head.speed)

        def changed(change: Callable[[Playhead], None]) -> None:
            def then_shown(head: Playhead) -> None:
                change(head)
                self.show(head)

            on_change(then_shown)

        @slider.on_update
        async def _(event: viser.GuiEvent[Any]) -> None:
            if event.client_id is not None:
                time = slider.value / head.seconds
                on_change(lambda head: setattr(head, "time", time))

        @play.on_click
        async def _(_: viser.GuiEvent[Any]) -> None:
            changed(Playhead.toggle)

        @steps.on_click
        async def _(_: viser.GuiEvent[Any]) -> None:
            frames = 1 if steps.value == _ON else -1
            changed(lambda head: head.step(frames))

        @loop.on_update
        async def _(_: viser.GuiEvent[Any]) -> None:
            wanted = loop.value
            on_change(lambda head: setattr(head, "loop", wanted))

        @speed.on_update
        async def _(_: viser.GuiEvent[Any]) -> None:
            wanted = speed.value
            on_change(lambda head: setattr(head, "speed", wanted))
