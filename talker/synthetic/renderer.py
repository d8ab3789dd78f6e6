"""Draws the synthetic subject: the head's surface with shells of hair and cloth, lit and shaded."""

from dataclasses import dataclass

import numpy as np

from talker.head.morphable import PARTS, MorphableHead, vertex_normals
from talker.head.zbuffer import Cutouts, zbuffer
from talker.synthetic import person
from talker.synthetic.mesh import loop_subdivision
from talker.synthetic.person import smoothstep
from talker.synthetic.shading import KEY, MATERIALS, resolve, shade

HEAD, NECK, TORSO = 1, 2, 3
SUPERSAMPLING = 2
LEAST_FACING = -0.4  # z of the normals where hair is still drawn: the camera never sees the back
SHADOW_SIZE, SHADOW_WIDTH = 640, 4.4  # texels, dm
MATERIAL_OF_PART = {"upper_teeth": "teeth", "lower_teeth": "teeth"}
PLAIN = {"mouth": (120, 50, 47, 140), "tongue": (178, 92, 90, 200)}


@dataclass(frozen=True)
class Shell:
    """Triangles on vertices that ride on the fine mesh at a fixed offset."""

    source: np.ndarray
    """int [n], the fine vertex under each vertex"""
    offset: np.ndarray
    """float32 [n, 3]"""
    faces: np.ndarray
    """int32 [m, 3] into the shell's vertices"""
    uvs: np.ndarray
    """float32 [m, 3, 2]"""
    cutoff: np.ndarray
    """float32 [m, 3]"""
    material: np.ndarray
    """uint8 [m]"""
    label: np.ndarray
    """uint8 [m]"""
    openness: np.ndarray
    """float32 [n]"""


