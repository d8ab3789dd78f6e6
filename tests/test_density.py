"""Adding and removing Gaussians under an optimizer."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from talker.avatar.density import (
    DensityConfig,
    DensityControl,
    densify,
    refine,
    reset_opacities,
    rotate,
)

CONFIG = DensityConfig(
    start=100,
    stop=300,
    every=50,
    grad_threshold=1.0,
    split_scale=0.03,
    min_opacity=0.01,
    max_scale=0.3,
    max_gaussians=100,
)
SMALL, LARGE, HUGE = 0.01, 0.1, 0.5
QUIET, LOUD = 0.5, 2.0


def make(scales: list[float], opacities: list[float]) -> tuple[nn.ParameterDict, torch.optim.Adam]:
    """Gaussians after one Adam step, so that every parameter has optimizer state."""
    n, generator = len(scales), torch.Generator().manual_seed(1)
    params = nn.ParameterDict(
        {
            "means": nn.Parameter(torch.randn(n, 3, generator=generator)),
            "quats": nn.Parameter(torch.randn(n, 4, generator=generator)),
            "scales": nn.Parameter(torch.tensor(scales).log()[:, None] - torch.tensor([2.0, 0, 1])),
            "opacities": nn.Parameter(torch.tensor(opacities).logit()),
            "sh": nn.Parameter(torch.randn(n, 4, 3, generator=generator)),
        }
    )
    optimizer = torch.optim.Adam([{"params": [p], "name": k} for k, p in params.items()], lr=0)
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    return params, optimizer


def run(params, optimizer, gradients: list[float], config=CONFIG, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    densify(params, optimizer, torch.tensor(gradients), config, generator)


def moments(optimizer: torch.optim.Adam, param: Tensor) -> Tensor:
    return optimizer.state[param]["exp_avg"]


def test_only_what_is_asked_for_changes():
    params, optimizer = make([SMALL, LARGE], [0.5, 0.5])
    before = {name: p.detach().clone() for name, p in params.items()}
    state = moments(optimizer, params["sh"]).clone()
    run(params, optimizer, [QUIET, QUIET])
    assert all(torch.equal(params[name], before[name]) for name in before)
    assert torch.equal(moments(optimizer, params["sh"]), state)


def test_small_ones_are_cloned():
    params, optimizer = make([SMALL, SMALL, LARGE], [0.5, 0.6, 0.7])
    before = {name: p.detach().clone() for name, p in params.items()}
    run(params, optimizer, [QUIET, LOUD, QUIET])
    for name, old in before.items():
        assert torch.equal(params[name], torch.cat([old, old[1:2]])), name


def test_large_ones_are_split_in_two_smaller_ones():
    params, optimizer = make([LARGE, SMALL], [0.5, 0.6])
    before = {name: p.detach().clone() for name, p in params.items()}
    run(params, optimizer, [LOUD, QUIET])
    assert len(params["means"]) == 3
    for name in ("quats", "opacities", "sh"):
        assert torch.equal(params[name], before[name][[1, 0, 0]]), name
    assert torch.allclose(params["scales"][1:], before["scales"][:1] - math.log(1.6))
    assert not torch.equal(params["means"][1], params["means"][2])


def test_halves_are_spread_like_the_whole():
    params, optimizer = make([LARGE] * 4000, [0.5] * 4000)
    with torch.no_grad():
        for name in ("means", "quats", "scales"):
            params[name].copy_(params[name][:1].expand_as(params[name]).clone())
    mean, quat, scale = (params[name][0].detach().clone() for name in ("means", "quats", "scales"))
    run(params, optimizer, [LOUD] * 4000, DensityConfig(max_gaussians=10_000))
    offsets = params["means"].detach() - mean
    axes = rotate(quat.expand(3, 4), torch.eye(3))
    along = offsets @ axes.T
    assert len(offsets) == 8000
    assert torch.allclose(along.std(dim=0), scale.exp(), rtol=0.05)
    assert (along.mean(dim=0).abs() < 0.05 * scale.exp()).all()


def test_refined_gaussians_cover_the_same_area_and_the_others_stay():
    params, optimizer = make([LARGE, SMALL, LARGE], [0.5, 0.6, 0.7])
    before = {name: p.detach().clone() for name, p in params.items()}
    generator = torch.Generator().manual_seed(1)
    refine(params, optimizer, torch.tensor([2]), 4, generator)
    for name, old in before.items():
        assert torch.equal(params[name][:2], old[:2]), name
        assert len(params[name]) == 6
    for name in ("quats", "opacities", "sh"):
        assert torch.equal(params[name][2:], before[name][[2] * 4]), name
    area = (2 * before["scales"][2]).exp()
    assert torch.allclose((2 * params["scales"][2:]).exp().sum(0), area, rtol=1e-5)
    spread = (params["means"][2:] - before["means"][2]).norm(dim=-1)
    assert ((spread > 0) & (spread < 4 * before["scales"][2].exp().max())).all()
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in params.values()
    }


def test_rotate_turns_about_the_axis_of_the_quaternion():
    quarter = torch.tensor([[1.0, 0, 0, 1]]) * 7  # 90 degrees about z
    turned = rotate(quarter, torch.tensor([[1.0, 0, 5]]))
    assert torch.allclose(turned, torch.tensor([[0.0, 1, 5]]), atol=1e-6)


def test_optimizer_holds_the_new_parameters_and_their_state():
    params, optimizer = make([SMALL, LARGE, SMALL], [0.5, 0.5, 0.001])
    old = {name: moments(optimizer, p).clone() for name, p in params.items()}
    run(params, optimizer, [LOUD, LOUD, QUIET])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in params.values()]
    assert set(optimizer.state) == set(held)
    for name, p in params.items():
        assert p.requires_grad
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[p][key].shape == p.shape
        assert torch.equal(moments(optimizer, p)[0], old[name][0])
        assert not moments(optimizer, p)[1:].any()
        assert optimizer.state[p]["step"] == 1
        p.grad = torch.ones_like(p)
    optimizer.step()


def test_transparent_and_huge_ones_go():
    params, optimizer = make([SMALL, SMALL, HUGE, SMALL], [0.5, 0.001, 0.5, 0.02])
    kept = params["sh"].detach()[[0, 3]]
    run(params, optimizer, [QUIET, LOUD, LOUD, QUIET])
    assert torch.equal(params["sh"], kept)


def test_pruning_reads_the_values_of_now():
    """Pruning must use the current opacities, not the initial ones that the optimizer still
    holds."""
    params, optimizer = make([SMALL] * 3, [0.5] * 3)
    run(params, optimizer, [QUIET, QUIET, LOUD])
    with torch.no_grad():
        params["opacities"][1] = torch.logit(torch.tensor(0.001))
    kept = params["sh"].detach()[[0, 2, 3]]
    run(params, optimizer, [QUIET] * 4)
    assert torch.equal(params["sh"], kept)


def test_the_number_of_gaussians_is_bounded():
    gradients = [1.5, 3.0, 2.0, 9.0, 1.2]
    params, optimizer = make([SMALL, LARGE, SMALL, LARGE, SMALL], [0.5] * 5)
    sh = params["sh"].detach().clone()
    run(params, optimizer, gradients, DensityConfig(grad_threshold=1.0, max_gaussians=7))
    assert torch.equal(params["sh"], sh[[0, 2, 4, 1, 3, 1, 3]])  # the two largest gradients
    run(params, optimizer, [LOUD] * 7, DensityConfig(grad_threshold=1.0, max_gaussians=3))
    assert len(params["sh"]) == 7


def test_same_seed_same_gaussians():
    results = []
    for seed in (0, 0, 1):
        params, optimizer = make([LARGE, SMALL], [0.5, 0.5])
        run(params, optimizer, [LOUD, LOUD], seed=seed)
        results.append(params["means"].detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_gradients_are_averaged_over_the_images_that_show_a_gaussian():
    control = DensityControl(CONFIG)
    gradients = torch.zeros(2, 3, 2)
    gradients[0, 0] = torch.tensor([3e-3, 0])
    gradients[1, 0] = torch.tensor([0, 1e-3])
    gradients[0, 1] = torch.tensor([2e-3, 0])
    radii = torch.tensor([[4, 4, 0], [4, 0, 0]])
    control.observe(gradients, radii, height=100, width=200, batch=2)
    assert control.gradients is not None and control.views is not None
    assert control.gradients.tolist() == pytest.approx([0.6 + 0.1, 0.4, 0])
    assert control.views.tolist() == [2, 1, 0]
    control.observe(gradients, radii, height=100, width=200, batch=2)
    assert control.gradients.tolist() == pytest.approx([1.4, 0.8, 0])
    assert control.views.tolist() == [4, 2, 0]


def test_the_schedule():
    control = DensityControl(CONFIG)
    assert [s for s in range(400) if control.accumulates_gradients(s)] == list(range(51, 300))
    for step, changed in ((50, False), (99, False), (100, True), (125, False), (300, False)):
        params, optimizer = make([SMALL], [0.5])
        counted: dict[str, Tensor | None] = {
            "gradients": torch.tensor([9.0]),
            "views": torch.tensor([2]),
        }
        control.load_state_dict(counted, torch.device("cpu"))
        control.step(params, optimizer, step, torch.Generator())
        assert len(params["means"]) == (2 if changed else 1), step
        assert (control.state_dict()["gradients"] is None) == changed


def test_opacities_are_reset_on_schedule():
    """gsplat 1.5.3 never resets, because it tests `step % every == 0 & step > 0`."""
    config = dataclasses.replace(CONFIG, reset_every=120)
    control = DensityControl(config)
    for step, reset in ((0, False), (119, False), (120, True), (240, True), (360, False)):
        params, optimizer = make([SMALL], [0.5])
        control.step(params, optimizer, step, torch.Generator())
        expected = 2 * config.min_opacity if reset else 0.5
        assert abs(params["opacities"].sigmoid().item() - expected) < 1e-6, step


def test_statistics_survive_a_checkpoint():
    saved = DensityControl(CONFIG)
    saved.observe(torch.ones(1, 4, 2), torch.ones(1, 4).int(), 10, 10, 1)
    loaded = DensityControl(CONFIG)
    loaded.load_state_dict(saved.state_dict(), torch.device("cpu"))
    for control in (saved, loaded):
        control.observe(torch.ones(1, 4, 2), torch.ones(1, 4).int(), 10, 10, 1)
    assert saved.gradients is not None and loaded.gradients is not None
    assert torch.equal(saved.gradients, loaded.gradients)


def test_counting_goes_on_where_the_gaussians_are():
    """A checkpoint is read into host memory; the device `meta` represents a GPU."""
    device = torch.device("meta")
    control = DensityControl(CONFIG)
    counted: dict[str, Tensor | None] = {"gradients": torch.ones(4), "views": torch.ones(4)}
    control.load_state_dict(counted, device)
    radii = torch.ones(1, 4, dtype=torch.int32, device=device)
    control.observe(torch.ones(1, 4, 2, device=device), radii, 10, 10, 1)
    assert control.gradients is not None and control.gradients.device == device
    control.load_state_dict({"gradients": None, "views": None}, device)
    assert control.gradients is None


def test_reset_lowers_opacities_and_forgets_their_state():
    params, optimizer = make([SMALL] * 3, [0.5, 0.005, 0.9])
    means_state = moments(optimizer, params["means"]).clone()
    reset_opacities(params, optimizer, ceiling=0.01)
    assert params["opacities"].sigmoid().tolist() == pytest.approx([0.01, 0.005, 0.01])
    assert not moments(optimizer, params["opacities"]).any()
    assert torch.equal(moments(optimizer, params["means"]), means_state)
