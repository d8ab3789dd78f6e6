"""The synthetic subject: a talking person in front of a camera, with exact ground truth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from talker.core.files import atomic_write
from talker.core.parallel import ordered_map
from talker.errors import UserError
from talker.head.landmarks68 import landmarks68
from talker.head.morphable import MorphableHead
from talker.synthetic import person
from talker.synthetic.acting import Motion, Phoneme, animate
from talker.synthetic.plate import make_plate
from talker.synthetic.raster import PersonRenderer

DISTANCE = 8.5
"""Distance from the camera to the face in dm."""
FOCAL_OVER_SIZE = 2.35
"""Focal length divided by the image size."""
FACE_RAISE = 0.12
"""Height of the face's center above the image center in dm."""
NECK_JOINT = np.array([0.0, -0.75, -1.05])
"""Center of the head's rotation in head coordinates, in dm."""
CAMERA_AXES = np.diag([1.0, -1.0, -1.0])
"""Rotation from the room's axes (y up) to the OpenCV camera's (y down)."""


@dataclass(frozen=True)
class GroundTruth:
    """The exact properties of T frames of the synthetic clip, saved as an .npz file."""

    viewmats: np.ndarray
    """float64 [T, 4, 4], OpenCV world-to-camera transforms, dm; the head is fixed in the world"""
    focal: float
    """focal length in pixels; the principal point is the image center"""
    landmarks: np.ndarray
    """float32 [T, 478, 2], MediaPipe's face mesh in pixels"""
    landmarks68: np.ndarray
    """float32 [T, 68, 2], iBUG landmarks in pixels"""
    mesh: np.ndarray
    """float32 [T, 478, 3], the landmarks in head coordinates, dm"""
    masks: np.ndarray
    """uint8 [T, H, W]: 0 background, 1 head with hair and ears, 2 neck, 3 torso"""
    plate: np.ndarray
    """uint8 [H, W, 3], the background without the person"""
    blink: np.ndarray
    """float32 [T], eyelid closure: 0 open, 1 closed"""
    mouth_open: np.ndarray
    """float32 [T], distance between the inner lips, dm"""
    weights: np.ndarray
    """float32 [T, 52], weights of the face units, 0..1"""
    units: np.ndarray
    """str [52], names of the face units"""
    vertices: np.ndarray
    """float32 [V, 3], head and neck with the mean expression of the clip, dm"""
    faces: np.ndarray
    """int32 [F, 3], triangles of `vertices`"""

    def save(self, path: Path) -> None:
        """Write the ground truth as a compressed .npz file."""
        with atomic_write(path) as (scratch,):
            np.savez_compressed(scratch, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "GroundTruth":
        """Read a file written by `save`.

        Raises:
            UserError: the file is missing, damaged or of another kind.
        """
        try:
            with np.load(path) as archive:
                values: dict[str, Any] = {f.name: archive[f.name] for f in fields(cls)}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path} cannot be read as the ground truth of a synthetic clip ({error}). "
                "Write it again with `talker synthesize`."
            ) from error
        values["focal"] = float(values["focal"])
        return cls(**values)


@dataclass(frozen=True)
class SyntheticSubject:
    """A person who talks in front of a fixed camera."""

    head: MorphableHead
    neutral: np.ndarray
    """float32 [V, 3], vertices with a neutral expression, dm"""
    motion: Motion
    renderer: PersonRenderer

    @classmethod
    def create(
        cls, phonemes: Sequence[Phoneme], frames: int, size: int = 512, seed: int = 0
    ) -> "SyntheticSubject":
        """Return a subject who speaks `phonemes` in `frames` images of `size` x `size` pixels.

        The same arguments give the same clip.
        """
        head = MorphableHead.load()
        neutral = person.shape(head)
        focal = FOCAL_OVER_SIZE * size
        return cls(
            head=head,
            neutral=neutral,
            motion=animate(phonemes, frames, head.expression_names, NECK_JOINT, seed),
            renderer=PersonRenderer(head, neutral, make_plate(size, seed), focal, seed),
        )

    @property
    def viewmats(self) -> np.ndarray:
        """Head-to-camera transforms float64 [T, 4, 4], OpenCV, dm."""
        return _to_camera(self.motion.head)

    def vertices(self, frame: int) -> np.ndarray:
        """Return the vertices [V, 3] with the frame's expression, in head coordinates, dm."""
        offsets = np.tensordot(self.motion.weights[frame], self.head.expressions, 1)
        return self.neutral + offsets

    def render(self, body_only: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the image and mask of each frame, rendered in threads.

        See `PersonRenderer.render` for their shapes and for `body_only`.
        """
        torsos = _to_camera(self.motion.torso)

        def render_frame(i: int) -> tuple[np.ndarray, np.ndarray]:
            return self.renderer.render(
                self.vertices(i), self.viewmats[i], torsos[i], body_only=body_only
            )

        return ordered_map(render_frame, range(len(torsos)))

    def ground_truth(self, masks: np.ndarray) -> GroundTruth:
        """Return the clip's ground truth; `masks` uint8 [T, H, W] come from `render`."""
        frames = len(masks)
        smooth = self.renderer.smooth_vertices
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
        mean = self.motion.weights.mean(0)
        mean_shape = smooth(self.neutral + np.tensordot(mean, self.head.expressions, 1))
        used, faces = np.unique(
            self.renderer.surface.head_and_neck(self.head.faces), return_inverse=True
        )
        return GroundTruth(
            viewmats=self.viewmats,
            focal=self.renderer.focal,
            landmarks=pixels,
            landmarks68=landmarks68(pixels),
            mesh=meshes,
            masks=masks,
            plate=self.renderer.plate,
            blink=self.motion.blink,
            mouth_open=np.linalg.norm(meshes[:, upper] - meshes[:, lower], axis=1),
            weights=self.motion.weights,
            units=np.array(self.head.expression_names),
            vertices=mean_shape[used],
            faces=faces.reshape(-1, 3).astype(np.int32),
        )


def _to_camera(to_room: np.ndarray) -> np.ndarray:
    """Return object-to-camera transforms [T, 4, 4] of object-to-room transforms."""
    camera = to_room.copy()
    camera[:, :3, 3] += [0.0, FACE_RAISE, -DISTANCE]
    camera[:, :3] = CAMERA_AXES @ camera[:, :3]
    return camera
