"""Gaussians as a binary PLY file in the 62-field layout of 3D Gaussian splatting viewers."""

import re
from pathlib import Path

import numpy as np

from talker.clip import check_regular
from talker.errors import UserError

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


def _header(count: int, comment: str = "") -> bytes:
    properties = "".join(f"property float {name}\n" for name in FIELDS)
    comments = f"comment {comment}\n" if comment else ""
    return (
        f"ply\nformat binary_little_endian 1.0\n{comments}element vertex {count}\n"
        f"{properties}end_header\n"
    ).encode("ascii", "backslashreplace")


def save_ply(
    path: Path,
    means: np.ndarray,
    quats: np.ndarray,
    scales: np.ndarray,
    opacities: np.ndarray,
    sh: np.ndarray,
    comment: str = "",
) -> None:
    """Write the raw parameters of G Gaussians.

    Args:
        means: [G, 3].
        quats: [G, 4] wxyz; normalized in the file, as some viewers expect.
        scales: [G, 3] natural logarithms.
        opacities: [G] logits.
        sh: [G, K, 3], K <= 16, padded with zeros.
        comment: line of text for the header.
    """
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


def load_ply(path: Path) -> dict[str, np.ndarray]:
    """Read a file written by `save_ply` or another 3DGS program.

    Returns:
        The arrays of `save_ply` by name, as float32 and with K = 16.

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
    table = np.frombuffer(body, "<f4").reshape(count, len(FIELDS))
    means, _, constant, rest, opacities, scales, quats = np.split(
        table, np.cumsum([3, 3, 3, 3 * REST, 1, 3]), axis=1
    )
    rest = rest.reshape(count, 3, REST).transpose(0, 2, 1)
    return {
        "means": means,
        "quats": quats,
        "scales": scales,
        "opacities": opacities[:, 0],
        "sh": np.concatenate([constant[:, None], rest], axis=1),
    }
