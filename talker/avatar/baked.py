"""Replace the deformation network of an avatar by a few blendshapes.

The raw parameters of all Gaussians in a frame, x [G P], are approximated by

    x(c) = m + sum_k w_k(c) b_k

with the mean m, the K blendshapes b_k and the weights w(c) of the frame's condition c (expression,
eye closure and head pose). The blendshapes are the first K principal components of x over the
training frames (the basis of a "proper orthogonal decomposition"; Sirovich, 1987). Their signs and
sizes are such that each weight has a mean square of 1 over the training frames.

The weights of a new frame still come from the network, but it is evaluated for a few anchor
Gaussians only. They are the least-squares solution

    w(c) = argmin_w sum over anchors of |x(c) - m - sum_k w_k b_k|^2

which is the gappy POD of Everson and Sirovich, "Karhunen-Loeve procedure for gappy data", JOSA A
1995. In contrast to a regression from the condition, it loses nothing of the network's
nonlinearity.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from talker.avatar.bundle import Replay, predicted_expression
from talker.avatar.gaussians import Gaussians, to_view
from talker.avatar.model import Avatar
from talker.avatar.rasterize import Splats, rasterize
from talker.dataset import Dataset

COMPONENTS = 24
"""Default number of blendshapes."""
ANCHORS = 256
"""Number of Gaussians for which the network is evaluated in every frame."""
MAX_FRAMES = 200
"""Largest number of training frames from which blendshapes are computed."""
BLOCK = 1024
"""Number of Gaussians whose parameters in all frames are in memory at once."""


class Conditions(NamedTuple):
    """Inputs of the deformation for T frames."""

    expression: Float[Tensor, "T 10"]
    """[T, 10], output of `speech_to_expression`"""
    eye: Float[Tensor, "T"]
    """[T], 0 open .. 1 closed"""
    viewmats: Float[Tensor, "T 4 4"]
    """[T, 4, 4] world to OpenCV camera, dm"""


def training_conditions(avatar: Avatar, dataset: Dataset) -> Conditions:
    """Return the conditions of up to `MAX_FRAMES` training frames, evenly distributed."""
    count = min(MAX_FRAMES, len(dataset.train_ids))
    rows = np.linspace(0, len(dataset.train_ids) - 1, count).round().astype(int)
    ids = dataset.train_ids[rows]
    if isinstance(dataset, Replay):
        expression = dataset.train_expression[rows]
    else:
        expression = predicted_expression(avatar, dataset, ids)
    parts = (expression, dataset.eye[ids], dataset.viewmats[ids])
    return Conditions(*(torch.from_numpy(part).to(avatar.device) for part in parts))


class BakedAvatar:
    """An avatar whose deformation is a sum of blendshapes.

    `render_from_expression` can be used instead of that of the avatar.

    Args:
        avatar: trained avatar.
        conditions: the frames from which the blendshapes are computed, T of them.
        components: number of blendshapes K; it is reduced to T if T is smaller.
    """

    mean: Tensor
    """[G, P], mean parameters in the order of `Gaussians.flat`"""
    blendshapes: Tensor
    """[K, G, P], parameters of one standard deviation of each weight"""
    explained: float
    """Share of the variance over the given frames that the blendshapes explain, 0..1"""

    @torch.inference_mode()
    def __init__(
        self, avatar: Avatar, conditions: Conditions, components: int = COMPONENTS
    ) -> None:
        self.avatar = avatar
        features = avatar.shared().features
        tokens = self._tokens(*conditions)
        canonical = avatar.gaussians().flat()
        frames = len(tokens)
        blocks = [slice(i, i + BLOCK) for i in range(0, len(features), BLOCK)]
        means = []
        gram = torch.zeros(frames, frames, dtype=torch.float64, device=avatar.device)
        for block in blocks:
            offsets = avatar.offsets(features[block], tokens)
            means.append(offsets.mean(0))
            centered = (offsets - means[-1]).flatten(1)
            gram += (centered @ centered.T).double()
        variance, axes = torch.linalg.eigh(gram / frames)
        variance, axes = variance.flip(0).clamp_min(0), axes.flip(1)[:, :components].float()
        self.explained = float(variance[:components].sum() / variance.sum().clamp_min(1e-12))
        self.mean = canonical + torch.cat(means)
        self.blendshapes = torch.cat(
            [
                torch.einsum("tk,tgp->kgp", axes, avatar.offsets(features[block], tokens) - mean)
                for block, mean in zip(blocks, means, strict=True)
            ],
            dim=1,
        ) * (frames**-0.5)
        count = min(ANCHORS, len(features))
        self.anchors = torch.linspace(0, len(features) - 1, count, device=avatar.device).long()
        self.anchor_features = features[self.anchors]
        self.anchor_mean = torch.cat(means)[self.anchors]
        at_anchors = self.blendshapes[:, self.anchors].flatten(1).double()
        self.solve = torch.linalg.pinv(at_anchors, rtol=1e-6).float()
        """[A P, K], maps offsets of the anchors to weights."""

    def _tokens(self, expression: Tensor, eye: Tensor, viewmats: Tensor) -> Tensor:
        return self.avatar.tokens(expression, eye, self.avatar.pose_vector(viewmats))

    def weights(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B"],
        viewmats: Float[Tensor, "B 4 4"],
    ) -> Float[Tensor, "B K"]:
        """Return the weights [B, K] of the blendshapes for B frames; see `Avatar.deform`."""
        tokens = self._tokens(expression, eye, viewmats)
        offsets = self.avatar.offsets(self.anchor_features, tokens)
        return (offsets - self.anchor_mean).flatten(1) @ self.solve

    def gaussians(self, weights: Float[Tensor, "B K"]) -> Gaussians:
        """Return the deformed Gaussians [B, G, ...] for weights [B, K]."""
        moved = (weights @ self.blendshapes.flatten(1)).unflatten(1, self.mean.shape)
        return Gaussians.from_flat(self.mean + moved)

    def deform(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B"],
        viewmats: Float[Tensor, "B 4 4"],
    ) -> Splats:
        """Deform the Gaussians for B frames, as `Avatar.deform` does."""
        gaussians = self.gaussians(self.weights(expression, eye, viewmats))
        return to_view(gaussians, self.avatar.canonical["means"].detach(), viewmats)

    @torch.inference_mode()
    def render_from_expression(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B"],
        viewmats: Float[Tensor, "B 4 4"],
        Ks: Float[Tensor, "B 3 3"],
        height: int,
        width: int,
    ) -> tuple[Float[Tensor, "B {height} {width} 3"], Float[Tensor, "B {height} {width} 1"]]:
        """Render B frames, as `Avatar.render_from_expression` does."""
        rendered = rasterize(self.deform(expression, eye, viewmats), viewmats, Ks, width, height)
        return rendered.rgb, rendered.alpha
