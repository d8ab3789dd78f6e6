"""Adaptive density control: clone, split and prune Gaussians during training.

This is the method of 3D Gaussian splatting (Kerbl et al. 2023, section 5.2), with sizes in dm
instead of fractions of the scene size. It changes the parameters in the optimizer, and works on CPU
and CUDA.
"""

import math
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Integer
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from talker.core.config import AtLeast0, AtLeast1, NonNegative, Positive, validated

SPLIT_SHRINK = 1.6
"""Factor by which the size of a Gaussian is divided when it is split in two (3DGS)."""
REFINE_SPREAD = 0.8
"""Standard deviation of the centers of the parts into which `refine` divides a Gaussian, relative
to its size."""


@validated
class DensityConfig:
    """When and where Gaussians are added and removed in the canonical stage."""

    start: AtLeast0 = 300
    """First step at which the number of Gaussians may change."""
    stop: AtLeast0 = 1_000
    """First step at which the number of Gaussians no longer changes."""
    every: AtLeast1 = 100
    """Number of steps between two such changes."""
    grad_threshold: NonNegative = 4e-4
    """Threshold of the mean gradient of the loss with respect to a Gaussian's projected center,
    where the position of the center is measured in units of half the image size. Above the
    threshold, the Gaussian is cloned or split."""
    split_scale: Positive = 0.03
    """Size in dm above which a Gaussian is split in two; smaller ones are cloned."""
    min_opacity: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    """Opacity (0..1) below which a Gaussian is removed."""
    max_scale: Positive = 0.3
    """Size in dm above which a Gaussian is removed."""
    max_gaussians: AtLeast1 = 50_000
    """Maximum number of Gaussians."""
    reset_every: AtLeast1 = 600
    """Number of steps between two resets, which lower every opacity to at most twice
    `density.min_opacity`. Gaussians that the images need become opaque again; the others are
    removed."""


