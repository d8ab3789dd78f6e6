"""Look at an avatar in the browser: turn it, move its face, and let it speak.

    talker view me.avatar
    talker view results/me/avatar --data data/me
    talker view results/me/checkpoints/latest.pt --data data/me

The images are rendered here, by the renderer of `talker render`, and streamed to the page. The
avatar is read again whenever its file changes, so a training can be watched.
"""

import html
import io
import json
import logging
import math
import tempfile
import threading
import time
import wave
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import tyro
import viser
from jaxtyping import Float32, UInt8
from pydantic import Field
from scipy.spatial.transform import Rotation
from torch import Tensor
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from talker.avatar.attention import TOKENS, AttentionMap, color_scales, colored
from talker.avatar.bundle import load_subject, speech_statistics
from talker.avatar.checkpoint import checkpoint_avatar
from talker.avatar.drive import longest_stretch, natural_blinks, ping_pong
from talker.avatar.expression import EXPRESSIONS
from talker.avatar.model import Avatar, Shared
from talker.avatar.rasterize import rasterize
from talker.avatar.renderer import avatar_dataset
from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW
from talker.core.config import AtLeast0, validated
from talker.core.parallel import one_thread
from talker.dataset import Dataset
from talker.encoders import load_encoder
from talker.encoders.features import FeatureStats, avatar_features, windows
from talker.errors import UserError
from talker.media.audio import decode_audio

logger = logging.getLogger(__name__)

MAX_SPEECH = 600
"""Longest speech in seconds; the rest of a longer file is ignored."""
MAX_UPLOAD = 256 * 2**20
"""Size in bytes of the largest audio file that the page may send."""
SECONDS_BETWEEN_LOOKS = 1.0
"""Time in seconds between two looks at the file of the avatar, and the longest time between two
updates of the text about the avatar."""
SHOWN_COMPONENTS = 4
"""Number of components of the mouth whose sliders are visible at once; the others are folded."""
MAX_POSE = 4.0
"""Largest deviation of the head pose that the network receives from the mean pose of the training,
in standard deviations. The images still show the whole rotation, but the network cannot
extrapolate its deformation that far."""
GRAY = 40
"""Gray level behind the head, 0 to 255."""
JPEG_QUALITY = 90
"""Quality of the streamed images, 1 to 100."""
APPEARANCE = "appearance"
"""Name of the view in natural colors; the other views have the names of the tokens."""

SOUND_PANEL = Path(__file__).with_name("view_sound.html")
"""Page of the audio panel, which has its own frame. It sends audio files and the time of its player
to `Viewer.attend`, and receives the audio that it plays."""


@validated
class Config:
    """Options of `talker view`."""

    host: str = "127.0.0.1"
    """Address to listen on. The default accepts connections from this machine only. The page has no
    password, so choose another address only on a network that you trust."""
    port: Annotated[int, Field(ge=1, le=65534)] = 8080
    """Port of the page. If it is in use, the next free port is chosen. The audio uses the port
    after that of the page, which must also be free."""
    size: AtLeast0 = 0
    """Longer side of the rendered images in pixels. The default of 0 selects the size of the
    training images. The size can be changed on the page."""


@dataclass(frozen=True)
class Subject:
    """An avatar as it is in its file now, with what rendering needs."""

    avatar: Avatar
    dataset: Dataset
    statistics: FeatureStats
    shared: Shared
    rest: Float32[np.ndarray, "16 C"]
    """float32 [16, C], speech window of silence"""
    path: np.ndarray
    """int64 [N], recorded frames that are replayed during speech"""

    @classmethod
    def load(cls, file: Path, data: Path | None) -> "Subject":
        """Read an avatar from a checkpoint, an avatar folder or a file of `talker bundle`."""
        if file.suffix == ".pt":
            if data is None:
                raise UserError("To view a checkpoint, also give its dataset folder with `--data`.")
            device = "cuda" if torch.cuda.is_available() else "cpu"
            avatar = checkpoint_avatar(file, device)
            dataset = avatar_dataset(data, avatar)
        else:
            avatar, dataset = load_subject(file, data)
        folder = file.parent if file.suffix == ".pt" else file
        statistics = FeatureStats.load(speech_statistics(folder, dataset, avatar.config.encoder))
        with torch.inference_mode():
            shared = avatar.eval().shared()
        ids = longest_stretch(dataset)
        path = ids[ping_pong(max(1, 2 * len(ids) - 2), len(ids))]
        rest = np.tile(statistics.silence, (WINDOW, 1)).astype(np.float32)
        return cls(avatar, dataset, statistics, shared, rest, path)


