"""The rendered surface of the synthetic subject: skin, and shells of cloth and hair over it."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from talker.head.morphable import PARTS, MorphableHead, vertex_normals
from talker.head.zbuffer import Cutouts
from talker.synthetic import person
from talker.synthetic.mesh import loop_subdivision
from talker.synthetic.person import smoothstep
from talker.synthetic.shading import MATERIALS

HEAD, NECK, TORSO = 1, 2, 3
"""Labels of the masks."""
TEETH = ("upper_teeth", "lower_teeth")
INSIDE_MOUTH = ("mouth", "tongue", *TEETH)
LEAST_FACING = -0.4
"""Smallest z of a normal at which hair is modeled; the camera never sees the back of the head."""
HAIR_SHADOW_STEP = 4
"""One in this many hair layers casts a shadow."""


@dataclass(frozen=True)
class Shell:
    """m triangles over n vertices, each at a fixed offset from a vertex of the subdivided mesh."""

    material: np.ndarray
    """uint8 [m], index into `MATERIALS`"""
    label: np.ndarray
    """uint8 [m], HEAD, NECK or TORSO"""
    source: np.ndarray
    """int [n], the subdivided mesh's vertex under each vertex"""
    offset: np.ndarray
    """float32 [n, 3], dm"""
    openness: np.ndarray
    """float32 [n], unoccluded share of the surroundings (ambient occlusion), 0..1"""
    faces: np.ndarray
    """int32 [m, 3] into the shell's vertices"""
    uvs: np.ndarray
    """float32 [m, 3, 2]"""
    cutoff: np.ndarray
    """float32 [m, 3], opacity below which a pixel is cut out (see `Cutouts`)"""
    casts_shadow: bool
    """whether the shell casts shadows"""