class DensityControl:
    """Accumulates the gradients of projected centers and changes the Gaussians of an optimizer.

    The parameters are a dictionary with means [G, 3], quats [G, 4], scales [G, 3] (log), opacities
    [G] (logit) and any others [G, ...], each of them in a group of an Adam optimizer.
    """

    def __init__(self, config: DensityConfig) -> None:
        self.config = config
        self.gradients: Tensor | None = None
        """[G], sums of the gradients' norms over the images that show a Gaussian"""
        self.views: Tensor | None = None
        """[G], numbers of those images"""

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return the accumulated sums."""
        return {"gradients": self.gradients, "views": self.views}

    def load_state_dict(self, state: dict[str, Tensor | None], device: torch.device) -> None:
        """Continue from the sums of `state`, on the device of the Gaussians."""
        self.gradients, self.views = (
            None if (value := state[name]) is None else value.to(device)
            for name in ("gradients", "views")
        )

    def accumulates_gradients(self, step: int) -> bool:
        """Return whether `observe` must be called for the images of `step`."""
        return self.config.start - self.config.every < step < self.config.stop

    def observe(
        self,
        gradients: Float[Tensor, "B G 2"],
        radii: Integer[Tensor, "B G"],
        height: int,
        width: int,
        batch: int,
    ) -> None:
        """Add the gradients of B images of `height` x `width` pixels.

        Args:
            gradients: [B, G, 2] of the loss with respect to `Rasterized.means2d`, per pixel.
            radii: [B, G], of `Rasterized`.
            batch: number of images over which the loss is averaged.
        """
        # scaled as if the loss were that of a single image and lengths were in half images
        x, y = (gradients * (batch / 2)).unbind(-1)
        norms = torch.where(radii > 0, torch.hypot(width * x, height * y), 0).sum(dim=0)
        views = (radii > 0).sum(dim=0)
        if self.gradients is not None and self.views is not None:
            norms, views = self.gradients + norms, self.views + views
        self.gradients, self.views = norms, views

    def step(
        self,
        params: nn.ParameterDict,
        optimizer: torch.optim.Optimizer,
        step: int,
        generator: torch.Generator,
    ) -> None:
        """Change the Gaussians if `step` is one of the steps at which they change."""
        config = self.config
        due = config.start <= step < config.stop and step % config.every == 0
        if due and self.gradients is not None and self.views is not None:
            gradients = self.gradients / self.views.clamp_min(1)
            densify(params, optimizer, gradients, config, generator)
            self.gradients = self.views = None
        if config.start <= step < config.stop and step % config.reset_every == 0:
            reset_opacities(params, optimizer, 2 * config.min_opacity)


@torch.no_grad()
def densify(
    params: nn.ParameterDict,
    optimizer: torch.optim.Optimizer,
    gradients: Float[Tensor, "G"],
    config: DensityConfig,
    generator: torch.Generator,
) -> None:
    """Prune, clone and split Gaussians by their current parameters and mean gradients [G].

    New Gaussians start with an empty optimizer state. If there would be more than `max_gaussians`,
    only the Gaussians with the largest gradients are cloned or split.
    """
    scales = params["scales"].exp()
    size = scales.amax(dim=-1)
    keep = (params["opacities"].sigmoid() >= config.min_opacity) & (size <= config.max_scale)
    candidates = torch.where(keep & (gradients > config.grad_threshold), gradients, 0)
    room = max(0, config.max_gaussians - int(keep.sum()))
    chosen = candidates.argsort(descending=True, stable=True)[:room]
    chosen = chosen[candidates[chosen] > 0].sort().values
    split = chosen[size[chosen] > config.split_scale]
    clone = chosen[size[chosen] <= config.split_scale]
    keep[split] = False

    halves = _parts(params, split, 2, 1.0, SPLIT_SHRINK, generator)
    fresh = {name: torch.cat([params[name].detach()[clone], part]) for name, part in halves.items()}
    replace(params, optimizer, keep, fresh)


@torch.no_grad()
def refine(
    params: nn.ParameterDict,
    optimizer: torch.optim.Optimizer,
    rows: Integer[Tensor, "N"],
    count: int,
    generator: torch.Generator,
) -> None:
    """Replace each of the Gaussians `rows` [N] by `count` smaller ones, which cover the same area.

    The face looks the same at first, but training can then represent finer detail.
    """
    keep = torch.ones(len(params["means"]), dtype=torch.bool, device=rows.device)
    keep[rows] = False
    fresh = _parts(params, rows, count, REFINE_SPREAD, count**0.5, generator)
    replace(params, optimizer, keep, fresh)


def _parts(
    params: nn.ParameterDict,
    rows: Integer[Tensor, "N"],
    count: int,
    spread: float,
    shrink: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return `count` parts of each of the Gaussians `rows` [N], as {name: [count N, ...]}.

    Args:
        spread: standard deviation of the parts' centers, relative to the size of the whole.
        shrink: factor by which the parts are smaller than the whole.
    """
    rows = rows.repeat(count)
    fresh = {name: values.detach()[rows] for name, values in params.items()}
    noise = torch.randn(len(rows), 3, generator=generator, device=generator.device)
    scales = spread * fresh["scales"].exp()
    fresh["means"] += rotate(fresh["quats"], scales * noise.to(scales))
    fresh["scales"] -= math.log(shrink)
    return fresh


@torch.no_grad()
def replace(
    params: nn.ParameterDict,
    optimizer: torch.optim.Optimizer,
    keep: Bool[Tensor, "G"],
    fresh: dict[str, Tensor],
) -> None:
    """Replace each parameter, in `params` and in the optimizer, by its rows `keep` and new rows.

    Kept rows keep their optimizer state, new rows start with zeros.

    Args:
        keep: bool [G].
        fresh: new rows [N, ...] of each parameter.
    """
    for name, old in list(params.items()):
        new = nn.Parameter(torch.cat([old[keep], fresh[name]]))
        params[name] = new
        for group in optimizer.param_groups:
            group["params"] = [new if param is old else param for param in group["params"]]
        state = optimizer.state.pop(old, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == old.shape:
                state[key] = torch.cat([value[keep], torch.zeros_like(fresh[name])])
        if state:
            optimizer.state[new] = state


@torch.no_grad()
def reset_opacities(
    params: nn.ParameterDict, optimizer: torch.optim.Optimizer, ceiling: float
) -> None:
    """Lower every opacity to at most `ceiling` and clear the optimizer's state of opacities."""
    opacities = params["opacities"]
    opacities.clamp_(max=math.log(ceiling / (1 - ceiling)))
    for value in optimizer.state[opacities].values():
        if value.shape == opacities.shape:
            value.zero_()


def rotate(quats: Float[Tensor, "N 4"], vectors: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Rotate vectors [N, 3] by quaternions wxyz [N, 4] of any norm but 0."""
    w, axis = F.normalize(quats, dim=-1).split([1, 3], dim=-1)
    twice = 2 * torch.linalg.cross(axis, vectors)
    return vectors + w * twice + torch.linalg.cross(axis, twice)
