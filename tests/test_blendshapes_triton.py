"""The kernels of the blendshapes against the same computations in plain torch.

Without a GPU it runs in Triton's interpreter, with TRITON_INTERPRET=1 in the environment.
"""

import os

import pytest
import torch
from test_deform_triton import make_avatar

from talker.avatar.bake import Conditions, principal_components
from talker.avatar.blendshapes import PARAMETERS
from talker.avatar.gaussians import Gaussians, camera_centers, to_view
from talker.avatar.model import Shared

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


@pytest.mark.parametrize(("sh_degree", "heads"), [(3, 2), (0, 4)])
def test_the_merged_network_gives_the_same_weights(sh_degree: int, heads: int) -> None:
    avatar = make_avatar(sh_degree, heads, count=330).eval()
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    viewmats = torch.eye(4, device=DEVICE).repeat(24, 1, 1)
    viewmats[:, :3, :3] += 0.2 * normal(24, 3, 3)
    viewmats[:, :3, 3] = normal(24, 3) + torch.tensor([0.0, 0, 8], device=DEVICE)
    conditions = Conditions(normal(24, 10), normal(24, 2), viewmats)
    influence = torch.rand(330, PARAMETERS, generator=generator).to(DEVICE)
    blendshapes = principal_components(avatar, conditions, influence, 12)
    with torch.inference_mode():
        features = avatar.shared().features
        tokens = avatar.tokens(*conditions[:2], avatar.pose_vector(viewmats))
        brows = conditions.eye[:, 1]
        expected = avatar.blendshape_weights(blendshapes, tokens, brows, Shared(features))
        computed = avatar.weight_network(blendshapes, features)(*conditions)
    torch.testing.assert_close(computed, expected, rtol=0, atol=2e-3)
    assert expected.std(0).min() > 0.3
