"""The deformation of an avatar as a sum of a few blendshapes, which is faster than the network.

The raw parameters of all Gaussians in a frame, x [G P], are approximated by

    x(c) = m + sum_k w_k(c) b_k

with the mean m, the K blendshapes b_k and the weights w(c) of the frame's condition c (expression,
eye closure and head pose). The weights still come from the network, but it is evaluated for a few
anchor Gaussians only. They are the least-squares solution

    w(c) = argmin_w sum over anchors of |s (x(c) - m - sum_k w_k b_k)|^2

where s is the influence of each parameter on the image. This is the gappy POD of Everson and
Sirovich, "Karhunen-Loeve procedure for gappy data", JOSA A 1995. In contrast to a regression from
the condition, it loses nothing of the network's nonlinearity.

Blendshapes change the color of a Gaussian equally for all viewing directions: the network's changes
of the higher spherical harmonics are evaluated for one camera, and added to the constant one.

`talker.avatar.bake` computes the blendshapes of a trained avatar.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from talker.avatar.blocks import NetworkInputs
from talker.avatar.gaussians import C0, Gaussians, sh_basis
from talker.clip import load_arrays
from talker.data.layout import Folder
from talker.errors import UserError

if TYPE_CHECKING:
    from talker.avatar.kernels.deform_triton import BlendshapeInputs

FILE = "blendshapes.npz"
"""Name of the file in the avatar folder. Without it, the network deforms all Gaussians."""
COMPONENTS = 64
"""Default number of blendshapes. On a GPU, 33 to 64 take the same time."""
FORMAT_VERSION = 1
"""Version of the file's format. Files of another version are refused."""
GEOMETRY = 11
"""Number of parameters before the color: center (3), rotation (4), size (3) and opacity."""
PARAMETERS = GEOMETRY + 3
"""Number of parameters that are deformed: the geometry, and the constant color coefficients of red,
green and blue."""


@dataclass(frozen=True)
class Blendshapes:
    """K blendshapes of G Gaussians with P parameters each, in the order of `Gaussians.flat`."""

    mean: Float[Tensor, "G P"]
    """[G, P], mean parameters"""
    shapes: Float[Tensor, "K G 14"]
    """[K, G, 14], change of the first `PARAMETERS` parameters by one standard deviation of each
    weight"""
    camera: Float[Tensor, "3"]
    """[3], position in dm of the camera for which the changes of the harmonics are evaluated"""
    anchors: Int64[Tensor, "A"]
    """int64 [A], Gaussians for which the network is evaluated"""
    influence: Float[Tensor, "A 14"]
    """[A, 14], how much the parameters of the anchors change the image"""
    loss: float = float("nan")
    """Decrease of the PSNR in dB compared with the network, nan if it was not measured"""

    def first(self, count: int) -> "Blendshapes":
        """Return the first `count` blendshapes, which explain the largest part of the variance."""
        return replace(self, shapes=self.shapes[:count], loss=float("nan"))

    @cached_property
    def solver(self) -> Float[Tensor, "AP K"]:
        """Matrix [A P, K] that maps the parameters of the anchors, minus their mean, to weights."""
        mean = self.mean[self.anchors]
        at_anchors = (self.influence * self.shapes[:, self.anchors]).flatten(1).double()
        inverse = torch.linalg.pinv(at_anchors, rtol=1e-6).float()
        inverse = self.influence[..., None] * inverse.unflatten(0, self.influence.shape)
        factors = constant_factors(mean, self.camera)
        color = torch.einsum("ah,ack->ahck", factors, inverse[:, GEOMETRY:])
        return torch.cat([inverse[:, :GEOMETRY], color.flatten(1, 2)], dim=1).flatten(0, 1)

    @cached_property
    def kernel_inputs(self) -> "BlendshapeInputs":
        """The mean and the blendshapes in the layout of the kernel, which requires a GPU."""
        from talker.avatar.kernels.deform_triton import blendshape_inputs

        return blendshape_inputs(self.mean, self.shapes)

    def weights(self, anchors: Float[Tensor, "B A P"]) -> Float[Tensor, "B K"]:
        """Return the weights [B, K] from the parameters of the anchors in B frames."""
        return (anchors - self.mean[self.anchors]).flatten(1) @ self.solver

    def gaussians(self, weights: Float[Tensor, "B K"]) -> Gaussians:
        """Return the deformed Gaussians [B, G, ...] for weights [B, K]."""
        moved = (weights @ self.shapes.flatten(1)).unflatten(1, self.shapes.shape[1:])
        constant = self.mean[:, PARAMETERS:].expand(len(weights), -1, -1)
        return Gaussians.from_flat(torch.cat([self.mean[:, :PARAMETERS] + moved, constant], -1))

    def save(self, path: Path, weights: str) -> None:
        """Write the blendshapes of the avatar whose weights.safetensors has this SHA-256."""
        np.savez(
            path,
            format_version=FORMAT_VERSION,
            weights=weights,
            mean=self.mean.cpu().numpy(),
            shapes=self.shapes.half().cpu().numpy(),
            camera=self.camera.cpu().numpy(),
            anchors=self.anchors.cpu().numpy(),
            influence=self.influence.cpu().numpy(),
            loss=self.loss,
        )

    @classmethod
    def load(
        cls, path: Folder, weights: str, parameters: tuple[int, int], device: torch.device | str
    ) -> "Blendshapes":
        """Read what `save` wrote, from a folder or from inside a zip archive.

        Args:
            weights: SHA-256 of the avatar's weights.safetensors.
            parameters: numbers G and P of its Gaussians and of their parameters.

        Raises:
            UserError: the file is damaged, of another format version, or belongs to other weights.
        """
        arrays = load_arrays(path)
        advice = (
            "Train the avatar again with `talker train`, or delete the file: the avatar is then "
            "rendered more slowly, with its network."
        )
        version = arrays.get("format_version")
        if version is None or version.shape or version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}, but this version of talker reads version "
                f"{FORMAT_VERSION}. {advice}"
            )
        if str(arrays.get("weights")) != weights:
            raise UserError(
                f"{path} was computed from other weights than those of the weights.safetensors "
                f"next to it. {advice}"
            )
        try:
            loss = float(arrays["loss"])
            anchors = torch.from_numpy(arrays["anchors"].astype(np.int64, casting="safe"))
            mean, shapes, camera, influence = (
                torch.from_numpy(arrays[name].astype(np.float32, casting="same_kind"))
                for name in ("mean", "shapes", "camera", "influence")
            )
            size = parameters[0]
            expected = {
                "mean": (mean, parameters),
                "shapes": (shapes, (max(1, len(shapes)), size, PARAMETERS)),
                "camera": (camera, (3,)),
                "anchors": (anchors, (max(1, len(anchors)),)),
                "influence": (influence, (len(anchors), PARAMETERS)),
            }
            for name, (value, shape) in expected.items():
                if value.shape != shape or not value.isfinite().all():
                    raise ValueError(
                        f"'{name}' has the shape {list(value.shape)} or values that are not finite"
                    )
            if not ((anchors >= 0) & (anchors < size)).all():
                raise ValueError("'anchors' has values out of range")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}). {advice}") from error
        return cls(
            mean=mean.to(device),
            shapes=shapes.to(device),
            camera=camera.to(device),
            anchors=anchors.to(device),
            influence=influence.to(device),
            loss=loss,
        )


