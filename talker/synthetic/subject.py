"""The synthetic subject: a person who acts before a camera, and the exact truth of each frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from talker.core.files import replacing
from talker.core.parallel import ordered_map
from talker.errors import UserError
from talker.head.landmarks68 import landmarks68
from talker.head.morphable import MorphableHead
from talker.synthetic import person
from talker.synthetic.acting import Performance, Sound, perform
from talker.synthetic.plate import make_plate
from talker.synthetic.raster import Renderer

DISTANCE = 8.5  # dm from the camera to the face
FOCAL_OVER_SIZE = 2.35
RAISED = 0.12  # dm from the image centre up to the face's centre
NECK_JOINT = np.array([0.0, -0.75, -1.05])
CAMERA_AXES = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Truth:
    """What is known about each of T frames of the synthetic clip; saved as an .npz."""

    viewmats: np.ndarray
    """float64 [T, 4, 4], OpenCV world to camera, dm; the head is fixed in the world"""
    focal: float
    """pixels; the principal point is the image centre"""
    landmarks: np.ndarray
    """float32 [T, 478, 2], pixels"""
    landmarks68: np.ndarray
    """float32 [T, 68, 2], pixels"""
    mesh: np.ndarray
    """float32 [T, 478, 3], the landmarks in the head's coordinates, dm"""
    masks: np.ndarray
    """uint8 [T, H, W]: 0 background, 1 head with hair and ears, 2 neck, 3 torso"""
    plate: np.ndarray
    """uint8 [H, W, 3], the scene without the person"""
    blink: np.ndarray
    """float32 [T], 0 open .. 1 closed"""
    mouth_open: np.ndarray
    """float32 [T], distance between the inner lips, dm"""
    weights: np.ndarray
    """float32 [T, 52], face units"""
    units: np.ndarray
    """str [52], names of the face units"""
    vertices: np.ndarray
    """float32 [V, 3], head and neck with the clip's mean expression, dm"""
    faces: np.ndarray
    """int32 [F, 3]"""

    def save(self, path: Path) -> None:
        with replacing(path) as (scratch,):
            np.savez_compressed(scratch, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """Read a saved truth; UserError if the file is missing or of another kind."""
        try:
            with np.load(path) as archive:
                values: dict[str, Any] = {f.name: archive[f.name] for f in fields(cls)}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: cannot be read as a synthetic truth ({error})") from error
        values["focal"] = float(values["focal"])
        return cls(**values)


@dataclass(frozen=True)
class Subject:
    """A person who acts for `frames` frames in front of a fixed camera."""

    head: MorphableHead
    neutral: np.ndarray
    performance: Performance
    renderer: Renderer

    @classmethod
    def make(
        cls, sounds: Sequence[Sound], frames: int, size: int = 512, seed: int = 0
    ) -> "Subject":
        """Cast a person to speak `sounds` in images of `size` pixels; same seed, same clip."""
        head = MorphableHead.load()
        neutral = person.shape(head)
        focal = FOCAL_OVER_SIZE * size
        return cls(
            head=head,
            neutral=neutral,
            performance=perform(sounds, frames, head.expression_names, NECK_JOINT, seed),
            renderer=Renderer(head, neutral, make_plate(size, seed), focal, seed),
        )

    @property
    def viewmats(self) -> np.ndarray:
        """float64 [T, 4, 4], from the head's coordinates to the OpenCV camera, dm."""
        return _cameras(self.performance.head)

    def vertices(self, frame: int) -> np.ndarray:
        """The posed vertices [V, 3] of a frame, in the head's coordinates."""
        offsets = np.tensordot(self.performance.weights[frame], self.head.expressions, 1)
        return self.neutral + offsets

    def film(self, body_only: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each frame's image and mask (see `Renderer.render`), drawn on all cores."""
        torsos = _cameras(self.performance.torso)

        def draw(i: int) -> tuple[np.ndarray, np.ndarray]:
            return self.renderer.render(
                self.vertices(i), self.viewmats[i], torsos[i], body_only=body_only
            )

        return ordered_map(draw, range(len(torsos)))

    def truth(self, masks: np.ndarray) -> Truth:
        """Everything known about the clip; `masks` uint8 [T, H, W] come from `film`."""
        frames = len(masks)
        smooth = self.renderer.smooth
        meshes = np.stack(
            [self.head.landmarks(smooth(self.vertices(i))) for i in range(frames)]
        ).astype(np.float32)
        pixels = np.stack(
            [
                self.renderer.project(mesh, view)[:, :2]
                for mesh, view in zip(meshes, self.viewmats, strict=True)
            ]
        )
        upper, lower = person.INNER_LIPS
        mean = self.performance.weights.mean(0)
        mean_shape = smooth(self.neutral + np.tensordot(mean, self.head.expressions, 1))
        used, faces = np.unique(
            self.renderer.surface.head_only(self.head.faces), return_inverse=True
        )
        return Truth(
            viewmats=self.viewmats,
            focal=self.renderer.focal,
            landmarks=pixels,
            landmarks68=landmarks68(pixels),
            mesh=meshes,
            masks=masks,
            plate=self.renderer.plate,
            blink=self.performance.blink,
            mouth_open=np.linalg.norm(meshes[:, upper] - meshes[:, lower], axis=1),
            weights=self.performance.weights,
            units=np.array(self.head.expression_names),
            vertices=mean_shape[used],
            faces=faces.reshape(-1, 3).astype(np.int32),
        )


def _cameras(rooms: np.ndarray) -> np.ndarray:
    """OpenCV matrices [T, 4, 4] from object to camera, of matrices from object to room."""
    camera = rooms.copy()
    camera[:, :3, 3] += [0.0, RAISED, -DISTANCE]
    camera[:, :3] = CAMERA_AXES @ camera[:, :3]
    return camera
