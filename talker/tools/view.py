"""Look at an avatar in the browser: turn it, move its face, and let it speak.

    talker view me.avatar
    talker view results/me/avatar --data data/me
    talker view results/me/checkpoints/latest.pt --data data/me

The images are rendered here, by the renderer of `talker render`, and streamed to the page. The
avatar is read again whenever its file changes, so a training can be watched. The scene, the
controls and the audio panel of the page are in talker/tools/view_*.py.
"""

import logging
import math
import threading
import time
import warnings
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
import viser
from pydantic import Field

from talker.avatar.drive import brow_range, relaxed_brows, why_brows_are_still
from talker.clip import FPS
from talker.core.config import AtLeast0, validated
from talker.core.parallel import one_thread
from talker.errors import UserError
from talker.tools.view_controls import Controls
from talker.tools.view_scene import Moment, Scene, free_share
from talker.tools.view_sound import Clock, SoundPanel, Speech, panel_html, read_speech

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
"""Time in seconds between two looks at the file of the avatar, and the longest time between two
updates of the text about the avatar."""
JPEG_QUALITY = 90
"""Quality of the streamed images, 1 to 100."""


@validated
class Config:
    """Options of `talker view`."""

    host: str = "127.0.0.1"
    """Address to listen on. The default accepts connections from this machine only. The page has no
    password, so choose another address only on a network that you trust."""
    port: Annotated[int, Field(ge=1, le=65534)] = 8080
    """Port of the page. If it is in use, the next free port is chosen. The audio uses the port
    that follows it, which must be free, because no other port is tried for the audio."""
    size: AtLeast0 = 0
    """Longer side of the rendered images in pixels. The default of 0 selects the size of the
    training images. The size can be changed on the page."""


