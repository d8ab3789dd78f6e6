"""Compare the CPU rasterizer with a plain float64 renderer, and those of a GPU with the CPU."""

import math
import multiprocessing
import sys
from typing import NamedTuple

import pytest
import torch
from oracle import render
from torch import Tensor

from talker.avatar import rasterize as rasterizer
from talker.avatar.rasterize import Rasterized, Splats, rasterize

WIDTH, HEIGHT = 150, 37  # several tiles across and down, none of them full


class Scene(NamedTuple):
    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor

    def leaves(self, dtype=torch.float32, device="cpu") -> "Scene":
        moved = [tensor.detach().to(device, dtype, copy=True) for tensor in self]
        return Scene(*(tensor.requires_grad_() for tensor in moved))


def make_scene(batch: int = 2, n: int = 90, seed: int = 0) -> Scene:
    """Return Gaussians inside and outside the view of tilted cameras, in random order of depth."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0, high: float = 1) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    means = uniform(batch, n, 3, low=-1, high=1) * torch.tensor([2.6, 0.8, 1.0])
    quats = torch.randn(batch, n, 4, generator=generator) * 3
    scales = 0.08 * torch.exp(0.8 * torch.randn(batch, n, 3, generator=generator))
    opacities = uniform(batch, n, low=0.02)
    viewmats = torch.eye(4).repeat(batch, 1, 1)
    for b in range(batch):
        c, s = math.cos(0.2 + 0.1 * b), math.sin(0.2 + 0.1 * b)
        viewmats[b, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        viewmats[b, :3, 3] = torch.tensor([0.1, -0.05, 4.0])
    Ks = torch.tensor([[110.0, 0, 71], [0, 105, 20], [0, 0, 1]]).repeat(batch, 1, 1)
    return Scene(means, quats, scales, opacities, uniform(batch, n, 3), viewmats, Ks)


def behind_the_camera() -> Scene:
    scene = make_scene(seed=1)
    scene.means[:, ::3, 2] -= 6
    scene.means[:, 1::3] *= 4  # outside the view, partly reaching into it
    scene.scales[:, 1::3] *= 5
    return scene


def huge_and_tiny() -> Scene:
    scene = make_scene(seed=2)
    scene.scales[:, ::8] *= 10
    scene.scales[:, 1::4] *= 1e-4
    scene.scales[:, 2::4, 0] *= 6  # needles: float32 conics cost them digits
    return scene


def opaque() -> Scene:
    """Return a scene in which rays end early and alphas are clamped."""
    scene = make_scene(n=120, seed=3)
    scene.scales.mul_(4)
    scene.opacities.clamp_(min=0.97)[:, ::2] = 1
    return scene


SCENES = {
    "plain": make_scene,
    "behind_the_camera": behind_the_camera,
    "huge_and_tiny": huge_and_tiny,
    "opaque": opaque,
}


def truth(scene: Scene, margin: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    images = [
        render(*(tensor[b] for tensor in scene), WIDTH, HEIGHT, margin)
        for b in range(len(scene.means))
    ]
    rgb, alpha, sure = (torch.stack(parts) for parts in zip(*images, strict=True))
    assert sure.float().mean() > 0.98
    return rgb, alpha, sure[..., None]


def weights(seed: int = 9) -> tuple[Tensor, Tensor]:
    """Arbitrary gradients of a loss with respect to rgb and alpha."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, HEIGHT, WIDTH)
    return (
        torch.randn(*shape, 3, generator=generator),
        torch.randn(*shape, 1, generator=generator),
    )


def backward(rgb: Tensor, alpha: Tensor, sure: Tensor) -> None:
    w_rgb, w_alpha = (w.to(rgb) * sure.to(rgb) for w in weights())
    ((rgb * w_rgb).sum() + (alpha * w_alpha).sum()).backward()


def grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def draw(scene: Scene) -> Rasterized:
    return rasterize(Splats(*scene[:5]), scene.viewmats, scene.Ks, WIDTH, HEIGHT)


@pytest.mark.parametrize("name", SCENES)
def test_image_and_gradients_match_the_oracle(name):
    scene = SCENES[name]()
    exact, fast = scene.leaves(torch.float64), scene.leaves()
    rgb, alpha, sure = truth(exact)
    drawn = draw(fast)
    assert ((drawn.rgb - rgb) * sure).abs().max() < 1e-5
    assert ((drawn.alpha - alpha) * sure).abs().max() < 1e-5
    backward(rgb, alpha, sure)
    backward(drawn.rgb, drawn.alpha, sure)
    for field in ("means", "quats", "scales", "opacities", "colors"):
        expected, found = grad(getattr(exact, field)), grad(getattr(fast, field))
        tolerance = 1e-4 if name == "huge_and_tiny" else 1e-5
        assert (found - expected).norm() <= tolerance * expected.norm(), field
        assert (found - expected).abs().max() <= tolerance * expected.abs().max(), field


