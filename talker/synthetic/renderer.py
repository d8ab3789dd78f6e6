"""Renders the synthetic subject: z-buffer, textures, smooth normals, a key and a fill light."""

from dataclasses import dataclass

import numpy as np
from numba import njit

from talker.head.morphable import PARTS, MorphableHead, vertex_normals
from talker.head.zbuffer import zbuffer
from talker.synthetic.mesh import loop_subdivision, subdivide_corners

HEAD, NECK, TORSO = 1, 2, 3


@njit(cache=True, nogil=True)
def shade(face, weights, faces, colours, normals, light, image):  # noqa: ANN001, ANN201
    for y in range(face.shape[0]):
        for x in range(face.shape[1]):
            f = face[y, x]
            if f < 0:
                continue
            b, c = weights[y, x, 0], weights[y, x, 1]
            a = 1 - b - c
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            n = a * normals[i] + b * normals[j] + c * normals[k]
            n = n / (np.sqrt((n * n).sum()) + 1e-9)
            lit = 0.35 + 0.65 * max((n * light).sum(), 0.0)
            image[y, x] = (a * colours[i] + b * colours[j] + c * colours[k]) * lit


@dataclass(frozen=True)
class Picture:
    """One rendered frame."""

    image: np.ndarray
    """uint8 [H, W, 3]"""
    mask: np.ndarray
    """uint8 [H, W]: 0 background, 1 head, 2 neck, 3 torso"""
    torso: np.ndarray
    """uint8 [H, W, 4], neck and torso alone, also where the head hides them"""