class Affine(NamedTuple):
    """The function x @ matrix + bias."""

    matrix: Float[Tensor, "N M"]
    """[N, M]"""
    bias: Float[Tensor, "M"]
    """[M]"""

    def __call__(self, x: Float[Tensor, "B N"]) -> Float[Tensor, "B M"]:
        return torch.addmm(self.bias, x, self.matrix)


def affine(function: Callable[[Tensor], Tensor], inputs: int, device: torch.device) -> Affine:
    """Return a function from [B, inputs] to [B, M], which must be affine, as a single product."""
    bias = function(torch.zeros(1, inputs, device=device))
    return Affine(function(torch.eye(inputs, device=device)) - bias, bias[0])


class WeightNetwork(NamedTuple):
    """The network from the conditions of a frame to the weights of K blendshapes, for a GPU.

    It gives the same as `Avatar.blendshape_weights`, with fewer kernels: linear layers that follow
    each other are merged, and everything that does not depend on the frame is computed in advance.
    """

    units: Affine
    """from expression, eye and viewmat to the hidden units of the tokens' networks"""
    keys_and_values: Affine
    """from these units to the keys [16, D] and values [16, D] of `deform_triton.token_slots`"""
    anchors: NetworkInputs
    """of the A anchor Gaussians"""
    output: Affine
    """from the hidden layer [A H] of the anchors to the weights"""
    brows: Float[Tensor, "K"]
    """[K], change of the weights if the brows are fully raised"""

    def __call__(
        self,
        expression: Float[Tensor, "B 10"],
        eye: Float[Tensor, "B 2"],
        viewmats: Float[Tensor, "B 4 4"],
    ) -> Float[Tensor, "B K"]:
        """Return the weights [B, K] in B frames; the arguments are those of `Avatar.deform`."""
        from talker.avatar.kernels.deform_triton import hidden_layer

        conditions = torch.cat([expression, eye, viewmats[:, :3].flatten(1)], dim=1)
        slots = self.keys_and_values(self.units(conditions).relu())
        hidden = hidden_layer(self.anchors, slots).flatten(1)
        bias = torch.addcmul(self.output.bias, eye[:, 1:], self.brows)
        return torch.addmm(bias, hidden, self.output.matrix)


def constant_factors(
    mean: Float[Tensor, "N P"], camera: Float[Tensor, "3"]
) -> Float[Tensor, "N H"]:
    """Return what a change of each harmonic [N, H] adds to the constant one, seen from a camera.

    Args:
        mean: mean parameters of N Gaussians with H harmonics, P = GEOMETRY + 3 H.
        camera: [3], position of the camera.
    """
    count = (mean.shape[1] - GEOMETRY) // 3
    return sh_basis(F.normalize(mean[:, :3] - camera, dim=-1), count) / C0
