"""What the pages of `talker view` show: an avatar, and the images of it."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import viser
from jaxtyping import Float32, UInt8
from scipy.spatial.transform import Rotation
from torch import Tensor

from talker.avatar.attention import TOKENS, AttentionMap, color_scales, colored
from talker.avatar.bundle import load_subject, speech_statistics
from talker.avatar.checkpoint import checkpoint_avatar
from talker.avatar.drive import longest_stretch, ping_pong
from talker.avatar.model import Avatar, Shared
from talker.avatar.rasterize import rasterize
from talker.avatar.renderer import avatar_dataset
from talker.clip import WINDOW
from talker.dataset import Dataset
from talker.encoders.features import FeatureStats
from talker.errors import UserError

MAX_POSE = 4.0
"""Largest deviation of the head pose that the network receives from the mean pose of the training,
in standard deviations. The images still show the whole rotation, but the network cannot
extrapolate its deformation that far."""
GRAY = 40
"""Gray level behind the head, 0 to 255."""
PHONE = 0.75
"""Width of a page over its height below which it is considered a phone. There, viser shows its
panel over the lower part of the page, and not next to the image."""
FREE_ON_PHONE = 0.4
"""Share of the height of a phone that this panel never covers. The head is shown there."""
APPEARANCE = "appearance"
"""Name of the view in natural colors; the other views have the names of the tokens."""


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
class Moment:
    """What the face does at one time."""

    expression: Tensor
    """[1, 10]"""
    eye: Tensor
    """[1, 2], eye closure and raise of the brows"""
    viewmat: Float32[np.ndarray, "4 4"]
    """float32 [4, 4], pose of the head in front of the recording camera"""
    frame: int
    """recorded frame whose torso and background are shown"""


@dataclass(frozen=True)
class Style:
    """How a moment is shown."""

    colors: str
    """`APPEARANCE`, or the token whose attention is shown"""
    body: bool
    """whether to show the recorded view, with torso and background"""
    scale: float
    """factor of the size of the Gaussians"""
    size: int
    """longer side of the image in pixels"""


class Scene:
    """An avatar that is read again when its file changes, and the images of it.

    The world of the page is the space of the head in the first frame of the replayed motion. A
    moving head moves in front of the camera of the page.
    """

    def __init__(self, file: Path, data: Path | None) -> None:
        self.file, self.data = file, data
        self.seen = signature(file)
        self.subject = Subject.load(file, data)
        self.scales: np.ndarray | None = None
        """Ranges of the colors of the attention; None until the first image with these colors."""

    def update(self) -> bool:
        """Read the avatar again if its file has changed, and return whether it was read."""
        with suppress(OSError, UserError):  # the file is being replaced: look again later
            if (found := signature(self.file)) != self.seen:
                self.subject = Subject.load(self.file, self.data)
                self.seen, self.scales = found, None
                return True
        return False

    def moment(
        self,
        window: np.ndarray,
        mouth: Tensor,
        eye: tuple[float, float],
        turn: Rotation,
        frame: int,
    ) -> Moment:
        """Return what the face does.

        Args:
            window: float32 [16, C], speech window.
            mouth: [1, 10], values that are added to the predicted expression.
            eye: eye closure (0 open .. 1 closed) and raise of the brows (-1 .. 1).
            turn: rotation of the head about its center, in addition to the recorded motion.
            frame: recorded frame with the motion, the torso and the background.
        """
        avatar = self.subject.avatar
        device = avatar.device
        expression = avatar.speech_to_expression(torch.from_numpy(window)[None].to(device))
        low, high = avatar.canonical["means"].aminmax(dim=0)
        turned = about(turn, (low + high).cpu().numpy() / 2)
        return Moment(
            expression=expression + mouth.to(device),
            eye=torch.tensor([eye], device=device),
            viewmat=(self.subject.dataset.viewmats[frame] @ turned).astype(np.float32),
            frame=frame,
        )

    def image(
        self, camera: viser.CameraHandle, moment: Moment, style: Style
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Render a moment for the camera of a page, which also determines the shape."""
        dataset = self.subject.dataset
        aspect = camera.image_width / max(camera.image_height, 1)
        width, height = (
            max(2, round(style.size * min(1, ratio))) for ratio in (aspect, 1 / aspect)
        )
        free = round(height * free_share(aspect))
        if style.body:
            factor = min(width / dataset.width, free / dataset.height)
            inner = round(factor * dataset.width), round(factor * dataset.height)
            K = np.diag([factor, factor, 1]) @ dataset.K
            behind = cv2.resize(dataset.background(moment.frame), inner)
            image = self.render(moment, moment.viewmat, K, behind, style)
            left, top = (width - inner[0]) // 2, (free - inner[1]) // 2
            sides = top, height - inner[1] - top, left, width - inner[0] - left
            return cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=(GRAY,) * 3)
        focal = height / 2 / math.tan(camera.fov / 2)
        K = np.array([[focal, 0, width / 2], [0, focal, free / 2], [0, 0, 1]])
        moved = np.linalg.inv(dataset.viewmats[self.subject.path[0]]) @ moment.viewmat
        behind = np.full((height, width, 3), GRAY, np.uint8)
        return self.render(moment, viewmat_of(camera) @ moved, K, behind, style)

    def render(
        self, moment: Moment, viewmat: np.ndarray, K: np.ndarray, behind: np.ndarray, style: Style
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Render the head over an image, in natural colors or those of the attention."""
        subject = self.subject
        avatar, device = subject.avatar, subject.avatar.device
        height, width = behind.shape[:2]
        V, camera, pose = (
            torch.from_numpy(np.asarray(matrix, np.float32))[None].to(device)
            for matrix in (viewmat, K, moment.viewmat)
        )
        face = moment.expression, moment.eye
        token = avatar.pose_vector(pose).clamp(-MAX_POSE, MAX_POSE)
        splats = avatar.deform(*face, V, subject.shared, token)
        splats = splats._replace(scales=splats.scales * style.scale)
        if style.colors == APPEARANCE:
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
        return colored(one, self.scales)[TOKENS.index(style.colors)]


def free_share(aspect: float) -> float:
    """Return the share of the height of a page, from its top, in which the avatar is shown.

    Args:
        aspect: width of the page over its height.
    """
    return FREE_ON_PHONE if aspect < PHONE else 1.0


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
    """Return what changes when an avatar is written again: time, size and inode of its file."""
    found = (file / "weights.safetensors" if file.is_dir() else file).stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
