"""Render the synthetic subject over its background: camera, shadows and antialiasing."""

import numpy as np

from talker.head.morphable import MorphableHead, vertex_normals
from talker.head.zbuffer import zbuffer
from talker.synthetic.paint import paint_all
from talker.synthetic.person import INNER_LIPS
from talker.synthetic.shading import KEY, resolve, shade
from talker.synthetic.surface import HEAD, Surface

SUPERSAMPLING = 2
"""Samples per pixel along each axis."""
PIXELS_PER_HAIR_LAYER = 26
"""Image height in pixels for which the hair gets one more layer."""
FULLY_LIT_OPENING = 0.15
"""Distance between the lips, in dm, from which the inside of the mouth is fully lit."""
SHADOW_SIZE, SHADOW_WIDTH = 640, 4.4
"""Width of the shadow map in texels and in dm."""
SHADOW_DISTANCE = 100.0
"""Distance of the shadow map's camera in dm; its rays are almost parallel."""


class PersonRenderer:
    """Renders one person with a fixed camera.

    Args:
        head: the head model.
        neutral: float32 [V, 3], the person's vertices with a neutral expression.
        plate: uint8 [H, W, 3], the background.
        focal: focal length in pixels; the principal point is the image center.
        seed: seed of the textures.
    """

    def __init__(
        self, head: MorphableHead, neutral: np.ndarray, plate: np.ndarray, focal: float, seed: int
    ) -> None:
        self.head = head
        self.plate = plate
        self.focal = focal
        height, width = plate.shape[:2]
        self.center = np.array([width / 2, height / 2])
        self.surface = Surface(head, neutral, max(8, height // PIXELS_PER_HAIR_LAYER))
        self.textures = paint_all(self.surface, head, height, np.random.default_rng(seed))
        self.cutouts = self.surface.cutouts(self.textures)

    def project(self, vertices: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Project vertices [V, 3] by the camera `view` [4, 4]: x, y in pixels and depth [V, 3]."""
        camera = vertices @ view[:3, :3].T + view[:3, 3]
        pixels = camera[:, :2] / camera[:, 2:] * self.focal + self.center
        return np.column_stack([pixels, camera[:, 2]]).astype(np.float32)

    def smooth_vertices(self, vertices: np.ndarray) -> np.ndarray:
        """Return the model's vertices [V, 3] on the subdivided surface that is rendered."""
        return self.surface.subdivision(vertices)[: len(vertices)]

    def render(
        self, vertices: np.ndarray, head: np.ndarray, torso: np.ndarray, body_only: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render the person over the plate.

        Args:
            vertices: [V, 3], with the frame's expression, in head coordinates.
            head: [4, 4], head-to-camera transform (OpenCV: x right, y down, z forward).
            torso: [4, 4], the same for the torso.
            body_only: leave the head out, which uncovers the neck behind it.

        Returns:
            The image uint8 [H, W, 3] and the mask uint8 [H, W]: 0 background, 1 head, 2 neck,
            3 torso.
        """
        surface = self.surface
        fine = surface.subdivision(vertices)
        placed = fine[surface.source] + surface.offset
        with_head, with_torso = (placed @ m[:3, :3].T + m[:3, 3] for m in (head, torso))
        follows = surface.head_weight
        camera = (follows * with_head + (1 - follows) * with_torso).astype(np.float32)
        normals = vertex_normals(camera[: len(fine)], surface.subdivision.faces)[surface.source]
        normals[surface.cloth_vertices] = surface.cloth_normals @ torso[:3, :3].T
        tangents = surface.hair_tangents @ head[:3, :3].T
        upper, lower = self.head.landmarks(vertices)[list(INNER_LIPS)]
        opened = min(np.linalg.norm(upper - lower) / FULLY_LIT_OPENING, 1.0)
        openness = np.maximum(surface.openness, opened * surface.mouth_light)

        to_shadow = _shadow_camera(head)
        light_points = camera @ to_shadow[:, :3].T + to_shadow[:, 3]
        casts = self.cutouts.only(surface.shadow_casters)
        shadow = zbuffer(
            light_points, surface.faces[surface.shadow_casters], SHADOW_SIZE, SHADOW_SIZE, casts
        )[2]

        chosen = np.flatnonzero(surface.labels != HEAD) if body_only else slice(None)
        faces, cutouts = surface.faces[chosen], self.cutouts.only(chosen)
        points = self.project(camera, np.eye(4))
        points[:, :2] *= SUPERSAMPLING
        image = self.plate.repeat(SUPERSAMPLING, 0).repeat(SUPERSAMPLING, 1).astype(np.float32)
        height, width = image.shape[:2]
        face, weights, _ = zbuffer(points, faces, height, width, cutouts)
        shade(
            face,
            weights,
            faces,
            cutouts.uvs,
            cutouts.texture,
            self.textures,
            camera,
            normals.astype(np.float32),
            tangents.astype(np.float32),
            openness.astype(np.float32),
            shadow,
            to_shadow,
            image,
        )
        label = np.where(face < 0, 0, surface.labels[chosen][face]).astype(np.uint8)
        return resolve(image, label, SUPERSAMPLING)


def _shadow_camera(head: np.ndarray) -> np.ndarray:
    """Return the projection [3, 4] from camera space to the shadow map's texels and depth."""
    forward = -np.array(KEY)
    side = np.cross([0.0, 1.0, 0.0], forward)
    side /= np.linalg.norm(side)
    axes = np.stack([side, np.cross(forward, side), forward])
    middle = axes @ (head[:3, 3] + [0.0, 0.5, 0.6])
    scale = np.array([SHADOW_SIZE / SHADOW_WIDTH] * 2 + [1.0])
    shift = np.array([SHADOW_SIZE / 2, SHADOW_SIZE / 2, SHADOW_DISTANCE]) - scale * middle
    return np.column_stack([scale[:, None] * axes, shift]).astype(np.float32)
