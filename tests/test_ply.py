"""The PLY layout that 3D Gaussian splatting viewers read."""

import numpy as np
import pytest
import torch

from talker.avatar.gaussians import FIELDS, Gaussians, load_ply, save_ply
from talker.errors import UserError


def gaussians(coefficients: int, count: int = 7) -> Gaussians:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return Gaussians(
        means=normal(count, 3),
        quats=torch.nn.functional.normalize(normal(count, 4), dim=1),
        scales=normal(count, 3),
        opacities=normal(count),
        sh=normal(count, coefficients, 3),
    )


@pytest.mark.parametrize("coefficients", [1, 4, 9, 16])
def test_reads_back_what_was_written(tmp_path, coefficients):
    written = gaussians(coefficients)
    save_ply(tmp_path / "cloud.ply", written)
    read = load_ply(tmp_path / "cloud.ply")
    assert read.sh.shape == (7, 16, 3)
    assert not read.sh[:, coefficients:].any()
    for name, values in vars(written).items():
        found = getattr(read, name)
        found = found[:, :coefficients] if name == "sh" else found
        torch.testing.assert_close(found, values, rtol=1e-6, atol=0, msg=name)


def test_layout_is_that_of_3dgs(tmp_path):
    written = gaussians(16)
    save_ply(tmp_path / "cloud.ply", written)
    head, _, body = (tmp_path / "cloud.ply").read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 7"]
    assert lines[3:] == [f"property float {name}" for name in FIELDS]
    assert len(FIELDS) == 62
    table = np.frombuffer(body, [(name, "<f4") for name in FIELDS])
    np.testing.assert_array_equal(table["y"], written.means[:, 1])
    np.testing.assert_array_equal(table["nx"], 0)
    np.testing.assert_array_equal(table["f_dc_2"], written.sh[:, 0, 2])
    np.testing.assert_array_equal(table["f_rest_0"], written.sh[:, 1, 0])
    np.testing.assert_array_equal(table["f_rest_15"], written.sh[:, 1, 1])
    np.testing.assert_array_equal(table["f_rest_44"], written.sh[:, 15, 2])
    np.testing.assert_array_equal(table["opacity"], written.opacities)
    np.testing.assert_allclose(table["rot_0"], written.quats[:, 0], rtol=1e-6)


def test_no_gaussians(tmp_path):
    save_ply(tmp_path / "a.ply", gaussians(4, count=0))
    assert load_ply(tmp_path / "a.ply").sh.shape == (0, 16, 3)


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
    save_ply(path, gaussians(16))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"cloud\.ply"):
        load_ply(path)