@dataclass(frozen=True)
class Speech:
    """New speech, one row for each frame."""

    sound: np.ndarray
    """int16 [S], samples at 16 kHz"""
    windows: Float32[np.ndarray, "N 16 C"]
    """float32 [N, 16, C], speech windows"""
    eye: Float32[np.ndarray, "N"]
    """float32 [N], eye closure from 0 (open) to 1 (closed)"""


@dataclass(frozen=True)
class Moment:
    """What the face does at one time."""

    expression: Tensor
    """[1, 10]"""
    eye: Tensor
    """[1]"""
    viewmat: Float32[np.ndarray, "4 4"]
    """float32 [4, 4], pose of the head in front of the recording camera"""
    frame: int
    """recorded frame whose torso and background are shown"""


class Clock:
    """The time in the speech, as the player in the page reports it."""

    def __init__(self) -> None:
        self.reported = (0.0, 0.0, False)

    def set(self, seconds: float, playing: bool) -> None:
        """Take the time of the player in seconds."""
        self.reported = seconds, time.monotonic(), playing

    @property
    def playing(self) -> bool:
        return self.reported[2]

    def time(self) -> float:
        """Return the present time in the speech in seconds."""
        seconds, at, playing = self.reported
        return seconds + playing * (time.monotonic() - at)


class Controls:
    """The controls of the page."""

    def __init__(self, gui: viser.GuiApi, size: int, sound_port: int, changed: threading.Event):
        page = SOUND_PANEL.read_text(encoding="utf-8").replace("PORT", str(sound_port))
        self.status = gui.add_markdown("")
        with gui.add_folder("Speech"):
            gui.add_html(
                f'<iframe title="Sound" srcdoc="{html.escape(page)}" '
                'style="border:0;width:100%;height:100px;padding:0 0.6em"></iframe>'
            )
            self.motion = gui.add_checkbox("Head motion", True, hint="Replay the recorded motion.")
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
            self.mouth = [self._component(gui, k) for k in range(SHOWN_COMPONENTS)]
            with gui.add_folder("More components of the mouth", expand_by_default=False):
                self.mouth += [
                    self._component(gui, k) for k in range(SHOWN_COMPONENTS, EXPRESSIONS)
                ]
            self.neutral = gui.add_button("Reset pose and face")
        inputs = [self.motion, self.blinks, self.colors, self.body, self.scale, self.size, self.eye]
        for handle in [*inputs, *self.pose, *self.mouth]:
            handle.on_update(lambda _: changed.set())
        self.neutral.on_click(lambda _: self._neutral())

    @staticmethod
    def _component(gui: viser.GuiApi, k: int) -> Any:
        return gui.add_slider(f"Mouth {k + 1}", -3.0, 3.0, 0.05, 0.0)

    def _neutral(self) -> None:
        for handle in [self.eye, *self.pose, *self.mouth]:
            handle.value = 0

    def turn(self) -> Rotation:
        """Return the rotation of the head that the sliders set."""
        yaw, pitch, roll = (handle.value for handle in self.pose)
        return Rotation.from_euler("yxz", [yaw, pitch, -roll], degrees=True)


