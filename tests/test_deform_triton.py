"""The fused kernel against the network in plain torch, values and every gradient.

Without a GPU it runs in Triton's interpreter, with TRITON_INTERPRET=1 in the environment.
"""

import os

import numpy as np
import pytest
import torch

from talker.avatar.gaussians import initial_gaussians
from talker.avatar.model import Avatar, AvatarConfig, Shared

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else pytest.mark.gpu


def make_avatar(sh_degree: int, heads: int, width: int = 32, count: int = 77) -> Avatar:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, 3)) * 0.5
    config = AvatarConfig(
        image_size=48,
        speech_features=6,
        encoder="hama",
        sh_degree=sh_degree,
        plane_resolutions=(8, 16),
        plane_channels=4,
        features=width,
        heads=heads,
        layers=1,
        hidden=2 * width,
    )
    viewmats = torch.eye(4).repeat(5, 1, 1)
    gaussians = initial_gaussians(points, rng.random((count, 3)), sh_degree)
    avatar = Avatar(config, gaussians, torch.tensor([[-2.0] * 3, [2.0] * 3]), viewmats)
    with torch.no_grad():  # as after training: nothing is zero, nothing is one
        for parameter in avatar.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return avatar.to(DEVICE)


@pytest.mark.parametrize(("sh_degree", "heads"), [(3, 2), (1, 4), (0, 1)])
def test_equals_the_plain_network(sh_degree: int, heads: int, monkeypatch) -> None:
    from talker.avatar.kernels import deform_triton

    kernel = deform_triton.deform
    monkeypatch.setattr(deform_triton, "deform", lambda *a: kernel(*a, exact=True))
    avatar = make_avatar(sh_degree, heads)
    generator = torch.Generator().manual_seed(1)
    viewmats = torch.eye(4).repeat(3, 1, 1)
    viewmats[:, :3, 3] = torch.tensor([[0.1, 0.2, 8.0], [-0.2, 0.0, 7.0], [0.0, 0.3, 9.0]])
    viewmats = viewmats.to(DEVICE)
    conditions = [torch.randn(3, n, generator=generator).to(DEVICE) for n in (10, 2, 12)]

    def outcome(way: str) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        avatar.zero_grad()
        features = avatar.shared().features
        inputs = avatar.fused_inputs(features, avatar.gaussians())
        shared = Shared(features, inputs if way == "kernel" else None)
        expression, eye, pose = conditions
        splats = avatar.deform(expression, eye, viewmats, shared, pose)
        pull = torch.Generator().manual_seed(2)
        loss = sum((s * torch.randn(s.shape, generator=pull).to(s)).sum() for s in splats)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        names = avatar.named_parameters()
        return list(splats), {n: p.grad.clone() for n, p in names if p.grad is not None}

    found, found_gradients = outcome("kernel")
    expected, expected_gradients = outcome("plain")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        error = (found_gradients[name] - gradient).norm()
        assert error <= 1e-4 * gradient.norm() + 1e-6, name


@pytest.mark.skipif(INTERPRETED, reason="the interpreter cannot multiply bfloat16")
def test_bfloat16_is_close_at_the_size_of_an_avatar() -> None:
    avatar = make_avatar(3, 2, width=64, count=5003)
    generator = torch.Generator().manual_seed(1)
    conditions = [torch.randn(8, n, generator=generator).to(DEVICE) for n in (10, 2, 12)]
    viewmats = torch.eye(4, device=DEVICE).repeat(8, 1, 1)
    viewmats[:, 2, 3] = 8

    def outcome(fused: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        shared = avatar.shared()
        assert shared.fused is not None
        shared = shared if fused else Shared(shared.features, None)
        expression, eye, pose = conditions
        splats = avatar.deform(expression, eye, viewmats, shared, pose)
        pull = torch.Generator().manual_seed(2)
        loss = sum((s * torch.randn(s.shape, generator=pull).to(s)).sum() for s in splats)
        names = ["feature_proj.weight", "heads.weight", "hidden.weight", "speech_token.0.weight"]
        wanted = [avatar.get_parameter(name) for name in names]
        return list(splats), list(torch.autograd.grad(loss, wanted))

    (found, found_gradients), (expected, gradients) = outcome(True), outcome(False)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.03 * (b - b.mean()).norm()
    for a, b in zip(found_gradients, gradients, strict=True):
        assert (a - b).norm() < 0.15 * b.norm()
    again = outcome(True)[1]
    assert all(torch.equal(a, b) for a, b in zip(found_gradients, again, strict=True))
