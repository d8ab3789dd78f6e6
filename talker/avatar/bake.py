"""Compute the blendshapes that replace the deformation network of a trained avatar.

The blendshapes are the first K principal components of the network's output over the training
frames (the basis of a "proper orthogonal decomposition"; Sirovich, 1987). Parameters count as much
as they change the image. In a third of the frames, the eyes are closed to a random degree, and in
another third, the brows are raised or lowered to a random degree, because these motions are rare,
and new speech combines them with any expression. The signs and sizes of the blendshapes are such
that each weight has a mean square of 1.
"""

import logging
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from talker.avatar.blendshapes import (
    COMPONENTS,
    GEOMETRY,
    PARAMETERS,
    Blendshapes,
    constant_factors,
)
from talker.avatar.gaussians import Gaussians, camera_centers, to_view
from talker.avatar.model import Avatar
from talker.avatar.rasterize import rasterize
from talker.avatar.training_set import MOUTH, TrainingSet

logger = logging.getLogger(__name__)

MAX_FRAMES = 200
"""Largest number of training frames from which blendshapes are computed."""
MIXED_EVERY = 3
"""Interval in frames at which the eye closure and, one frame later, the brows are replaced."""
BLOCK = {"cuda": 1024, "cpu": 256}
"""Number of Gaussians whose parameters in all frames are in memory at once, by device. On the CPU,
they fit into the cache."""
ANCHORS = 256
"""Number of Gaussians for which the network is evaluated in every frame."""
PROBED_FRAMES = 8
"""Number of frames in which the influence of the parameters on the image is measured."""
COMPARED_FRAMES = 32
"""Number of training frames in which the blendshapes are compared with the network."""
MAX_LOSS = 0.1
"""Largest decrease of the PSNR in dB, of the head or of the mouth, for which an avatar gets
blendshapes."""


class Conditions(NamedTuple):
    """Inputs of the deformation for T frames."""

    expression: Float[Tensor, "T 10"]
    """[T, 10], output of `speech_to_expression`"""
    eye: Float[Tensor, "T 2"]
    """[T, 2], eye closure (0 open .. 1 closed) and raise of the brows (-1 .. 1)"""
    viewmats: Float[Tensor, "T 4 4"]
    """[T, 4, 4] world to OpenCV camera, dm"""


class Camera(NamedTuple):
    """Intrinsics of an image."""

    K: Float[Tensor, "3 3"]
    """[3, 3], in pixels"""
    height: int
    """pixels"""
    width: int
    """pixels"""


def bake(
    avatar: Avatar, conditions: Conditions, camera: Camera, components: int = COMPONENTS
) -> Blendshapes:
    """Return the blendshapes of a trained avatar.

    Args:
        conditions: inputs of the network in the training frames.
        camera: intrinsics of the image in which the blendshapes should reproduce the network.
        components: number of blendshapes K; it is reduced to the number of frames if that is
            smaller.
    """
    conditions = Conditions(*(part[_spread(len(part), MAX_FRAMES)] for part in conditions))
    conditions = conditions._replace(eye=_mixed(conditions.eye))
    influence = _influence(avatar, conditions, camera)
    return principal_components(avatar, conditions, influence, components)


def _mixed(eye: Float[Tensor, "T 2"]) -> Float[Tensor, "T 2"]:
    """Replace some of the eye closures and brows [T, 2] by values in a random order.

    The closures are from 0 to 1, and the brows are evenly distributed over their range.
    """
    mixed, generator = eye.clone(), torch.Generator().manual_seed(0)
    low, high = eye.aminmax(dim=0)
    for column, (first, last) in enumerate([(0.0, 1.0), (float(low[1]), float(high[1]))]):
        replaced = mixed[column::MIXED_EVERY, column]
        order = torch.randperm(len(replaced), generator=generator)
        replaced[:] = torch.linspace(first, last, len(replaced))[order].to(eye)
    return mixed


def _influence(avatar: Avatar, conditions: Conditions, camera: Camera) -> Float[Tensor, "G 14"]:
    """Return how much each parameter of each Gaussian changes the image, [G, 14].

    It is the root of the diagonal of J^T J, where J is the derivative of the image with respect to
    the parameters, estimated with random signs (Hutchinson, 1990).
    """
    generator = torch.Generator().manual_seed(0)
    points = avatar.canonical["means"].detach()
    squares = torch.zeros(len(points), PARAMETERS, device=points.device)
    for row in _spread(len(conditions.eye), PROBED_FRAMES):
        one = Conditions(*(part[row, None] for part in conditions))
        with torch.no_grad():
            offsets = avatar.offsets(avatar.shared().features, *_inputs(avatar, one))
            flat = avatar.gaussians().flat() + offsets
        with torch.enable_grad():
            splats = to_view(Gaussians.from_flat(flat.requires_grad_()), points, one.viewmats)
            rgb = rasterize(splats, one.viewmats, camera.K[None], camera.width, camera.height).rgb
            signs = 2 * torch.randint(0, 2, rgb.shape, generator=generator).to(rgb) - 1
            (gradient,) = torch.autograd.grad((signs * rgb).sum(), flat)
        squares += gradient[0, :, :PARAMETERS].square()
    return squares.sqrt()


