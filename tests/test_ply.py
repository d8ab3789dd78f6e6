"""The PLY layout that 3D Gaussian splatting viewers read."""

import numpy as np
import pytest

from talker.avatar.gaussians import FIELDS, load_ply, save_ply
from talker.errors import UserError


def gaussians(coefficients: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    quats = rng.normal(size=(7, 4))
    return {
        "means": rng.normal(size=(7, 3)).astype(np.float32),
        "quats": (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        "scales": rng.normal(size=(7, 3)).astype(np.float32),
        "opacities": rng.normal(size=7).astype(np.float32),
        "sh": rng.normal(size=(7, coefficients, 3)).astype(np.float32),
    }


@pytest.mark.parametrize("coefficients", [1, 4, 9, 16])
def test_reads_back_what_was_written(tmp_path, coefficients):
    written = gaussians(coefficients)
    save_ply(tmp_path / "cloud.ply", **written)
    read = load_ply(tmp_path / "cloud.ply")
    assert read["sh"].shape == (7, 16, 3)
    assert not read["sh"][:, coefficients:].any()
    read["sh"] = read["sh"][:, :coefficients]
    for name, values in written.items():
        np.testing.assert_allclose(read[name], values, rtol=1e-6, err_msg=name)


def test_layout_is_that_of_3dgs(tmp_path):
    written = gaussians(16)
    save_ply(tmp_path / "cloud.ply", **written)
    head, _, body = (tmp_path / "cloud.ply").read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 7"]
    assert lines[3:] == [f"property float {name}" for name in FIELDS]
    assert len(FIELDS) == 62
    table = np.frombuffer(body, [(name, "<f4") for name in FIELDS])
    np.testing.assert_array_equal(table["y"], written["means"][:, 1])
    np.testing.assert_array_equal(table["nx"], 0)
    np.testing.assert_array_equal(table["f_dc_2"], written["sh"][:, 0, 2])
    np.testing.assert_array_equal(table["f_rest_0"], written["sh"][:, 1, 0])
    np.testing.assert_array_equal(table["f_rest_15"], written["sh"][:, 1, 1])
    np.testing.assert_array_equal(table["f_rest_44"], written["sh"][:, 15, 2])
    np.testing.assert_array_equal(table["opacity"], written["opacities"])
    np.testing.assert_allclose(table["rot_0"], written["quats"][:, 0], rtol=1e-6)


def test_no_gaussians(tmp_path):
    save_ply(tmp_path / "a.ply", **{name: x[:0] for name, x in gaussians(4).items()})
    assert load_ply(tmp_path / "a.ply")["sh"].shape == (0, 16, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-248],
        lambda content: content.replace(b"float nx", b"uchar nx"),
        lambda content: b"not a ply",
        lambda content: b"",
    ],
)
def test_other_files_are_refused(tmp_path, damage):
    path = tmp_path / "cloud.ply"
    save_ply(path, **gaussians(16))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"cloud\.ply"):
        load_ply(path)
