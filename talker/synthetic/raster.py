"""Draws the synthetic subject before its background: camera, motion, shadows, antialiasing."""

import numpy as np

from talker.head.morphable import MorphableHead, vertex_normals
from talker.head.zbuffer import zbuffer
from talker.synthetic.paint import paint_all
from talker.synthetic.person import INNER_LIPS
from talker.synthetic.shading import KEY, resolve, shade
from talker.synthetic.surface import HEAD, Surface

SUPERSAMPLING = 2
PIXELS_PER_HAIR_LAYER = 26
WIDE_OPEN = 0.15  # dm between the lips at which the mouth is fully lit
SHADOW_SIZE, SHADOW_WIDTH = 640, 4.4  # texels, dm
SHADOW_DISTANCE = 100.0  # dm: the rays are almost parallel


class Renderer:
    """Draws one person with a fixed camera.

    Args:
        head: the model.
        neutral: float32 [V, 3], the person's shape.
        plate: uint8 [H, W, 3], the background.
        focal: in pixels; the principal point is the image centre.
        seed: of the painted textures.
    """

    def __init__(
        self, head: MorphableHead, neutral: np.ndarray, plate: np.ndarray, focal: float, seed: int
    ) -> None:
        self.head = head
        self.plate = plate
        self.focal = focal
        height, width = plate.shape[:2]
        self.centre = np.array([width / 2, height / 2])
        self.surface = Surface(head, neutral, max(8, height // PIXELS_PER_HAIR_LAYER))
        self.textures = paint_all(self.surface, head, height, np.random.default_rng(seed))
        self.cutouts = self.surface.cutouts(self.textures)

    def project(self, vertices: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Pixels x, y and depth, float32 [V, 3], of vertices [V, 3] seen by `view` [4, 4]."""
        camera = vertices @ view[:3, :3].T + view[:3, 3]
        pixels = camera[:, :2] / camera[:, 2:] * self.focal + self.centre
        return np.column_stack([pixels, camera[:, 2]]).astype(np.float32)

    def smooth(self, vertices: np.ndarray) -> np.ndarray:
        """Where the model's vertices [V, 3] lie on the surface that is drawn."""
        return self.surface.fine(vertices)[: len(vertices)]

    def render(
        self, vertices: np.ndarray, head: np.ndarray, torso: np.ndarray, body_only: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the person over the plate.

        Args:
            vertices: posed, [V, 3].
            head: [4, 4], from the head's coordinates to the camera (x right, y down, z away).
            torso: [4, 4], the same for the shoulders.
            body_only: leave the head out, and see the neck that it hides.

        Returns:
            image uint8 [H, W, 3] and mask uint8 [H, W]: 0 background, 1 head, 2 neck, 3 torso.
        """
        surface = self.surface
        fine = surface.fine(vertices)
        placed = fine[surface.source] + surface.offset
        with_head, with_torso = (placed @ m[:3, :3].T + m[:3, 3] for m in (head, torso))
        camera = (surface.follows * with_head + (1 - surface.follows) * with_torso).astype("f4")
        normals = vertex_normals(camera[: len(fine)], surface.fine.faces)[surface.source]
        normals[surface.in_cloth] = surface.cloth_normals @ torso[:3, :3].T
        tangents = surface.combed @ head[:3, :3].T
        upper, lower = self.head.landmarks(vertices)[list(INNER_LIPS)]
        opened = min(np.linalg.norm(upper - lower) / WIDE_OPEN, 1.0)
        openness = np.maximum(surface.openness, opened * surface.in_mouth)

        to_shadow = _shadow_view(head)
        lit = camera @ to_shadow[:, :3].T + to_shadow[:, 3]
        casts = self.cutouts.only(surface.casts)
        shadow = zbuffer(lit, surface.faces[surface.casts], SHADOW_SIZE, SHADOW_SIZE, casts)[2]

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


def _shadow_view(head: np.ndarray) -> np.ndarray:
    """Camera space to the shadow map's pixels and depth, [3, 4]: rays along the key light."""
    forward = -np.array(KEY)
    side = np.cross([0.0, 1.0, 0.0], forward)
    side /= np.linalg.norm(side)
    axes = np.stack([side, np.cross(forward, side), forward])
    middle = axes @ (head[:3, 3] + [0.0, 0.5, 0.6])
    scale = np.array([SHADOW_SIZE / SHADOW_WIDTH] * 2 + [1.0])
    shift = np.array([SHADOW_SIZE / 2, SHADOW_SIZE / 2, SHADOW_DISTANCE]) - scale * middle
    return np.column_stack([scale[:, None] * axes, shift]).astype(np.float32)
