"""What is drawn of the synthetic subject: the skin, and shells of cloth and hair on it."""

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
TEETH = ("upper_teeth", "lower_teeth")
INSIDE_MOUTH = ("mouth", "tongue", *TEETH)
LEAST_FACING = -0.4  # z of the normals where hair is still drawn: the camera never sees the back
HAIR_SHADOWS = 4  # every so many layers of hair cast a shadow


@dataclass(frozen=True)
class Shell:
    """Triangles on vertices that ride on the fine mesh at a fixed offset."""

    material: np.ndarray
    """uint8 [m], index into `MATERIALS`"""
    label: np.ndarray
    """uint8 [m], HEAD, NECK or TORSO"""
    source: np.ndarray
    """int [n], the fine vertex under each vertex"""
    offset: np.ndarray
    """float32 [n, 3], dm"""
    openness: np.ndarray
    """float32 [n], how much of the surroundings each vertex sees, 0..1"""
    faces: np.ndarray
    """int32 [m, 3] into the shell's vertices"""
    uvs: np.ndarray
    """float32 [m, 3, 2]"""
    cutoff: np.ndarray
    """float32 [m, 3], see `Cutouts`"""
    casts: bool
    """whether it casts shadows"""


class Surface:
    """All triangles of one person, as arrays over the vertices and faces of all shells.

    Args:
        head: the model.
        neutral: float32 [V, 3], the person's shape.
        hair_layers: how many shells make the hair.
    """

    def __init__(self, head: MorphableHead, neutral: np.ndarray, hair_layers: int) -> None:
        self.fine = loop_subdivision(head.faces, len(neutral))
        self.parts = np.repeat(head.parts, 4)
        self.places = self.fine(head.vertices)
        """float32 [V', 3], where each fine vertex lies on the mean shape"""
        self.masks = {k: self.fine(mask[:, None])[:, 0] for k, mask in head.masks.items()}
        rest = self.fine(neutral)
        normals = vertex_normals(rest, self.fine.faces)

        cloth = self._cloth(rest, normals)
        shells = [self._skin(), *cloth, *self._hair(normals, hair_layers)]
        starts = np.cumsum([0] + [len(shell.source) for shell in shells])

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(shell, name) for shell in shells])

        self.source = joined("source")
        self.offset = joined("offset").astype(np.float32)
        self.openness = joined("openness").astype(np.float32)
        self.faces = np.concatenate(
            [shell.faces + start for shell, start in zip(shells, starts[:-1], strict=True)]
        ).astype(np.int32)
        self.labels = joined("label")
        self.material = joined("material")
        self.uvs = joined("uvs").astype(np.float32)
        self.cutoff = joined("cutoff").astype(np.float32)
        casts = np.concatenate([np.full(len(shell.faces), shell.casts) for shell in shells])
        self.casts = np.flatnonzero(casts & (self.material != MATERIALS.index("lashes")))
        self.combed = person.hair_direction(self.places, normals)[self.source]
        self.follows = smoothstep(-1.5, -0.8, self.places[self.source, 1])[:, None]
        """[n, 1]: 1 where a vertex moves with the head, 0 where with the torso"""
        self.in_cloth = slice(starts[1], starts[3])
        shirt = cloth[0]
        shirt_normals = vertex_normals(rest[shirt.source] + shirt.offset, shirt.faces)
        self.cloth_normals = np.tile(shirt_normals, (2, 1))
        self.in_mouth = self._in_mouth(head)

    def of_part(self, *names: str) -> np.ndarray:
        """The fine triangles, bool [4 F], that belong to the named parts."""
        return np.isin(self.parts, [PARTS.index(name) for name in names])

    def cutouts(self, textures: tuple[np.ndarray, ...]) -> Cutouts:
        return Cutouts(self.uvs, self.cutoff, self.material, textures)

    def head_only(self, faces: np.ndarray) -> np.ndarray:
        """Those of the model's triangles [F, 3] that belong to head and neck."""
        labels = self.labels[: len(self.fine.faces)].reshape(-1, 4)
        return faces[labels.max(1) != TORSO]

    def _skin(self) -> Shell:
        """The surface of the model itself, with eyes, teeth, tongue and lashes."""
        faces, places = self.fine.faces, self.places
        names = ["teeth" if part in TEETH else part for part in PARTS]
        uvs = person.skin_chart(places)[faces]
        left = places[faces[:, 0], 0] > 0
        for eye in (self.of_part("eyes") & left, self.of_part("eyes") & ~left):
            uvs[eye] = _boxed(places[faces[eye]])
        for row in TEETH:
            uvs[self.of_part(row)] = _boxed(places[faces[self.of_part(row)]])
        uvs[self.of_part("lower_teeth"), :, 1] *= -1
        uvs[self.of_part("lower_teeth"), :, 1] += 1

        cutoff = np.zeros((len(faces), 3), np.float32)
        lashes = np.flatnonzero(self.of_part("lashes"))
        ends = places[faces[lashes]]
        length = KDTree(places[np.unique(faces[self.of_part("skin")])]).query(ends)[0]
        along = (ends[..., 0] % 0.29) / 0.29
        uvs[lashes] = np.dstack([along, np.zeros_like(along)])
        thinner = 110 * (ends[..., 1].mean(1, keepdims=True) < 0.31)  # the lower lashes
        cutoff[lashes] = 40 + 215 * np.clip(length / 0.035, 0, 1) + thinner

        label = np.full(len(places), HEAD, np.uint8)
        label[person.is_neck(places)] = NECK
        label[person.neckline(places) > 0] = TORSO
        return Shell(
            material=np.array([MATERIALS.index(name) for name in names], np.uint8)[self.parts],
            label=np.where(self.of_part("skin"), label[faces].max(1), HEAD).astype(np.uint8),
            source=np.arange(len(places)),
            offset=np.zeros_like(places),
            openness=self.masks["openness"],
            faces=faces,
            uvs=uvs,
            cutoff=cutoff,
            casts=True,
        )

    def _cloth(self, rest: np.ndarray, normals: np.ndarray) -> list[Shell]:
        """The shirt, and its collar a little above it."""
        depth = person.neckline(self.places)
        chosen = self.of_part("skin") & (depth[self.fine.faces].max(1) > 0)
        source, faces = np.unique(self.fine.faces[chosen], return_inverse=True)
        faces = faces.reshape(-1, 3)
        places, inside = self.places[source], depth[source]
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
                uvs=chart(places)[faces],
                cutoff=cutoff,
                casts=True,
            )
            for material, raised, chart in (
                ("shirt", 0.0, person.front_chart),
                ("collar", 0.03, person.collar_chart),
            )
        ]

    def _hair(self, normals: np.ndarray, layers: int) -> list[Shell]:
        """Shells over the scalp, the outermost first; on each fewer strands are left."""
        inside = person.hairline(self.places, self.masks["ears"])
        seen = normals[self.fine.faces, 2].max(1) > LEAST_FACING
        chosen = self.of_part("skin") & seen & (inside[self.fine.faces].max(1) > -0.05)
        source, faces = np.unique(self.fine.faces[chosen], return_inverse=True)
        faces = faces.reshape(-1, 3)
        places, normals, inside = self.places[source], normals[source], inside[source]
        density = smoothstep(-0.05, 0.16, inside)
        thickness = person.hair_thickness(places, inside)[:, None]
        combed = person.hair_direction(places, normals)
        uvs = person.hair_chart(places)[faces]
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
                    casts=layer % HAIR_SHADOWS == HAIR_SHADOWS - 1,
                )
            )
        return shells

    def _in_mouth(self, head: MorphableHead) -> np.ndarray:
        """How much [n] of the light that an open mouth lets in each vertex gets; 0 outside it."""
        lips = head.landmarks(head.vertices)[list(person.INNER_LIPS)].mean(0)
        behind = np.clip(lips[2] - self.places[:, 2], 0, None)
        inside = self.masks["lips"] > 0.3
        inside[self.fine.faces[self.of_part(*INSIDE_MOUTH)]] = True
        lit = np.zeros(len(self.source), np.float32)
        lit[: len(behind)] = np.where(inside, np.exp(-behind / 0.28), 0.0)
        return lit


def _boxed(corners: np.ndarray) -> np.ndarray:
    """x, y of [m, 3, 3] scaled to 0..1 in their bounding box, v down."""
    low, high = corners[..., :2].min((0, 1)), corners[..., :2].max((0, 1))
    uv = (corners[..., :2] - low) / (high - low)
    return uv * [1, -1] + [0, 1]