def test_scenes_reach_the_limits():
    scene = opaque()
    alpha = draw(scene).alpha
    assert (alpha > 0.999).float().mean() > 0.5  # several layers, rays that end
    assert alpha.max() < 1
    assert (draw(behind_the_camera()).radii == 0).float().mean() > 0.3
    assert draw(huge_and_tiny()).radii.max() > WIDTH


def test_means2d_gradient_is_that_of_the_principal_point():
    scene = make_scene()
    scene.means.mul_(0.5)  # well inside, where the Jacobian does not depend on it
    exact, fast = scene.leaves(torch.float64), scene.leaves()
    drawn = draw(fast)
    drawn.means2d.retain_grad()
    rgb, alpha, sure = truth(exact)
    backward(rgb, alpha, sure)
    backward(drawn.rgb, drawn.alpha, sure)
    shift = grad(drawn.means2d).sum(dim=1)
    assert torch.allclose(shift, grad(exact.Ks)[:, :2, 2].float(), rtol=1e-4, atol=1e-4)


def test_alpha_alone_has_gradients():
    scene = make_scene().leaves()
    draw(scene).alpha.sum().backward()
    for tensor in scene[:4]:
        assert grad(tensor).abs().sum() > 0
    assert grad(scene.colors).abs().sum() == 0


def test_an_image_does_not_depend_on_its_batch():
    scene = make_scene(batch=3)
    together = draw(scene)
    for b in range(3):
        alone = draw(Scene(*(tensor[b : b + 1] for tensor in scene)))
        assert all(torch.equal(x[b : b + 1], y) for x, y in zip(together, alone, strict=True))


def test_repeats_bitwise_with_any_number_of_threads():
    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        scene = opaque().leaves()
        drawn = draw(scene)
        backward(drawn.rgb, drawn.alpha, torch.ones(()))
        return [drawn.rgb, drawn.alpha, *(grad(tensor) for tensor in scene[:5])]

    before = torch.get_num_threads()
    try:
        runs = [run(threads) for threads in (1, 1, 2, 3)]
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))


def test_one_opaque_gaussian_is_where_the_camera_puts_it():
    scene = Scene(
        means=torch.tensor([[[0.5, -0.2, 1.0]]]),
        quats=torch.tensor([[[1.0, 0, 0, 0]]]),
        scales=torch.full((1, 1, 3), 0.01),
        opacities=torch.ones(1, 1),
        colors=torch.tensor([[[0.2, 0.5, 0.9]]]),
        viewmats=torch.eye(4)[None]
        + torch.tensor([[0, 0, 0, 0.0]] * 2 + [[0, 0, 0, 3]] + [[0] * 4]),
        Ks=torch.tensor([[[100.0, 0, 70], [0, 100, 20], [0, 0, 1]]]),
    )
    drawn = draw(scene)
    assert drawn.means2d[0, 0].tolist() == pytest.approx([82.5, 15.0])
    peak = drawn.alpha[0, :, :, 0].argmax().item()
    assert divmod(peak, WIDTH) in [(14, 82), (15, 82)]  # the centre lies between two rows
    covered = drawn.alpha[0, ..., 0] > 0
    assert torch.allclose(
        drawn.rgb[0][covered] / drawn.alpha[0][covered], scene.colors[0, 0].expand(1, 3), atol=1e-6
    )


def test_nothing_visible_is_an_empty_image():
    scene = make_scene()
    scene.means[..., 2] -= 10
    for nothing in (scene, make_scene(n=0)):
        leaves = nothing.leaves()
        drawn = draw(leaves)
        assert drawn.rgb.abs().max() == 0 and drawn.alpha.abs().max() == 0
        assert (drawn.radii == 0).all()
        drawn.rgb.sum().backward()
        assert not grad(leaves.means).any()


def test_a_gaussian_that_is_not_a_number_is_not_visible():
    scene = make_scene()
    expected = draw(Scene(*(t[:, 1:] for t in scene[:5]), scene.viewmats, scene.Ks))
    scene.means[:, 0] = torch.nan
    drawn = draw(scene)
    assert torch.equal(drawn.rgb, expected.rgb)
    assert (drawn.radii[:, 0] == 0).all()


def test_other_precisions_are_refused():
    with pytest.raises(TypeError, match="float64"):
        draw(make_scene().leaves(torch.float64))


def test_draws_in_a_forked_child():
    scene = make_scene()
    expected = draw(scene).rgb.numpy().tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(draw(scene).rgb.numpy().tobytes()))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.kill()
        child.join()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(params=["our kernels", "gsplat"])
