"""The kernel of the blendshapes against the same computation in plain torch.

Without a GPU it runs in Triton's interpreter, with TRITON_INTERPRET=1 in the environment.
"""

import os

import pytest
import torch

from talker.avatar.blendshapes import PARAMETERS
from talker.avatar.gaussians import Gaussians, camera_centers, to_view

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else pytest.mark.gpu


@pytest.mark.parametrize(
    ("frames", "count", "components", "harmonics"),
    [(3, 100, 5, 16), (17, 70, 20, 4), (1, 64, 16, 1)],
)
def test_equals_plain_torch(frames: int, count: int, components: int, harmonics: int) -> None:
    from talker.avatar.kernels.deform_triton import blend, blendshape_inputs

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    mean = 0.3 * normal(count, PARAMETERS + 3 * (harmonics - 1))
    shapes = (0.01 * normal(components, count, PARAMETERS)).half().float()
    weights, points = normal(frames, components).half().float(), normal(count, 3)
    viewmats = torch.eye(4, device=DEVICE).repeat(frames, 1, 1)
    viewmats[:, :3, :3] = torch.linalg.qr(normal(frames, 3, 3))[0]
    viewmats[:, :3, 3] = normal(frames, 3) + torch.tensor([0.0, 0, 6], device=DEVICE)

    moved = (weights @ shapes.flatten(1)).unflatten(1, shapes.shape[1:])
    flat = mean.expand(frames, -1, -1).clone()
    flat[..., :PARAMETERS] += moved
    expected = to_view(Gaussians.from_flat(flat), points, viewmats)
    inputs = blendshape_inputs(mean, shapes)
    computed = blend(inputs, weights, points, camera_centers(viewmats))
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