class Renderer:
    """Draws one subject at one size."""

    def __init__(self, head: MorphableHead, neutral: np.ndarray, plate: np.ndarray, focal: float):
        self.head = head
        self.neutral = neutral
        self.focal = focal
        self.plate = plate
        self.fine = loop_subdivision(head.faces, len(neutral))
        self.parts = np.repeat(head.parts, 4)
        self.uvs = subdivide_corners(head.uvs).astype(np.float32)
        rest = self.fine(neutral)
        self.rest = rest
        self.follows = np.clip((rest[:, 1] + 1.55) / 0.75, 0, 1)[:, None]
        self.follows = self.follows**2 * (3 - 2 * self.follows)
        masks = {name: self.fine(mask[:, None]) for name, mask in head.masks.items()}
        colours = np.tile(np.array([205, 160, 138], np.float32), (len(rest), 1))
        colours = colours + masks["lips"] * (np.array([170, 95, 95]) - colours)
        front = rest[:, 2] - 0.0
        hair = (rest[:, 1] > 0.75 - 0.0) | (
            (front < -0.25) & (rest[:, 1] > -0.3) & (np.abs(rest[:, 0]) > 0.2)
        )
        colours[hair & (front < 0.45 + 0 * front)] = (60, 42, 32)
        for name, colour in (
            ("eyes", (235, 230, 225)),
            ("upper_teeth", (230, 225, 210)),
            ("lower_teeth", (225, 220, 205)),
            ("tongue", (170, 80, 80)),
            ("lashes", (30, 20, 20)),
            ("mouth", (110, 40, 40)),
        ):
            colours[np.unique(self.fine.faces[self.parts == PARTS.index(name)])] = colour
        eyes = np.unique(self.fine.faces[self.parts == PARTS.index("eyes")])
        for side in (-1, 1):
            e = eyes[rest[eyes, 0] * side > 0]
            centre = (rest[e].max(0) + rest[e].min(0)) / 2
            r = np.hypot(*(rest[e, :2] - centre[:2]).T)
            ok = rest[e, 2] > centre[2]
            colours[e[ok & (r < 0.062)]] = (70, 50, 35)
            colours[e[ok & (r < 0.025)]] = (8, 8, 8)
        brow = (
            (np.abs(np.abs(rest[:, 0]) - 0.33) < 0.22)
            & (np.abs(rest[:, 1] - 0.40 + 0.2 * (np.abs(rest[:, 0]) - 0.33) ** 2) < 0.045)
            & (front > 0)
        )
        colours[brow] = (70, 48, 36)
        shirt = rest[:, 1] < -1.55 + 0.25 * np.abs(rest[:, 0])
        colours[shirt] = (50, 70, 110)
        self.colours = (colours * masks["openness"] ** 0.8).astype(np.float32)
        label = np.full(len(rest), HEAD, np.uint8)
        label[
            (rest[:, 1] < -0.75 - 0.25 * (rest[:, 2] - 0.3))
            & (self.parts_of_vertices() == PARTS.index("skin"))
        ] = NECK
        label[shirt] = TORSO
        self.labels = label[self.fine.faces].max(1)

    def parts_of_vertices(self) -> np.ndarray:
        parts = np.zeros(len(self.rest), np.uint8)
        parts[self.fine.faces] = self.parts[:, None]
        return parts

    def project(self, vertices: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Pixels x, y and depth, float32 [V, 3], of vertices [V, 3] seen by `view` [4, 4]."""
        height, width = self.plate.shape[:2]
        camera = vertices @ view[:3, :3].T + view[:3, 3]
        pixels = camera[:, :2] / camera[:, 2:] * self.focal + np.array([width / 2, height / 2])
        return np.column_stack([pixels, camera[:, 2]]).astype(np.float32)

    def render(self, vertices: np.ndarray, head: np.ndarray, torso: np.ndarray) -> Picture:
        """Draw posed coarse vertices [V, 3]; head, torso: [4, 4] to the camera (x right, y down)."""
        height, width = self.plate.shape[:2]
        fine = self.fine(vertices)
        moved = [fine @ m[:3, :3].T + m[:3, 3] for m in (head, torso)]
        camera = self.follows * moved[0] + (1 - self.follows) * moved[1]
        points = self.project(camera, np.eye(4)) * np.array([2, 2, 1], np.float32)
        normals = vertex_normals(camera, self.fine.faces).astype(np.float32)
        big = np.repeat(np.repeat(self.plate, 2, 0), 2, 1).astype(np.float32)
        image, label = self._draw(points, normals, np.arange(len(self.labels)), big)
        body = np.flatnonzero(self.labels != HEAD)
        torso, covered = self._draw(points, normals, body, big)
        alpha = np.where(covered > 0, 255, 0)
        torso = np.dstack([np.where(alpha[..., None] > 0, torso, 0), alpha]).astype(np.uint8)
        return Picture(image, label, torso)

    def _draw(self, points, normals, chosen, background):
        height, width = self.plate.shape[:2]
        faces = self.fine.faces[chosen]
        no = np.zeros((1, 1), np.uint8), np.zeros(len(faces), np.uint8)
        face, weights, _ = zbuffer(points, faces, 2 * height, 2 * width, self.uvs, *no)
        light = np.array([-0.35, -0.45, -0.85], np.float32)
        big = background.copy()
        shade(face, weights, faces, self.colours, normals, light / np.linalg.norm(light), big)
        image = big.reshape(height, 2, width, 2, 3).mean((1, 3))
        label = np.where(face < 0, 0, self.labels[chosen][face])
        blocks = label.reshape(height, 2, width, 2)
        counts = np.stack([(blocks == k).sum((1, 3)) for k in range(4)])
        return np.clip(np.round(image), 0, 255).astype(np.uint8), counts.argmax(0).astype(np.uint8)

    def smooth(self, vertices: np.ndarray) -> np.ndarray:
        """Where the coarse vertices [V, 3] lie on the rendered surface."""
        return self.fine(vertices)[: len(vertices)]

    def head_surface(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The head and neck part of a coarse shape: vertices [V', 3] and faces int32 [F', 3]."""
        kept = self.head.faces[self.labels.reshape(-1, 4).max(1) != TORSO]
        used, faces = np.unique(kept, return_inverse=True)
        return vertices[used], faces.reshape(-1, 3).astype(np.int32)