def on_gpu(request, monkeypatch):
    """Draw on a GPU with each of the two implementations."""
    if request.param == "gsplat":
        monkeypatch.setattr(rasterizer, "_draw_projected", lambda: rasterizer.draw_with_gsplat)
    return request.param


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", SCENES)
def test_a_gpu_draws_what_the_cpu_draws(name, on_gpu):
    """Expected: image within 2e-5, gradients within 1e-3 of their norm.

    A GPU takes a fast exponential and, in gsplat, for rays that are nearly full, the transmittance
    from 1 - alpha. Where a decision falls the other way, a pixel may differ by 1/255.
    """
    scene = SCENES[name]()
    _, _, sure = truth(scene.leaves(torch.float64), margin=1e-3)
    here, there = scene.leaves(), scene.leaves(device="cuda")
    by_cpu, by_gpu = draw(here), draw(there)
    by_gpu.means2d.retain_grad()
    by_cpu.means2d.retain_grad()
    assert ((by_cpu.rgb - by_gpu.rgb.cpu()) * sure).abs().max() < 1e-4
    assert ((by_cpu.alpha - by_gpu.alpha.cpu()) * sure).abs().max() < 1e-4
    assert (by_cpu.rgb - by_gpu.rgb.cpu()).abs().max() < 5e-3
    assert ((by_cpu.radii > 0) == (by_gpu.radii.cpu() > 0)).float().mean() > 0.97
    backward(by_cpu.rgb, by_cpu.alpha, sure)
    backward(by_gpu.rgb, by_gpu.alpha, sure.cuda())
    pairs = {field: (getattr(here, field), getattr(there, field)) for field in Scene._fields[:5]}
    pairs["means2d"] = (by_cpu.means2d, by_gpu.means2d)
    for field, (mine, theirs) in pairs.items():
        difference = (grad(mine) - grad(theirs).cpu()).norm()
        assert difference <= 5e-3 * grad(mine).norm(), field


def large_scene(seed: int = 4) -> Scene:
    """Return 4,000 Gaussians in images of 700 x 530 pixels, most of them in front of each other."""
    scene = make_scene(n=4000, seed=seed)
    scene.means[:, ::2] *= 0.1  # a tile with many hundreds of Gaussians
    scene.scales.mul_(0.3)
    scene.opacities.mul_(0.3)
    scene.Ks[:] = torch.tensor([[550.0, 0, 350], [0, 550, 265], [0, 0, 1]])
    return scene


def draw_large(draws, seed: int = 4) -> list[Tensor]:
    """Return the images and the gradients of `large_scene` on a GPU."""
    scene = large_scene(seed).leaves(device="cuda")
    given = Splats(*scene[:5]), scene.viewmats, scene.Ks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rasterizer, "_draw_projected", lambda: draws)
        drawn = rasterize(*given, 700, 530)
    generator = torch.Generator("cuda").manual_seed(seed)
    images = drawn.rgb, drawn.alpha
    noise = [torch.randn(x.shape, generator=generator, device="cuda") for x in images]
    torch.autograd.backward(images, noise)
    return [x.detach() for x in images] + [grad(tensor) for tensor in scene[:5]]


@pytest.mark.gpu
@needs_gpu
def test_our_kernels_draw_large_images_and_long_lists_as_gsplat_does():
    """The tiles of these images do not fit into shared memory at once."""
    from talker.avatar.kernels.rasterize_cuda import draw_projected

    for found, expected in zip(
        draw_large(draw_projected), draw_large(rasterizer.draw_with_gsplat), strict=True
    ):
        assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.gpu
@needs_gpu
def test_our_kernels_repeat_gradients_bitwise():
    from talker.avatar.kernels.rasterize_cuda import draw_projected

    first, *others = (draw_large(draw_projected) for _ in range(4))
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


@pytest.mark.gpu
@needs_gpu
def test_graphs_draw_lists_of_any_length():
    """Small Gaussians are in few tiles, so the graphs have no memory for those of large ones."""

    def work(*tensors: Tensor) -> list[Tensor]:
        scene = Scene(*(tensor.detach().requires_grad_() for tensor in tensors))
        drawn = rasterize(Splats(*scene[:5]), *scene[5:], WIDTH, HEIGHT)
        loss = (drawn.rgb**2).sum() + (drawn.alpha**2).sum()
        return [drawn.rgb, drawn.alpha, *torch.autograd.grad(loss, scene[:5])]

    large = [tensor.cuda() for tensor in make_scene()]
    small = [tensor.cuda() for tensor in make_scene(seed=1)]
    small[2] = 0.02 * small[2]
    expected = {id(scene): [x.clone() for x in work(*scene)] for scene in (small, large)}
    graphs = rasterizer.as_graphs(work)
    assert graphs is not work
    for scene in (small, small, large, small, large, large):
        found = graphs(*scene)
        assert all(torch.equal(a, b) for a, b in zip(found, expected[id(scene)], strict=True))


@pytest.mark.gpu
@needs_gpu
def test_our_kernels_draw_nothing():
    scene = make_scene()
    scene.means[..., 2] -= 10
    leaves = scene.leaves(device="cuda")
    drawn = draw(leaves)
    assert drawn.rgb.abs().max() == 0 and drawn.alpha.abs().max() == 0
    drawn.rgb.sum().backward()
    assert not grad(leaves.means).any()


def test_gsplat_draws_without_cuda_core(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    monkeypatch.delitem(sys.modules, "talker.avatar.kernels.rasterize_cuda", raising=False)
    rasterizer._draw_projected.cache_clear()
    try:
        assert rasterizer._draw_projected() is rasterizer.draw_with_gsplat
    finally:
        rasterizer._draw_projected.cache_clear()
    assert "pip install '.[cuda]'" in caplog.text