class Viewer:
    """The state of the page, and the loop that renders its images.

    The world of the page is the space of the head in the first frame of the replayed motion. A
    moving head moves in front of the camera of the page.
    """

    def __init__(self, file: Path, data: Path | None, config: Config) -> None:
        self.file, self.data = file, data
        self.seen = signature(file)
        self.subject = Subject.load(file, data)
        self.speech: Speech | None = None
        self.clock = Clock()
        self.changed = threading.Event()
        self.closed = False
        self.scales: np.ndarray | None = None
        self.drawn: deque[tuple[float, float]] = deque(maxlen=50)
        """Times at which the latest images were started and finished, in seconds."""
        self.server = viser.ViserServer(config.host, config.port, label="talker", verbose=False)
        port = self.server.get_port()
        try:
            self.sounds = serve(self.attend, config.host, port + 1, max_size=MAX_UPLOAD)
        except OSError as error:
            raise UserError(
                f"The port {port + 1} cannot be used for the audio ({error}). Choose another "
                "`--port`."
            ) from error
        threading.Thread(target=self.sounds.serve_forever, daemon=True).start()
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self.server.gui.main_panel.dock_right()
        size = config.size or self.subject.avatar.config.image_size
        self.controls = Controls(self.server.gui, size, port + 1, self.changed)
        self.controls.reset.on_click(lambda event: event.client and self._aim(event.client))
        self.controls.colors.on_update(lambda _: setattr(self, "scales", None))
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
                image = self.image(client.camera, self.moment(self.clock.time() + self.delay()))
                client.scene.set_background_image(image, "jpeg", jpeg_quality=JPEG_QUALITY)
        if clients:
            self.drawn.append((start, time.monotonic()))

    def delay(self) -> float:
        """Return the time in seconds from the choice of a moment to its image."""
        return float(np.median([end - start for start, end in self.drawn])) if self.drawn else 0.0

    def moment(self, seconds: float) -> Moment:
        """Return what the face does at a time of the speech."""
        subject, speech, controls = self.subject, self.speech, self.controls
        window, eye, frame = subject.rest, 0.0, int(subject.path[0])
        if speech is not None and self.clock.time() > 0:
            k = min(int(seconds * FPS), len(speech.windows) - 1)
            window = speech.windows[k]
            eye = float(speech.eye[k]) if controls.blinks.value else 0.0
            if controls.motion.value:
                frame = int(subject.path[k % len(subject.path)])
        device = subject.avatar.device
        mouth = torch.tensor([[handle.value for handle in controls.mouth]])
        expression = subject.avatar.speech_to_expression(torch.from_numpy(window)[None].to(device))
        low, high = subject.avatar.canonical["means"].aminmax(dim=0)
        turn = about(controls.turn(), (low + high).cpu().numpy() / 2)
        return Moment(
            expression=expression + mouth.to(device),
            eye=torch.tensor([max(eye, controls.eye.value)], device=device),
            viewmat=(subject.dataset.viewmats[frame] @ turn).astype(np.float32),
            frame=frame,
        )

    def image(self, camera: viser.CameraHandle, moment: Moment) -> UInt8[np.ndarray, "H W 3"]:
        """Render a moment for the camera of a page, which also determines the shape."""
        dataset, size = self.subject.dataset, int(self.controls.size.value)
        aspect = camera.image_width / max(camera.image_height, 1)
        width, height = (max(2, round(size * min(1, ratio))) for ratio in (aspect, 1 / aspect))
        if self.controls.body.value:
            factor = min(width / dataset.width, height / dataset.height)
            inner = round(factor * dataset.width), round(factor * dataset.height)
            K = np.diag([factor, factor, 1]) @ dataset.K
            behind = cv2.resize(dataset.background(moment.frame), inner)
            image = self.render(moment, moment.viewmat, K, behind)
            left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
            sides = top, height - inner[1] - top, left, width - inner[0] - left
            return cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=(GRAY,) * 3)
        focal = height / 2 / math.tan(camera.fov / 2)
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        moved = np.linalg.inv(dataset.viewmats[self.subject.path[0]]) @ moment.viewmat
        behind = np.full((height, width, 3), GRAY, np.uint8)
        return self.render(moment, viewmat_of(camera) @ moved, K, behind)

    def render(
        self, moment: Moment, viewmat: np.ndarray, K: np.ndarray, behind: np.ndarray
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Render the head over an image, in natural colors or those of the attention."""
        subject, controls = self.subject, self.controls
        avatar, device = subject.avatar, subject.avatar.device
        height, width = behind.shape[:2]
        V, camera, pose = (
            torch.from_numpy(np.asarray(matrix, np.float32))[None].to(device)
            for matrix in (viewmat, K, moment.viewmat)
        )
        face = moment.expression, moment.eye
        token = avatar.pose_vector(pose).clamp(-MAX_POSE, MAX_POSE)
        splats = avatar.deform(*face, V, subject.shared, token)
        splats = splats._replace(scales=splats.scales * controls.scale.value)
        if controls.colors.value == APPEARANCE:
            head = rasterize(splats, V, camera, width, height)
            base = torch.from_numpy(behind).to(device) / 255
            image = head.rgb[0] + (1 - head.alpha[0]) * base
            return image.clamp(0, 1).mul(255).round().byte().cpu().numpy()
        weights = avatar.attention(*face, pose, subject.shared)
        splats = splats._replace(colors=weights[..., :3].contiguous())
        head = rasterize(splats, V, camera, width, height)
        three = head.rgb[0] / head.alpha[0].clamp_min(1e-6)
        maps = torch.cat([three, 1 - three.sum(-1, keepdim=True)], -1).cpu().numpy()
        one = AttentionMap(maps, head.alpha[0, ..., 0].cpu().numpy())
        if self.scales is None:
            self.scales = color_scales([one])
        return colored(one, self.scales)[TOKENS.index(controls.colors.value)]

    def look(self) -> None:
        """Read the avatar again if its file has changed."""
        with suppress(OSError, UserError):  # the file is being replaced: look again later
            if (found := signature(self.file)) != self.seen:
                self.subject = Subject.load(self.file, self.data)
                self.seen, self.scales = found, None
                logger.info("%s has changed and was read again.", self.file)
                self.changed.set()

    def status(self) -> str:
        """Return the text about the avatar."""
        count = len(self.subject.avatar.canonical["means"])
        rows = [f"**{self.file.name}** ({count:,} Gaussians)"]
        if self.clock.playing and len(self.drawn) > 1:
            rate = (len(self.drawn) - 1) / max(self.drawn[-1][1] - self.drawn[0][1], 1e-6)
            rows.append(f"{rate:.0f} frames/s")
        if self.drawn:
            rows.append(f"{1000 * self.delay():.0f} ms per frame")
        return " · ".join(rows)

    def attend(self, connection: ServerConnection) -> None:
        """Take audio files and the time of the player from the audio panel of a page."""
        with suppress(ConnectionClosed):
            if self.speech is not None:
                connection.send(wav_bytes(self.speech.sound))
            for message in connection:
                if isinstance(message, bytes):
                    connection.send("Extracting the speech features")
                    try:
                        self.speech = self.hear(message)
                    except UserError as error:
                        connection.send(str(error))
                        continue
                    self.clock.set(0.0, False)
                    connection.send(wav_bytes(self.speech.sound))
                    connection.send("The speech is ready. Press play.")
                else:
                    with suppress(ValueError, KeyError, TypeError):
                        clock = json.loads(message)
                        played = self.clock.playing
                        self.clock.set(max(0.0, float(clock["time"])), bool(clock["playing"]))
                        if not (played and self.clock.playing):
                            self.changed.set()
        self.clock.set(0.0, False)

    def hear(self, content: bytes) -> Speech:
        """Extract the speech of an audio file of any format.

        Raises:
            UserError: the file contains no audio that can be decoded.
        """
        subject = self.subject
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "sound")
            file.write_bytes(content)
            try:
                sound = decode_audio(file, limit=MAX_SPEECH * SAMPLE_RATE)
            except UserError as error:
                raise UserError(str(error).replace(str(file), "The file")) from error
        sound = np.pad(sound, (0, -len(sound) % SAMPLES_PER_FRAME))
        encoder = load_encoder(subject.statistics.choice)
        slots = avatar_features(encoder, subject.statistics, sound)
        rows = np.concatenate(list(windows(slots, subject.statistics.look_ahead)))
        eye = natural_blinks(subject.dataset.eye[subject.dataset.train_ids], len(rows), seed=0)
        return Speech(sound, rows, eye)

    def close(self) -> None:
        """Close the page and its audio, and end `run`."""
        self.closed = True
        self.changed.set()
        self.sounds.shutdown()
        self.server.stop()

    def _greet(self, client: viser.ClientHandle) -> None:
        self._aim(client)
        client.camera.on_update(lambda _: self.changed.set())
        self.changed.set()

    def _aim(self, client: viser.ClientHandle) -> None:
        """Turn the camera of a page to the head, as the recording camera saw it."""
        dataset = self.subject.dataset
        viewmat = dataset.viewmats[self.subject.path[0]]
        _, down, forward = viewmat[:3, :3]
        position = -viewmat[:3, :3].T @ viewmat[:3, 3]
        center = self.subject.avatar.canonical["means"].mean(0).detach().cpu().numpy()
        aspect = client.camera.image_width / max(client.camera.image_height, 1)
        height = max(dataset.height, dataset.width / aspect)  # the whole width must be visible
        client.camera.up_direction = -down
        client.camera.position = position
        client.camera.look_at = position + forward * ((center - position) @ forward)
        client.camera.fov = 2 * math.atan(height / 2 / float(dataset.K[1, 1]))


def until_next_frame(clock: Clock) -> float:
    """Return the time in seconds until the speech reaches its next frame.

    An image more often than that would show the same frame, and only keep the page busy.
    """
    return (1 - clock.time() * FPS % 1) / FPS


def viewmat_of(camera: viser.CameraHandle) -> np.ndarray:
    """Return the world-to-camera matrix [4, 4] of a page, whose axes are those of OpenCV."""
    viewmat = np.eye(4)
    viewmat[:3, :3] = Rotation.from_quat(camera.wxyz, scalar_first=True).as_matrix().T
    viewmat[:3, 3] = -viewmat[:3, :3] @ camera.position
    return viewmat


def about(turn: Rotation, center: np.ndarray) -> np.ndarray:
    """Return the matrix [4, 4] of a rotation about a point [3]."""
    matrix = np.eye(4)
    matrix[:3, :3] = turn.as_matrix()
    matrix[:3, 3] = center - matrix[:3, :3] @ center
    return matrix


def signature(file: Path) -> Sequence[float]:
    """Return what changes when an avatar is written again: time and size of its file."""
    found = (file / "weights.safetensors" if file.is_dir() else file).stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def wav_bytes(sound: np.ndarray) -> bytes:
    """Return int16 [S] at 16 kHz as the content of a wav file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(sound.astype("<i2").tobytes())
    return buffer.getvalue()


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
    viewer = Viewer(avatar, data, config)
    try:
        viewer.run()
    finally:
        viewer.close()