class Surface:
    """The surface of one person: arrays over the vertices and faces of all shells.

    Args:
        head: the head model.
        neutral: float32 [V, 3], the person's vertices with a neutral expression.
        hair_layers: number of shells of the hair.
    """

    def __init__(self, head: MorphableHead, neutral: np.ndarray, hair_layers: int) -> None:
        self.subdivision = loop_subdivision(head.faces, len(neutral))
        self.parts = np.repeat(head.parts, 4)
        self.positions = self.subdivision(head.vertices)
        """float32 [V', 3], the subdivided mesh's vertices on the mean shape"""
        self.masks = {k: self.subdivision(mask[:, None])[:, 0] for k, mask in head.masks.items()}
        rest = self.subdivision(neutral)
        normals = vertex_normals(rest, self.subdivision.faces)

        cloth = self._cloth(rest, normals)
        shells = [self._skin(), *cloth, *self._hair(normals, hair_layers)]
        starts = np.cumsum([0] + [len(shell.source) for shell in shells])

        def concatenated(name: str) -> np.ndarray:
            return np.concatenate([getattr(shell, name) for shell in shells])

        self.source = concatenated("source")
        self.offset = concatenated("offset").astype(np.float32)
        self.openness = concatenated("openness").astype(np.float32)
        self.faces = np.concatenate(
            [shell.faces + start for shell, start in zip(shells, starts[:-1], strict=True)]
        ).astype(np.int32)
        self.labels = concatenated("label")
        self.material = concatenated("material")
        self.uvs = concatenated("uvs").astype(np.float32)
        self.cutoff = concatenated("cutoff").astype(np.float32)
        casts = np.concatenate([np.full(len(shell.faces), shell.casts_shadow) for shell in shells])
        self.shadow_casters = np.flatnonzero(casts & (self.material != MATERIALS.index("lashes")))
        self.hair_tangents = person.hair_direction(self.positions, normals)[self.source]
        self.head_weight = smoothstep(-1.5, -0.8, self.positions[self.source, 1])[:, None]
        """float64 [n, 1]: 1 for vertices that move with the head, 0 for those of the torso"""
        self.cloth_vertices = slice(starts[1], starts[3])
        shirt = cloth[0]
        shirt_normals = vertex_normals(rest[shirt.source] + shirt.offset, shirt.faces)
        self.cloth_normals = np.tile(shirt_normals, (2, 1))
        self.mouth_light = self._in_mouth(head)

    def of_part(self, *names: str) -> np.ndarray:
        """Return bool [4 F]: which triangles of the subdivided mesh belong to the named parts."""
        return np.isin(self.parts, [PARTS.index(name) for name in names])

    def cutouts(self, textures: tuple[np.ndarray, ...]) -> Cutouts:
        """Return the holes that the textures' opacity cuts into the triangles."""
        return Cutouts(self.uvs, self.cutoff, self.material, textures)

    def head_and_neck(self, faces: np.ndarray) -> np.ndarray:
        """Return those of the model's triangles [F, 3] that belong to the head or the neck."""
        labels = self.labels[: len(self.subdivision.faces)].reshape(-1, 4)
        return faces[labels.max(1) != TORSO]

    def _skin(self) -> Shell:
        """Return the head model's own surface: skin, eyes, teeth, tongue and lashes."""
        faces, positions = self.subdivision.faces, self.positions
        names = ["teeth" if part in TEETH else part for part in PARTS]
        uvs = person.skin_chart(positions)[faces]
        left = positions[faces[:, 0], 0] > 0
        for eye in (self.of_part("eyes") & left, self.of_part("eyes") & ~left):
            uvs[eye] = _planar_uv(positions[faces[eye]])
        for row in TEETH:
            uvs[self.of_part(row)] = _planar_uv(positions[faces[self.of_part(row)]])
        uvs[self.of_part("lower_teeth"), :, 1] *= -1
        uvs[self.of_part("lower_teeth"), :, 1] += 1

        cutoff = np.zeros((len(faces), 3), np.float32)
        lashes = np.flatnonzero(self.of_part("lashes"))
        ends = positions[faces[lashes]]
        length = KDTree(positions[np.unique(faces[self.of_part("skin")])]).query(ends)[0]
        along = (ends[..., 0] % 0.29) / 0.29
        uvs[lashes] = np.dstack([along, np.zeros_like(along)])
        thinner = 110 * (ends[..., 1].mean(1, keepdims=True) < 0.31)  # the lower lashes
        cutoff[lashes] = 40 + 215 * np.clip(length / 0.035, 0, 1) + thinner

        label = np.full(len(positions), HEAD, np.uint8)
        label[person.is_neck(positions)] = NECK
        label[person.neckline(positions) > 0] = TORSO
        return Shell(
            material=np.array([MATERIALS.index(name) for name in names], np.uint8)[self.parts],
            label=np.where(self.of_part("skin"), label[faces].max(1), HEAD).astype(np.uint8),
            source=np.arange(len(positions)),
            offset=np.zeros_like(positions),
            openness=self.masks["openness"],
            faces=faces,
            uvs=uvs,
            cutoff=cutoff,
            casts_shadow=True,
        )

    def _cloth(self, rest: np.ndarray, normals: np.ndarray) -> list[Shell]:
        """Return two shells: the shirt, and the collar slightly above it."""
        depth = person.neckline(self.positions)
        chosen = self.of_part("skin") & (depth[self.subdivision.faces].max(1) > 0)
        source, faces = np.unique(self.subdivision.faces[chosen], return_inverse=True)
        faces = faces.reshape(-1, 3)
        positions, inside = self.positions[source], depth[source]
        height = 0.035 + 0.03 * smoothstep(0.2, 0.8, inside)
        height += person.folds(rest[source]) * smoothstep(0.15, 0.6, inside)
        edge = (inside[faces] < 0).any(1, keepdims=True)
        cutoff = np.where(edge, 200 - 20_000 * inside[faces], 200)  # a clean cut at the neckline
        return [
            Shell(
                material=np.full(len(faces), MATERIALS.index(material), np.uint8),
                label=np.full(len(faces), TORSO, np.uint8),
                source=source,
                offset=normals[source] * (height + raised)[:, None],
                openness=self.masks["openness"][source],
                faces=faces,
                uvs=chart(positions)[faces],
                cutoff=cutoff,
                casts_shadow=True,
            )
            for material, raised, chart in (
                ("shirt", 0.0, person.front_chart),
                ("collar", 0.03, person.collar_chart),
            )
        ]

    def _hair(self, normals: np.ndarray, layers: int) -> list[Shell]:
        """Return shells over the scalp, outermost first; outer shells hold fewer strands."""
        inside = person.hairline(self.positions, self.masks["ears"])
        facing = normals[self.subdivision.faces, 2].max(1) > LEAST_FACING
        chosen = self.of_part("skin") & facing & (inside[self.subdivision.faces].max(1) > -0.05)
        source, faces = np.unique(self.subdivision.faces[chosen], return_inverse=True)
        faces = faces.reshape(-1, 3)
        positions, normals, inside = self.positions[source], normals[source], inside[source]
        density = smoothstep(-0.05, 0.16, inside)
        thickness = person.hair_thickness(positions, inside)[:, None]
        combed = person.hair_direction(positions, normals)
        uvs = person.hair_chart(positions)[faces]
        wraps = np.ptp(uvs[..., 0], axis=1) > 0.5
        uvs[wraps, :, 0] += uvs[wraps, :, 0] < 0.5
        shells = []
        for layer in reversed(range(layers)):
            t = (layer + 1) / layers
            left = density * (1 - 0.9 * t**2.5)
            shells.append(
                Shell(
                    material=np.full(len(faces), MATERIALS.index("hair"), np.uint8),
                    label=np.full(len(faces), HEAD, np.uint8),
                    source=source,
                    offset=thickness * (t * normals + 0.6 * t**1.5 * combed),
                    openness=(0.25 + 0.75 * t) * self.masks["openness"][source],
                    faces=faces,
                    uvs=uvs,
                    cutoff=255 * (1 - left)[faces],
                    casts_shadow=layer % HAIR_SHADOW_STEP == HAIR_SHADOW_STEP - 1,
                )
            )
        return shells

    def _in_mouth(self, head: MorphableHead) -> np.ndarray:
        """Return float32 [n]: the light that reaches each vertex of the mouth when it is open."""
        lips = head.landmarks(head.vertices)[list(person.INNER_LIPS)].mean(0)
        behind = np.clip(lips[2] - self.positions[:, 2], 0, None)
        inside = self.masks["lips"] > 0.3
        inside[self.subdivision.faces[self.of_part(*INSIDE_MOUTH)]] = True
        lit = np.zeros(len(self.source), np.float32)
        lit[: len(behind)] = np.where(inside, np.exp(-behind / 0.28), 0.0)
        return lit


def _planar_uv(corners: np.ndarray) -> np.ndarray:
    """Return texture coordinates [m, 3, 2] of corners [m, 3, 3]: x and y scaled to 0..1, v down."""
    low, high = corners[..., :2].min((0, 1)), corners[..., :2].max((0, 1))
    uv = (corners[..., :2] - low) / (high - low)
    return uv * [1, -1] + [0, 1]
