"""The first canonical Gaussians: points on the tracked head mesh, coloured by a few frames."""

import numpy as np
import torch
from scipy.spatial import KDTree

from talker.avatar.model import Gaussians
from talker.avatar.spherical_harmonics import C0
from talker.head.camera import project

START_OPACITY = 0.5
NEIGHBOURS = 3


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray | None, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` points [count, 3], uniform on the mesh, or vertices if it has no faces."""
    if faces is None:
        return vertices[rng.choice(len(vertices), count, replace=len(vertices) < count)]
    corners = vertices[faces]
    areas = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1
    )
    chosen = corners[rng.choice(len(faces), count, p=areas / areas.sum())]
    weights = rng.dirichlet(np.ones(3), count)
    return np.einsum("nc,ncd->nd", weights, chosen)


def mean_colours(
    points: np.ndarray, images: np.ndarray, viewmats: np.ndarray, K: np.ndarray
) -> np.ndarray:
    """Mean colours [P, 3] (0..1) that images uint8 [N, H, W, 3] show where points [P, 3] fall."""
    height, width = images.shape[1:3]
    columns, rows = np.moveaxis(project(points, viewmats, K).astype(int), -1, 0)
    views = np.arange(len(images))[:, None]
    seen = images[views, rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return seen.mean(0) / 255


def initial_gaussians(points: np.ndarray, colours: np.ndarray, sh_degree: int) -> Gaussians:
    """Round Gaussians as large as the gaps between the points (3DGS, Kerbl et al. 2023, 5.1)."""
    count = len(points)
    gaps, _ = KDTree(points).query(points, k=NEIGHBOURS + 1)
    radius = np.sqrt(np.mean(gaps[:, 1:] ** 2, axis=1)).clip(1e-4)
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1
    sh = torch.zeros(count, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = torch.from_numpy((colours - 0.5) / C0)
    return Gaussians(
        means=torch.from_numpy(points).float(),
        quats=quats,
        scales=torch.from_numpy(np.log(radius)).float()[:, None].repeat(1, 3),
        opacities=torch.logit(torch.full((count,), START_OPACITY)),
        sh=sh,
    )
