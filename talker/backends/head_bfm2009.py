"""The Basel Face Model 2009 (Paysan et al. 2009), from the user's own files.

Two forms are read: the model's 01_MorphableModel.mat, with exp_info.npy and topology_info.npy of
the AD-NeRF tracker next to it if expressions of the model are used; or the 3DMM_info.npy that
the converter of the AD-NeRF tracker writes, with topology_info.npy.
"""

import logging
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from talker.data.weights import WEIGHTS
from talker.errors import UserError
from talker.head.morphable import MorphableHead
from talker.head.npy_mapping import read_mapping
from talker.head.user_model import IDENTITIES, complete_head, require_file

logger = logging.getLogger(__name__)

MODEL = "01_MorphableModel.mat"
"""File name of the model."""

CONVERTED = "3DMM_info.npy"
"""File name of the model as the AD-NeRF tracker converts it: fewer vertices, with expressions."""

EXPRESSIONS = "exp_info.npy"
"""File name of the expressions that the AD-NeRF tracker adds to the model."""

TOPOLOGY = "topology_info.npy"
"""File name of the vertices and triangles of the model that the AD-NeRF tracker keeps."""

SCALE = 1e-5
"""Decimeters per micrometer, the unit of the model."""


def load(files: Path | None) -> MorphableHead:
    """Read the model of a folder; 01_MorphableModel.mat is preferred to 3DMM_info.npy.

    Raises:
        UserError: a file is missing or damaged.
    """
    if files and not (files / MODEL).is_file() and (files / CONVERTED).is_file():
        return _load_converted(files)
    path = require_file(files, MODEL, WEIGHTS["bfm2009"])
    try:
        arrays = loadmat(path)
        mean = arrays["shapeMU"].reshape(-1, 3) * SCALE
        deviations = arrays["shapeEV"].reshape(-1)[:IDENTITIES] * SCALE
        components = arrays["shapePC"][:, :IDENTITIES].T.reshape(-1, *mean.shape)
        faces = arrays["tl"].astype(int) - 1
    except (KeyError, ValueError, NotImplementedError, OSError, MatReadError) as error:
        raise UserError(f"{path} is not the Basel Face Model 2009 ({error!r}).") from error
    mean_expression, basis = _expressions(path.parent, len(mean))
    identities = components * deviations[:, None, None]
    return complete_head(path, mean + mean_expression, faces, identities, basis)


def _expressions(folder: Path, count: int) -> tuple[np.ndarray | float, np.ndarray | None]:
    """Return the mean expression [V, 3] and the expressions [E, V, 3] in dm, if they are there."""
    paths = folder / EXPRESSIONS, folder / TOPOLOGY
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        logger.info(
            "%s does not contain %s. The expressions of the model 'anny' are used instead.",
            folder,
            " and ".join(missing),
        )
        return 0.0, None
    expressions, topology = (read_mapping(path) for path in paths)
    try:
        kept = topology["sub_inds"].reshape(-1).astype(int)
        mean, basis = np.zeros((count, 3)), None
        mean[kept] = expressions["mu_exp"].reshape(-1, 3) * SCALE
        some = _scaled(expressions["base_exp"], expressions["sig_exp"], len(kept))
        basis = np.zeros((len(some), count, 3))
        basis[:, kept] = some
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{paths[0]} does not match {paths[1]} and {MODEL} "
            f"({error!r}). Use files from the same download."
        ) from error
    return mean, basis


def _load_converted(folder: Path) -> MorphableHead:
    path = folder / CONVERTED
    topology = folder / TOPOLOGY
    if not topology.exists():
        raise UserError(
            f"{topology} does not exist. It contains the triangles of the model in {path.name}. "
            "Copy it from the folder data_util/face_tracking/3DMM of AD-NeRF."
        )
    model = read_mapping(path)
    try:
        mean = (model["mu_shape"] + model["mu_exp"]).reshape(-1, 3) * SCALE
        identities = _scaled(
            model["b_shape"][:IDENTITIES], model["sig_shape"][:IDENTITIES], len(mean)
        )
        basis = _scaled(model["b_exp"], model["sig_exp"], len(mean))
        faces = read_mapping(topology)["tris"].reshape(-1, 3).astype(int)
        if faces.min() < 0 or faces.max() >= len(mean):
            raise ValueError(
                f"`tris` refers to vertex {faces.max()}, but there are {len(mean)} vertices"
            )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{path} must contain mu_shape, b_shape, sig_shape, mu_exp, b_exp and sig_exp "
            f"of matching sizes, and {TOPOLOGY} must contain tris ({error!r})."
        ) from error
    return complete_head(path, mean, faces, identities, basis)


def _scaled(components: np.ndarray, deviations: np.ndarray, count: int) -> np.ndarray:
    """Return components [N, V, 3] in dm for a weight of one standard deviation.

    Args:
        components: [N, 3 V] or its transpose, micrometers.
        deviations: N standard deviations.
        count: the number of vertices V.
    """
    deviations = np.asarray(deviations, float).reshape(-1)
    components = components if len(components) == len(deviations) else components.T
    components = np.asarray(components, float).reshape(len(deviations), count, 3)
    return components * deviations[:, None, None] * SCALE
