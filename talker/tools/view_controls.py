"""The controls of `talker view` on its page."""

import threading
from typing import Any

import torch
import viser
from scipy.spatial.transform import Rotation
from torch import Tensor

from talker.avatar.attention import TOKENS
from talker.avatar.expression import EXPRESSIONS
from talker.tools.view_scene import APPEARANCE, Style

SHOWN_COMPONENTS = 4
"""Number of components of the mouth whose sliders are visible at once; the others are folded."""


class Controls:
    """The controls of the page.

    Args:
        gui: panel of the page.
        size: longer side of the rendered images in pixels, until it is changed on the page.
        sound: HTML of the audio panel.
        changed: event that is set when the picture has to change.
    """

    def __init__(self, gui: viser.GuiApi, size: int, sound: str, changed: threading.Event) -> None:
        self.status = gui.add_markdown("")
        with gui.add_folder("Speech"):
            gui.add_html(sound)
            self.motion = gui.add_checkbox(
                "Head motion", True, hint="Replay the motion of head and brows."
            )
            self.blinks = gui.add_checkbox("Blinks", True, hint="Blink as the person does.")
        with gui.add_folder("View"):
            self.colors = gui.add_dropdown(
                "Colors",
                (APPEARANCE, *TOKENS),
                hint="Show how much each part attends to the speech, the eyes, the head pose or "
                "none of them (null): blue means little, red means a lot.",
            )
            self.body = gui.add_checkbox(
                "Torso", False, hint="Show the recorded view, with torso and background."
            )
            self.scale = gui.add_slider("Splat size", 0.05, 1.0, 0.05, 1.0)
            self.size = gui.add_slider("Resolution", 64, max(1024, size), 16, size)
            self.reset = gui.add_button("Reset the view")
        with gui.add_folder("Pose"):
            self.pose = [gui.add_slider(n, -45, 45, 1, 0) for n in ("Yaw", "Pitch", "Roll")]
        with gui.add_folder("Face"):
            self.eye = gui.add_slider("Blink", 0.0, 1.0, 0.02, 0.0)
            self.brows = gui.add_slider(
                "Brows",
                *(-1.0, 1.0, 0.02, 0.0),
                hint="Lower or raise the brows, at most as far as in the recording.",
            )
            self.mouth = [self._component(gui, k) for k in range(SHOWN_COMPONENTS)]
            with gui.add_folder("More components of the mouth", expand_by_default=False):
                self.mouth += [
                    self._component(gui, k) for k in range(SHOWN_COMPONENTS, EXPRESSIONS)
                ]
            self.neutral = gui.add_button("Reset pose and face")
        inputs = [self.motion, self.blinks, self.colors, self.body, self.scale, self.size, self.eye]
        for handle in [*inputs, self.brows, *self.pose, *self.mouth]:
            handle.on_update(lambda _: changed.set())
        self.neutral.on_click(lambda _: self._neutral())

    @staticmethod
    def _component(gui: viser.GuiApi, k: int) -> Any:
        return gui.add_slider(f"Mouth {k + 1}", -3.0, 3.0, 0.05, 0.0)

    def _neutral(self) -> None:
        for handle in [self.eye, self.brows, *self.pose, *self.mouth]:
            handle.value = 0

    def turn(self) -> Rotation:
        """Return the rotation of the head that the sliders set."""
        yaw, pitch, roll = (handle.value for handle in self.pose)
        return Rotation.from_euler("yxz", [yaw, pitch, -roll], degrees=True)

    def expression(self) -> Tensor:
        """Return the values [1, 10] that the sliders add to the expression."""
        return torch.tensor([[handle.value for handle in self.mouth]])

    def style(self) -> Style:
        """Return how the page shows the avatar."""
        return Style(self.colors.value, self.body.value, self.scale.value, int(self.size.value))
