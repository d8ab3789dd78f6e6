"""3D Gaussians: parameters, initialization on the head mesh, view-dependent colors, .ply files.

Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", SIGGRAPH 2023.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn import functional as F

from talker.avatar.rasterize import Splats
from talker.clip import check_regular
from talker.errors import UserError
from talker.head.camera import project

START_OPACITY = 0.5
"""Opacity (0..1) of every Gaussian before training."""
NEIGHBORS = 3
"""Number of nearest neighbors whose mean distance is the initial size of a Gaussian."""
MAX_SH_DEGREE = 3
"""Highest supported degree of the spherical harmonics of a color."""
C0 = 0.28209479177387814
"""Value of the constant spherical harmonic, 1 / (2 sqrt(pi))."""
REST = 15
"""Number of color coefficients per channel for degree 3, not counting the constant one."""
FIELDS = [
    *("x", "y", "z", "nx", "ny", "nz"),
    *(f"f_dc_{i}" for i in range(3)),
    *(f"f_rest_{i}" for i in range(3 * REST)),
    "opacity",
    *(f"scale_{i}" for i in range(3)),
    *(f"rot_{i}" for i in range(4)),
]
"""Properties of a vertex in a .ply file, in the layout of viewers of 3D Gaussian Splatting."""


@dataclass(frozen=True)
class Gaussians:
    """Raw parameters of G Gaussians: one set, or one set for each of B frames: [(B,) G, ...]."""

    means: Float[Tensor, "*B G 3"]
    """[(B,) G, 3] centers, dm"""
    quats: Float[Tensor, "*B G 4"]
    """[(B,) G, 4] rotations as quaternions wxyz, not normalized"""
    scales: Float[Tensor, "*B G 3"]
    """[(B,) G, 3] natural logarithms of the standard deviations in dm"""
    opacities: Float[Tensor, "*B G"]
    """[(B,) G] logits"""
    sh: Float[Tensor, "*B G K 3"]
    """[(B,) G, K, 3] spherical harmonics coefficients of the color"""

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return the fields as NumPy arrays, in their order."""
        return tuple(value.detach().cpu().numpy() for value in vars(self).values())

    def flat(self) -> Float[Tensor, "*B G P"]:
        """Return all parameters as [(B,) G, P], P = 11 + 3 K, in the order of the fields."""
        parts = (
            self.means,
            self.quats,
            self.scales,
            self.opacities[..., None],
            self.sh.flatten(-2),
        )
        return torch.cat(parts, dim=-1)

    @classmethod
    def from_flat(cls, values: Float[Tensor, "*B G P"]) -> "Gaussians":
        """Return the Gaussians whose `flat` is [(B,) G, P]."""
        means, quats, scales, opacities, sh = values.split(
            (3, 4, 3, 1, values.shape[-1] - 11), dim=-1
        )
        return cls(means, quats, scales, opacities[..., 0], sh.unflatten(-1, (-1, 3)))


def sample_surface(
    vertices: Float[np.ndarray, "V 3"],
    faces: Integer[np.ndarray, "F 3"] | None,
    count: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "{count} 3"]:
    """Sample points [count, 3] uniformly on a triangle mesh, or among its vertices without faces.

    Args:
        vertices: [V, 3].
        faces: [F, 3] vertex ids, or None.
    """
    if faces is None:
        return vertices[rng.choice(len(vertices), count, replace=len(vertices) < count)]
    corners = vertices[faces]
    areas = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1
    )
    chosen = corners[rng.choice(len(faces), count, p=areas / areas.sum())]
    weights = rng.dirichlet(np.ones(3), count)
    return np.einsum("nc,ncd->nd", weights, chosen)