@torch.inference_mode()
def principal_components(
    avatar: Avatar,
    conditions: Conditions,
    influence: Float[Tensor, "G 14"],
    components: int,
) -> Blendshapes:
    """Return the blendshapes that reproduce the network best in T frames.

    Args:
        conditions: inputs of the network in these frames.
        influence: weights [G, 14] of the parameters in the squared error.
        components: number of blendshapes K; it is reduced to T if T is smaller.
    """
    features, canonical = avatar.shared().features, avatar.gaussians().flat()
    tokens, brows = _inputs(avatar, conditions)
    offsets = partial(avatar.offsets, tokens=tokens, brows=brows)
    camera = camera_centers(conditions.viewmats).mean(0)
    size = BLOCK[avatar.device.type]
    blocks = [slice(i, i + size) for i in range(0, len(features), size)]
    mean = canonical + torch.cat([offsets(features[b]).mean(0) for b in blocks])

    def deviations(block: slice) -> Tensor:
        """Return the parameters [T, N, 14] of a block of Gaussians minus their mean."""
        moved = canonical[block] - mean[block] + offsets(features[block])
        harmonics = moved[..., GEOMETRY:].unflatten(-1, (-1, 3))
        color = torch.einsum("gh,tghc->tgc", constant_factors(mean[block], camera), harmonics)
        return torch.cat([moved[..., :GEOMETRY], color], dim=-1)

    frames = len(conditions.eye)
    gram = torch.zeros(frames, frames, dtype=torch.float64, device=avatar.device)
    for block in blocks:
        weighted = (influence[block] * deviations(block)).flatten(1)
        gram += (weighted @ weighted.T).double()
    variance, axes = torch.linalg.eigh(gram / frames)
    axes = axes.flip(1)[:, :components].float()
    parts = [torch.einsum("tk,tgp->kgp", axes, deviations(block)) for block in blocks]
    shapes = (torch.cat(parts, dim=1) * frames**-0.5).half().float()
    variance = variance.flip(0).clamp_min(0)
    logger.info(
        "%d blendshapes explain %.2f %% of the variance of the deformation.",
        axes.shape[1],
        100 * float(variance[:components].sum() / variance.sum().clamp_min(1e-12)),
    )
    anchors = _anchors((influence * shapes).square().sum((0, 2)).sqrt())
    return Blendshapes(mean, shapes, camera, anchors, influence[anchors])


def _anchors(motion: Float[Tensor, "G"]) -> Int64[Tensor, "A"]:
    """Return up to `ANCHORS` Gaussians, which are denser where the motion [G] is larger."""
    total = (motion + 1e-6 * motion.mean() + 1e-12).double().cumsum(0)
    steps = (torch.arange(ANCHORS, device=motion.device) + 0.5) / ANCHORS
    return torch.searchsorted(total, steps * total[-1]).unique()


def add_blendshapes(avatar: Avatar, subset: TrainingSet, components: int) -> None:
    """Compute the blendshapes of an avatar, which use them if the image stays nearly the same.

    Args:
        avatar: trained avatar; its blendshapes are replaced.
        subset: the training frames.
        components: number of blendshapes; with 0, the avatar has none.
    """
    avatar.blendshapes = None
    if components == 0:
        return
    expression = _expression(avatar, subset, torch.arange(len(subset.ids)))
    conditions = Conditions(expression, subset.eye, subset.viewmats)
    blendshapes = bake(avatar, conditions, Camera(subset.K, *subset.size), components)
    before = _psnr(avatar, subset)
    avatar.blendshapes = blendshapes
    head, mouth = (before - _psnr(avatar, subset)).tolist()
    logger.info(
        "Compared with the network, the blendshapes lower the PSNR on training frames by %.3f dB "
        "for the head and by %.3f dB for the mouth.",
        *(head, mouth),
    )
    avatar.blendshapes = replace(blendshapes, loss=max(head, mouth))
    if not max(head, mouth) <= MAX_LOSS:
        avatar.blendshapes = None
        logger.warning(
            "This is more than %g dB, so the avatar is saved without blendshapes and rendered with "
            "its network, which takes longer. A larger value of the option `blendshapes` lowers "
            "the difference.",
            MAX_LOSS,
        )


@torch.inference_mode()
def _expression(avatar: Avatar, subset: TrainingSet, rows: Tensor) -> Float[Tensor, "N 10"]:
    """Return the expressions [N, 10] that the avatar predicts for rows [N] of the training set."""
    return avatar.speech_to_expression(subset.windows[subset.ids[rows.to(subset.ids.device)]])


@torch.inference_mode()
def _psnr(avatar: Avatar, subset: TrainingSet) -> Float[Tensor, "2"]:
    """Return the mean PSNR of rendered training frames in dB, of the head and of the mouth."""
    shared = avatar.shared()
    values = []
    for rows in _spread(len(subset.ids), COMPARED_FRAMES).split(1):
        targets = subset.targets(rows)
        here = rows.to(subset.ids.device)
        rgb, alpha = avatar.render_from_expression(
            _expression(avatar, subset, rows),
            subset.eye[here],
            subset.viewmats[here],
            subset.K[None],
            *subset.size,
            shared,
        )
        image = (rgb + (1 - alpha) * targets.background / 255).clamp(0, 1)
        error = (image - targets.frame / 255)[0].square()
        x0, y0, x1, y1 = targets.regions[0, MOUTH].tolist()
        values.append(torch.stack([error.mean(), error[y0:y1, x0:x1].mean()]))
    return (-10 * torch.stack(values).clamp_min(1e-10).log10()).mean(0)


def _inputs(avatar: Avatar, conditions: Conditions) -> tuple[Tensor, Tensor]:
    """Return the tokens [T, 4, D] and the brows [T] of T frames, for `Avatar.offsets`."""
    pose = avatar.pose_vector(conditions.viewmats)
    return avatar.tokens(conditions.expression, conditions.eye, pose), conditions.eye[:, 1]


def _spread(count: int, most: int) -> Int64[Tensor, "N"]:
    """Return at most `most` of `count` rows, evenly distributed."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