class Viewer:
    """The page, and the loop that renders its images."""

    def __init__(self, file: Path, data: Path | None, config: Config) -> None:
        self.scene = Scene(file, data)
        self.changed = threading.Event()
        self.closed = False
        self.drawn: deque[tuple[float, float]] = deque(maxlen=50)
        """Times at which the latest images were started and finished, in seconds."""
        self.server = viser.ViserServer(config.host, config.port, label="talker", verbose=False)
        port = self.server.get_port() + 1
        self.sound = SoundPanel(config.host, port, self._read_speech, self.changed)
        self.clock = self.sound.clock
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self.server.gui.main_panel.dock_right()
        size = config.size or self.scene.subject.avatar.config.image_size
        self.controls = Controls(self.server.gui, size, panel_html(port), self.changed)
        self._show_usable_controls()
        self.controls.reset.on_click(lambda event: event.client and self._aim(event.client))
        self.controls.colors.on_update(lambda _: setattr(self.scene, "scales", None))
        self.server.on_client_connect(self._greet)

    def run(self) -> None:
        """Render an image for each page whenever something changes, until it is closed."""
        looked = time.monotonic()
        with one_thread(), torch.inference_mode():
            while not self.closed:
                playing = self.clock.playing
                self.changed.wait(
                    until_next_frame(self.clock) if playing else SECONDS_BETWEEN_LOOKS
                )
                if playing or self.changed.is_set():
                    self.changed.clear()
                    self.draw()
                if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
                    looked = time.monotonic()
                    self.look()
                    self.controls.status.content = self.status()

    def draw(self) -> None:
        """Render the present moment for each page, and send it."""
        clients = list(self.server.get_clients().values())
        start = time.monotonic()
        for client in clients:
            with suppress(AssertionError):  # raised by a page that has not sent its camera yet
                moment = self.moment(self.clock.time() + self.delay())
                image = self.scene.image(client.camera, moment, self.controls.style())
                client.scene.set_background_image(image, "jpeg", jpeg_quality=JPEG_QUALITY)
                client.flush()  # viser would collect messages for up to 17 ms
        if clients:
            self.drawn.append((start, time.monotonic()))

    def delay(self) -> float:
        """Return the time in seconds from the choice of a moment to its image."""
        return float(np.median([end - start for start, end in self.drawn])) if self.drawn else 0.0

    def moment(self, seconds: float) -> Moment:
        """Return what the face does at a time of the speech."""
        subject, speech, controls = self.scene.subject, self.sound.speech, self.controls
        relaxed = relaxed_brows(subject.dataset)
        window, closure, brows, frame = subject.rest, 0.0, relaxed, int(subject.path[0])
        if speech is not None and self.clock.time() > 0:
            k = min(int(seconds * FPS), len(speech.windows) - 1)
            window = speech.windows[k]
            closure = float(speech.closure[k]) if controls.blinks.value else 0.0
            if controls.motion.value:
                frame = int(subject.path[k % len(subject.path)])
                brows = float(subject.dataset.eye[frame, 1])
        low, high = brow_range(subject.dataset)
        raised = controls.brows.value
        reach = high - relaxed if raised > 0 else relaxed - low
        brows = min(max(brows + reach * raised, low), high)
        eye = max(closure, controls.eye.value), brows
        return self.scene.moment(window, controls.expression(), eye, controls.turn(), frame)

    def look(self) -> None:
        """Read the avatar again if its file has changed."""
        if self.scene.update():
            logger.info("%s has changed and was read again.", self.scene.file)
            self._show_usable_controls()
            self.changed.set()

    def status(self) -> str:
        """Return the text about the avatar."""
        count = len(self.scene.subject.avatar.canonical["means"])
        rows = [f"**{self.scene.file.name}** ({count:,} Gaussians)"]
        if self.clock.playing and len(self.drawn) > 1:
            rate = (len(self.drawn) - 1) / max(self.drawn[-1][1] - self.drawn[0][1], 1e-6)
            rows.append(f"{rate:.0f} frames/s")
        if self.drawn:
            rows.append(f"{1000 * self.delay():.0f} ms per frame")
        return " · ".join(rows)

    def close(self) -> None:
        """Close the page and its audio, and end `run`."""
        self.closed = True
        self.changed.set()
        self.sound.close()
        self.server.stop()

    def _read_speech(self, content: bytes) -> Speech:
        subject = self.scene.subject
        return read_speech(content, subject.dataset, subject.statistics)

    def _show_usable_controls(self) -> None:
        """Hide the slider of the brows if they cannot move."""
        subject = self.scene.subject
        self.controls.brows.visible = not why_brows_are_still(subject.avatar, subject.dataset)

    def _greet(self, client: viser.ClientHandle) -> None:
        self._aim(client)
        client.camera.on_update(lambda _: self.changed.set())
        self.changed.set()

    def _aim(self, client: viser.ClientHandle) -> None:
        """Turn the camera of a page to the head, as the recording camera saw it."""
        subject = self.scene.subject
        dataset = subject.dataset
        viewmat = dataset.viewmats[subject.path[0]]
        _, down, forward = viewmat[:3, :3]
        position = -viewmat[:3, :3].T @ viewmat[:3, 3]
        center = subject.avatar.canonical["means"].mean(0).detach().cpu().numpy()
        aspect = client.camera.image_width / max(client.camera.image_height, 1)
        # the whole recorded view must be visible
        height = max(dataset.height / free_share(aspect), dataset.width / aspect)
        client.camera.up_direction = -down
        client.camera.position = position
        client.camera.look_at = position + forward * ((center - position) @ forward)
        client.camera.fov = 2 * math.atan(height / 2 / float(dataset.K[1, 1]))


def until_next_frame(clock: Clock) -> float:
    """Return the time in seconds until the speech reaches its next frame.

    An image more often than that would show the same frame, and only keep the page busy.
    """
    return (1 - clock.time() * FPS % 1) / FPS


def main(
    avatar: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="AVATAR")],
    *,
    data: Path | None = None,
    config: Config = Config(),
) -> None:
    """Show an avatar in the browser, where you can turn it, move its face and let it speak.

    The page is updated whenever the file of the avatar changes, so you can watch an avatar while it
    trains.

    Args:
        avatar: File written by `talker bundle`, avatar folder written by `talker train`, or
            checkpoint of a training run (latest.pt).
        data: Dataset folder. It is not needed if the avatar is a file written by `talker bundle`.
        config: Options.
    """
    if not avatar.exists():
        raise UserError(f"{avatar} does not exist.")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "Queued a .* on a closed connection")  # a page was closed
    viewer = Viewer(avatar, data, config)
    try:
        viewer.run()
    finally:
        viewer.close()
