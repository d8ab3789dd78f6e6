"""Adaptive density: more Gaussians where the image asks for them, none where they do nothing.

3D Gaussian splatting (Kerbl et al. 2023, section 5.2) with sizes in dm instead of shares of the
scene, on the parameters that the optimiser really holds.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talker.core.config import AtLeast1, validated

SPLIT_SHRINK = 1.6  # of the two halves of a split Gaussian


@validated
class DensityConfig:
    """When and where Gaussians are added and removed."""

    start: int = 300
    """first step that may change their number"""
    stop: int = 1_200
    """first step that no longer may"""
    every: AtLeast1 = 100
    """steps"""
    grad_threshold: float = 4e-4
    """mean gradient of the loss by the projected centre, in half images, above which a Gaussian is
    cloned or split"""
    split_scale: float = 0.03
    """dm: larger Gaussians are split in two, smaller ones cloned"""
    min_opacity: float = 0.005
    """Gaussians less opaque than this are removed"""
    max_scale: float = 0.3
    """dm: larger Gaussians are removed"""
    max_gaussians: int = 50_000
    reset_every: AtLeast1 = 600
    """steps after which every opacity is lowered to twice `min_opacity`, and must earn the rest"""


class DensityControl:
    """Watches the gradients of projected centres and changes the Gaussians of an optimiser.

    The parameters are a dictionary with means [G,3], quats [G,4], scales [G,3] (log), opacities [G]
    (logit) and any others [G,...], each of them in a group of an Adam optimiser.
    """

    def __init__(self, config: DensityConfig) -> None:
        self.config = config
        self.gradients: Tensor | None = None  # [G] sum of norms over the images that show it
        self.views: Tensor | None = None  # [G] number of those images

    def state_dict(self) -> dict[str, Tensor | None]:
        return {"gradients": self.gradients, "views": self.views}

    def load_state_dict(self, state: dict[str, Tensor | None], device: torch.device) -> None:
        """Go on counting from `state`, on the device of the Gaussians."""
        self.gradients, self.views = (
            None if (value := state[name]) is None else value.to(device)
            for name in ("gradients", "views")
        )

    def watches(self, step: int) -> bool:
        """Whether the images of `step` are to be observed."""
        return self.config.start - self.config.every < step < self.config.stop

    def observe(
        self, gradients: Tensor, radii: Tensor, height: int, width: int, batch: int
    ) -> None:
        """Count B images.

        Args:
            gradients: [B,G,2] of the loss with respect to `Rasterized.means2d`, per pixel.
            radii: [B,G], of `Rasterized`.
            batch: the number of images that the loss is a mean of.
        """
        # as if every image were a loss of its own, and half an image the unit of length
        unit = gradients.new_tensor([width / 2, height / 2]) * batch
        norms = torch.where(radii > 0, (gradients * unit).norm(dim=-1), 0).sum(dim=0)
        views = (radii > 0).sum(dim=0)
        if self.gradients is not None and self.views is not None:
            norms, views = self.gradients + norms, self.views + views
        self.gradients, self.views = norms, views

    def step(
        self,
        params: nn.ParameterDict,
        optimiser: torch.optim.Optimizer,
        step: int,
        generator: torch.Generator,
    ) -> None:
        """Change the Gaussians if `step` is one of those that do; else nothing."""
        config = self.config
        due = config.start <= step < config.stop and step % config.every == 0
        if due and self.gradients is not None and self.views is not None:
            gradients = self.gradients / self.views.clamp_min(1)
            densify(params, optimiser, gradients, config, generator)
            self.gradients = self.views = None
        if config.start <= step < config.stop and step % config.reset_every == 0:
            reset_opacities(params, optimiser, 2 * config.min_opacity)


@torch.no_grad()
def densify(
    params: nn.ParameterDict,
    optimiser: torch.optim.Optimizer,
    gradients: Tensor,
    config: DensityConfig,
    generator: torch.Generator,
) -> None:
    """Prune, clone and split by the values that `params` have now and mean gradients [G].

    New Gaussians start with empty optimiser state. Where there would be more than `max_gaussians`,
    those with the largest gradients are chosen.
    """
    scales = params["scales"].exp()
    size = scales.amax(dim=-1)
    keep = (params["opacities"].sigmoid() >= config.min_opacity) & (size <= config.max_scale)
    wanted = torch.where(keep & (gradients > config.grad_threshold), gradients, 0)
    room = max(0, config.max_gaussians - int(keep.sum()))
    chosen = wanted.argsort(descending=True, stable=True)[:room]
    chosen = chosen[wanted[chosen] > 0].sort().values
    split = chosen[size[chosen] > config.split_scale]
    clone = chosen[size[chosen] <= config.split_scale]
    keep[split] = False

    halves = split.repeat(2)
    fresh = {name: values.detach()[torch.cat([clone, halves])] for name, values in params.items()}
    noise = torch.randn(len(halves), 3, generator=generator, device=generator.device)
    shift = rotate(params["quats"][halves], scales[halves] * noise.to(scales))
    fresh["means"][len(clone) :] += shift
    fresh["scales"][len(clone) :] -= math.log(SPLIT_SHRINK)
    replace(params, optimiser, keep, fresh)


@torch.no_grad()
def replace(
    params: nn.ParameterDict,
    optimiser: torch.optim.Optimizer,
    keep: Tensor,
    fresh: dict[str, Tensor],
) -> None:
    """Make every parameter its rows `keep` [G] (bool) and then `fresh` [N,...], in `params` and in
    the optimiser; kept rows keep their optimiser state, fresh ones start with zeros."""
    for name, old in list(params.items()):
        new = nn.Parameter(torch.cat([old[keep], fresh[name]]))
        params[name] = new
        for group in optimiser.param_groups:
            group["params"] = [new if param is old else param for param in group["params"]]
        state = optimiser.state.pop(old, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == old.shape:
                state[key] = torch.cat([value[keep], torch.zeros_like(fresh[name])])
        if state:
            optimiser.state[new] = state


@torch.no_grad()
def reset_opacities(
    params: nn.ParameterDict, optimiser: torch.optim.Optimizer, ceiling: float
) -> None:
    """Lower every opacity to at most `ceiling` and forget the optimiser's state of them (3DGS)."""
    opacities = params["opacities"]
    opacities.clamp_(max=math.log(ceiling / (1 - ceiling)))
    for value in optimiser.state[opacities].values():
        if value.shape == opacities.shape:
            value.zero_()


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """Turn vectors [N,3] by quaternions wxyz [N,4] of any norm."""
    w, axis = F.normalize(quats, dim=-1).split([1, 3], dim=-1)
    twice = 2 * torch.linalg.cross(axis, vectors)
    return vectors + w * twice + torch.linalg.cross(axis, twice)