class Renderer:
    """Draws one person in front of one plate with a fixed camera.

    Args:
        head: the model.
        neutral: float32 [V, 3], the person's shape.
        plate: uint8 [H, W, 3], the background.
        focal: in pixels.
        seed: of the painted textures.
    """

    def __init__(
        self, head: MorphableHead, neutral: np.ndarray, plate: np.ndarray, focal: float, seed: int
    ) -> None:
        self.head = head
        self.plate = plate
        self.hair_layers = max(8, plate.shape[0] // 26)
        self.focal = focal
        self.fine = loop_subdivision(head.faces, len(neutral))
        self.parts = np.repeat(head.parts, 4)
        self.places = self.fine(head.vertices)
        self.masks = {k: self.fine(mask[:, None])[:, 0] for k, mask in head.masks.items()}
        rest = self.fine(neutral)
        normals = vertex_normals(rest, self.fine.faces)
        self.textures = self._paint(np.random.default_rng(seed))

        shells = [self._skin(), *self._cloth(rest, normals), *self._hair(normals)]
        starts = np.cumsum([0] + [len(shell.source) for shell in shells])
        self.source = np.concatenate([shell.source for shell in shells])
        self.offset = np.concatenate([shell.offset for shell in shells]).astype(np.float32)
        self.openness = np.concatenate([shell.openness for shell in shells]).astype(np.float32)
        self.faces = np.concatenate(
            [shell.faces + start for shell, start in zip(shells, starts)]
        ).astype(np.int32)
        self.labels = np.concatenate([shell.label for shell in shells])
        material = np.concatenate([shell.material for shell in shells])
        self.cutouts = Cutouts(
            np.concatenate([shell.uvs for shell in shells]).astype(np.float32),
            np.concatenate([shell.cutoff for shell in shells]).astype(np.float32),
            material,
            self.textures,
        )
        whole = [np.ones(len(shell.faces), bool) for shell in shells[: -self.hair_layers]]
        some = [
            np.full(len(s.faces), i % 4 == 0) for i, s in enumerate(shells[-self.hair_layers :])
        ]
        self.casts = np.concatenate(whole + some) & (material != MATERIALS.index("lashes"))
        shirt = shells[1]
        self.cloth = slice(starts[1], starts[3])
        shirt_normals = vertex_normals(rest[shirt.source] + shirt.offset, shirt.faces)
        self.cloth_normals = np.tile(shirt_normals, (2, 1))
        self.combed = person.hair_direction(self.places, normals)[self.source]
        self.follows = smoothstep(-1.5, -0.8, self.places[self.source, 1])[:, None]
        self.inner_mouth = self._inner_mouth()

    def _paint(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        skin = np.isin(self.parts, [PARTS.index("skin")])
        masks = {name: self.masks[name] for name in ("lips", "ears", "eyelids")}
        density = 0.55 * self.plate.shape[0]
        unrolled = person.map_skin(self.places, self.fine.faces[skin], masks, density)
        textures = {
            "skin": person.paint_skin(unrolled, self.head, rng),
            "eyes": person.paint_eye(rng),
            "teeth": person.paint_teeth(),
            "lashes": person.paint_lashes(rng),
            "hair": person.paint_hair(rng, 4 * self.plate.shape[0]),
            "shirt": person.paint_shirt(rng),
            "collar": person.paint_collar(),
        }
        textures |= {name: np.uint8([[colour]]) for name, colour in PLAIN.items()}
        return tuple(textures[name] for name in MATERIALS)

    def _skin(self) -> Shell:
        faces, places = self.fine.faces, self.places
        names = [MATERIAL_OF_PART.get(part, part) for part in PARTS]
        material = np.array([MATERIALS.index(name) for name in names], np.uint8)[self.parts]
        uvs = person.skin_chart(places)[faces]
        cutoff = np.zeros((len(faces), 3), np.float32)
        of_part = {name: np.flatnonzero(self.parts == i) for i, name in enumerate(PARTS)}
        for side in (-1, 1):
            eye = of_part["eyes"][places[faces[of_part["eyes"], 0], 0] * side > 0]
            uvs[eye] = _boxed(places[faces[eye]])
        for name in ("upper_teeth", "lower_teeth"):
            uvs[of_part[name]] = _boxed(places[faces[of_part[name]]])
        uvs[of_part["lower_teeth"], :, 1] = 1 - uvs[of_part["lower_teeth"], :, 1]
        lashes = of_part["lashes"]
        skin = np.unique(faces[of_part["skin"]])
        reach = _distances(places[faces[lashes]].reshape(-1, 3), places[skin]).reshape(-1, 3)
        along = (places[faces[lashes], 0] % 0.29) / 0.29
        uvs[lashes] = np.dstack([along, np.zeros_like(along)])
        cutoff[lashes] = 40 + 215 * np.clip(reach / 0.035, 0, 1)
        lower = lashes[places[faces[lashes, 0], 1] < 0.31]
        cutoff[lower] += 110

        label = np.full(len(places), HEAD, np.uint8)
        label[person.is_neck(places)] = NECK
        label[person.neckline(places) > 0] = TORSO
        label = label[faces].max(1)
        label[~np.isin(self.parts, [PARTS.index("skin")])] = HEAD
        count = len(places)
        return Shell(
            source=np.arange(count),
            offset=np.zeros((count, 3)),
            faces=faces,
            uvs=uvs,
            cutoff=cutoff,
            material=material,
            label=label,
            openness=self.masks["openness"],
        )

    def _cloth(self, rest: np.ndarray, normals: np.ndarray) -> list[Shell]:
        """The shirt, and its collar a little above it."""
        depth = person.neckline(self.places)
        chosen = (self.parts == PARTS.index("skin")) & (depth[self.fine.faces].max(1) > 0)
        source, faces = np.unique(self.fine.faces[chosen], return_inverse=True)
        faces = faces.reshape(-1, 3)
        places, inside = self.places[source], depth[source]
        height = 0.035 + 0.03 * smoothstep(0.2, 0.8, inside)
        height += person.folds(rest[source]) * smoothstep(0.15, 0.6, inside)

        edge = (inside[faces] < 0).any(1)
        cut = np.where(edge[:, None], 200 - 20_000 * inside[faces], 200)

        def shell(material: str, height: np.ndarray, uvs: np.ndarray, kept: np.ndarray) -> Shell:
            some = kept[faces].any(1)
            return Shell(
                source=source,
                offset=normals[source] * height[:, None],
                faces=faces[some],
                uvs=uvs[faces[some]],
                cutoff=cut[some],
                material=np.full(some.sum(), MATERIALS.index(material), np.uint8),
                label=np.full(some.sum(), TORSO, np.uint8),
                openness=self.masks["openness"][source],
            )

        collar = shell("collar", 0.03 + height, person.collar_chart(places), inside < person.COLLAR)
        return [shell("shirt", height, person.front_chart(places), inside > 0), collar]

    def _hair(self, normals: np.ndarray) -> list[Shell]:
        inside = person.hairline(self.places, self.masks["ears"])
        skin = self.parts == PARTS.index("skin")
        seen = normals[self.fine.faces, 2].max(1) > LEAST_FACING
        chosen = skin & seen & (inside[self.fine.faces].max(1) > -0.05)
        source, faces = np.unique(self.fine.faces[chosen], return_inverse=True)
        faces = faces.reshape(-1, 3)
        places, normals = self.places[source], normals[source]
        density = smoothstep(-0.05, 0.16, inside[source])
        thickness = person.hair_thickness(places, inside[source])
        combed = person.hair_direction(places, normals)
        uvs = person.hair_chart(places)[faces]
        wraps = np.ptp(uvs[..., 0], axis=1) > 0.5
        uvs[wraps, :, 0] += uvs[wraps, :, 0] < 0.5
        shells = []
        for layer in reversed(range(self.hair_layers)):
            t = (layer + 1) / self.hair_layers
            offset = t * normals + 0.6 * t**1.5 * combed
            least = 1 - density * (1 - 0.9 * t**2.5)
            shells.append(
                Shell(
                    source=source,
                    offset=offset * thickness[:, None],
                    faces=faces,
                    uvs=uvs,
                    cutoff=255 * least[faces],
                    material=np.full(len(faces), MATERIALS.index("hair"), np.uint8),
                    label=np.full(len(faces), HEAD, np.uint8),
                    openness=(0.25 + 0.75 * t) * self.masks["openness"][source],
                )
            )
        return shells

    def _inner_mouth(self) -> np.ndarray:
        """How far [V] each vertex is lit through the open mouth; 0 outside the mouth."""
        lips = self.head.landmarks(self.head.vertices)[[13, 14]].mean(0)
        behind = np.clip(lips[2] - self.places[:, 2], 0, None)
        part = np.zeros(len(self.places), np.uint8)
        part[self.fine.faces] = self.parts[:, None]
        names = ("mouth", "upper_teeth", "lower_teeth", "tongue")
        inside = np.isin(part, [PARTS.index(name) for name in names])
        lit = np.where(inside | (self.masks["lips"] > 0.3), np.exp(-behind / 0.28), 0.0)
        return np.concatenate([lit, np.zeros(len(self.source) - len(lit))])

    def project(self, vertices: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Pixels x, y and depth, float32 [V, 3], of vertices [V, 3] seen by `view` [4, 4]."""
        height, width = self.plate.shape[:2]
        camera = vertices @ view[:3, :3].T + view[:3, 3]
        pixels = camera[:, :2] / camera[:, 2:] * self.focal + np.array([width / 2, height / 2])
        return np.column_stack([pixels, camera[:, 2]]).astype(np.float32)

    def smooth(self, vertices: np.ndarray) -> np.ndarray:
        """Where the coarse vertices [V, 3] lie on the rendered surface."""
        return self.fine(vertices)[: len(vertices)]

    def head_surface(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The head and neck part of a coarse shape: vertices [V', 3] and faces int32 [F', 3]."""
        fine_labels = self.labels[: len(self.fine.faces)]
        kept = self.head.faces[fine_labels.reshape(-1, 4).max(1) != TORSO]
        used, faces = np.unique(kept, return_inverse=True)
        return vertices[used], faces.reshape(-1, 3).astype(np.int32)

    def render(
        self, vertices: np.ndarray, head: np.ndarray, torso: np.ndarray, body_only: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the person over the plate.

        Args:
            vertices: posed, [V, 3].
            head: [4, 4], from the head's coordinates to the camera.
            torso: [4, 4], the same for the shoulders.
            body_only: leave the head out, and see the neck that it hides.

        Returns:
            image uint8 [H, W, 3] and mask uint8 [H, W]: 0 background, 1 head, 2 neck, 3 torso.
        """
        fine = self.fine(vertices)
        placed = fine[self.source] + self.offset
        moved = [placed @ m[:3, :3].T + m[:3, 3] for m in (head, torso)]
        camera = (self.follows * moved[0] + (1 - self.follows) * moved[1]).astype(np.float32)
        normals = vertex_normals(camera[: len(fine)], self.fine.faces)[self.source]
        normals[self.cloth] = self.cloth_normals @ torso[:3, :3].T
        tangents = self.combed @ head[:3, :3].T

        lips = self.head.landmarks(vertices)[[13, 14]]
        gap = np.clip(np.linalg.norm(lips[0] - lips[1]) / 0.22, 0, 1)
        openness = np.maximum(self.openness, gap * self.inner_mouth).astype(np.float32)
        points = self.project(camera, np.eye(4)) * np.float32([SUPERSAMPLING, SUPERSAMPLING, 1])
        to_shadow = _shadow_view(head)
        shadow = self._shadow(camera, to_shadow)
        scene = (camera, normals.astype(np.float32), tangents.astype(np.float32), openness)
        faces = np.flatnonzero(self.labels != HEAD) if body_only else slice(None)
        return self._draw(points, faces, *scene, shadow, to_shadow)

    def _shadow(self, camera: np.ndarray, to_shadow: np.ndarray) -> np.ndarray:
        lit = (camera @ to_shadow[:, :3].T + to_shadow[:, 3]).astype(np.float32)
        cutouts = self.cutouts.only(self.casts)
        return zbuffer(lit, self.faces[self.casts], SHADOW_SIZE, SHADOW_SIZE, cutouts)[2]

    def _draw(self, points, chosen, camera, normals, tangents, openness, shadow, to_shadow):  # noqa: ANN001, ANN202
        """Image uint8 [H, W, 3] and mask uint8 [H, W] of the chosen faces over the plate."""
        height, width = self.plate.shape[:2]
        n = SUPERSAMPLING
        faces, cutouts = self.faces[chosen], self.cutouts.only(chosen)
        face, weights, _ = zbuffer(points, faces, n * height, n * width, cutouts)
        big = np.repeat(np.repeat(self.plate, n, 0), n, 1).astype(np.float32)
        shade(
            face, weights, faces, cutouts.uvs, cutouts.texture, self.textures,
            camera, normals, tangents, openness, shadow, to_shadow, big,
        )  # fmt: skip
        label = np.where(face < 0, 0, self.labels[chosen][face]).astype(np.uint8)
        return resolve(big, label, n)


def _boxed(corners: np.ndarray) -> np.ndarray:
    """x, y of [m, 3, 3] scaled to 0..1 in their bounding box, v down."""
    flat = corners[..., :2]
    low, high = flat.min((0, 1)), flat.max((0, 1))
    uv = (flat - low) / (high - low)
    uv[..., 1] = 1 - uv[..., 1]
    return uv


def _distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(others).query(points)[0]


def _shadow_view(head: np.ndarray) -> np.ndarray:
    """Camera space to the shadow map's pixels and depth, [3, 4]: parallel rays along the key."""
    forward = -np.array(KEY)
    side = np.cross([0.0, 1.0, 0.0], forward)
    side /= np.linalg.norm(side)
    axes = np.stack([side, np.cross(forward, side), forward])
    middle = axes @ (head[:3, 3] + [0.0, 0.5, 0.6])
    scale = np.array([SHADOW_SIZE / SHADOW_WIDTH] * 2 + [1.0])
    shift = np.array([SHADOW_SIZE / 2, SHADOW_SIZE / 2, 100.0]) - scale * middle
    return np.column_stack([scale[:, None] * axes, shift]).astype(np.float32)