def mean_colors(
    points: Float[np.ndarray, "P 3"],
    images: UInt8[np.ndarray, "N H W 3"],
    viewmats: Float[np.ndarray, "N 4 4"],
    K: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "P 3"]:
    """Return the mean color [P, 3] (0..1) of the pixels that points project to.

    Args:
        points: [P, 3], dm.
        images: uint8 [N, H, W, 3].
        viewmats: [N, 4, 4] world to camera.
        K: [3, 3] intrinsics in pixels.
    """
    height, width = images.shape[1:3]
    columns, rows = np.moveaxis(project(points, viewmats, K).astype(int), -1, 0)
    views = np.arange(len(images))[:, None]
    sampled = images[views, rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return sampled.mean(0) / 255


def initial_gaussians(
    points: Float[np.ndarray, "G 3"], colors: Float[np.ndarray, "G 3"], sh_degree: int
) -> Gaussians:
    """Create round Gaussians as large as the gaps between the points (3DGS, section 5.1).

    Args:
        points: [G, 3] centers, dm.
        colors: [G, 3], 0..1.
    """
    from scipy.spatial import KDTree  # takes 0.4 s, and only training needs it

    count = len(points)
    gaps, _ = KDTree(points).query(points, k=NEIGHBORS + 1)
    radius = np.sqrt(np.mean(gaps[:, 1:] ** 2, axis=1)).clip(1e-4)
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1
    sh = torch.zeros(count, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = torch.from_numpy((colors - 0.5) / C0)
    return Gaussians(
        means=torch.from_numpy(points).float(),
        quats=quats,
        scales=torch.from_numpy(np.log(radius)).float()[:, None].repeat(1, 3),
        opacities=torch.logit(torch.full((count,), START_OPACITY)),
        sh=sh,
    )


def to_view(
    gaussians: Gaussians, points: Float[Tensor, "G 3"], viewmats: Float[Tensor, "B 4 4"]
) -> Splats:
    """Activate Gaussians [(B,) G, ...] and evaluate their colors for B views.

    Args:
        points: [G, 3] canonical means, from which the viewing directions are taken: deformation
            hardly changes them, and the colors then have no gradient with respect to the means.
        viewmats: [B, 4, 4] world to camera.
    """
    directions = F.normalize(points - camera_centers(viewmats)[:, None], dim=-1)

    def batched(x: Tensor, dims: int) -> Tensor:
        return x if x.ndim == dims else x.expand(len(viewmats), *x.shape)

    return Splats(
        means=batched(gaussians.means, 3),
        quats=batched(gaussians.quats, 3),
        scales=batched(gaussians.scales, 3).exp(),
        opacities=batched(gaussians.opacities, 2).sigmoid(),
        colors=evaluate_sh(batched(gaussians.sh, 4), directions),
    )


def camera_centers(viewmats: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 3"]:
    """Return the world positions [B, 3] of cameras with world-to-camera matrices [B, 4, 4]."""
    return -(viewmats[:, :3, :3].transpose(1, 2) @ viewmats[:, :3, 3:])[..., 0]


def evaluate_sh(
    sh: Float[Tensor, "*#N K 3"], directions: Float[Tensor, "*#N 3"]
) -> Float[Tensor, "*#N 3"]:
    """Evaluate spherical harmonics as colors [..., 3], at least 0.

    Args:
        sh: coefficients [..., K, 3], K = 1, 4, 9 or 16, in the order and with the signs of 3DGS
            and gsplat; if all are 0, the color is middle gray.
        directions: unit vectors [..., 3] from the camera to the Gaussian, in the world.

    Raises:
        ValueError: K is not one of those numbers.
    """
    basis = sh_basis(directions, sh.shape[-2])
    return ((basis[..., None] * sh).sum(dim=-2) + 0.5).clamp_min(0)


def sh_basis(directions: Float[Tensor, "*N 3"], count: int) -> Float[Tensor, "*N {count}"]:
    """Return the first `count` real harmonics [..., count] at unit vectors [..., 3].

    P.-P. Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013.
    """
    if count not in (1, 4, 9, 16):
        raise ValueError(
            "A Gaussian must have 1, 4, 9 or 16 spherical-harmonics coefficients per color "
            f"channel, not {count}."
        )
    x, y, z = directions.unbind(dim=-1)
    values = [torch.full_like(x, C0)]
    if count > 1:
        c = 0.4886025119029199
        values += [-c * y, c * z, -c * x]
    if count > 4:
        c = 1.0925484305920792
        values += [c * x * y, -c * y * z, 0.31539156525252005 * (3 * z * z - 1)]
        values += [-c * x * z, c / 2 * (x * x - y * y)]
    if count > 9:
        c3, c2, c1 = 0.5900435899266435, 1.445305721320277, 0.4570457994644658
        values += [-c3 * y * (3 * x * x - y * y), 2 * c2 * x * y * z, -c1 * y * (5 * z * z - 1)]
        values += [0.3731763325901154 * z * (5 * z * z - 3), -c1 * x * (5 * z * z - 1)]
        values += [c2 * z * (x * x - y * y), -c3 * x * (x * x - 3 * y * y)]
    return torch.stack(values, dim=-1)


def _header(count: int, comment: str = "") -> bytes:
    properties = "".join(f"property float {name}\n" for name in FIELDS)
    comments = f"comment {comment}\n" if comment else ""
    return (
        f"ply\nformat binary_little_endian 1.0\n{comments}element vertex {count}\n"
        f"{properties}end_header\n"
    ).encode("ascii", "backslashreplace")


def save_ply(
    path: Path,
    gaussians: Gaussians,
    comment: str = "",
) -> None:
    """Write Gaussians [G, ...] to a .ply file.

    The quaternions are normalized, as some viewers expect, and the colors are padded with zeros to
    16 coefficients.

    Args:
        path: file to write.
        gaussians: Gaussians with at most 16 color coefficients.
        comment: line of text for the header.
    """
    means, quats, scales, opacities, sh = gaussians.arrays()
    count = len(means)
    rest = np.zeros((count, 3, REST))
    rest[:, :, : sh.shape[1] - 1] = sh[:, 1:].transpose(0, 2, 1)  # all of red first
    columns = [
        means,
        np.zeros((count, 3)),
        sh[:, 0],
        rest.reshape(count, 3 * REST),
        opacities[:, None],
        scales,
        quats / np.linalg.norm(quats, axis=-1, keepdims=True),
    ]
    path.write_bytes(
        _header(count, comment) + np.concatenate(columns, axis=1).astype("<f4").tobytes()
    )


def load_ply(path: Path) -> Gaussians:
    """Return the Gaussians [G, ...] of a .ply file, with 16 color coefficients.

    The file may also be from another program for 3D Gaussian splatting.

    Raises:
        UserError: the file is not in that layout.
    """
    check_regular(path)
    content = path.read_bytes()
    head, end, body = content.partition(b"end_header\n")
    head = b"".join(re.findall(rb"(?m)^(?!comment ).*\n", head))
    count = len(body) // (4 * len(FIELDS))
    if head + end != _header(count) or len(body) != 4 * len(FIELDS) * count:
        raise UserError(
            f"{path} is not a binary PLY file with the {len(FIELDS)} float fields of 3D "
            "Gaussian splatting (x to rot_3), or its size does not match its header."
        )
    table = torch.from_numpy(np.frombuffer(body, "<f4").reshape(count, len(FIELDS)).copy())
    means, _, constant, rest, opacities, scales, quats = table.split(
        (3, 3, 3, 3 * REST, 1, 3, 4), dim=1
    )
    sh = torch.cat([constant[:, None], rest.reshape(count, 3, REST).mT], dim=1)
    return Gaussians(means, quats, scales, opacities[:, 0], sh)
