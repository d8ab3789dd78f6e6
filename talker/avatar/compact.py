"""A small copy of an avatar with blendshapes for players, as named arrays of 8 and 16 bits.

The arrays are those of a safetensors file, a public format that every language can read: the length
of the header as uint64, the header as JSON, then the bytes of the arrays. Parameters are stored
plane by plane, [P, G] for G Gaussians, in the order of `PARAMETERS`:

| array | type | shape | content |
|---|---|---|---|
| `mean` | float16 | [14, G] | mean parameters |
| `harmonics` | float16 | [3 (K - 1), G] | further color coefficients: RGB of each harmonic |
| `blendshapes` | int8 | [B, 14, G] | blendshapes, to be multiplied by their steps |
| `steps` | float32 | [B, 14] | size of one step of each plane of each blendshape |

The parameters of a frame with the weights w [B] are `mean + sum_b w_b steps_b blendshapes_b`. The
colors are those of spherical harmonics as in Gaussian splatting, of which only the constant one is
deformed (`talker.avatar.blendshapes`).
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from talker.avatar.blendshapes import PARAMETERS, Blendshapes
from talker.avatar.gaussians import Gaussians, to_view
from talker.avatar.rasterize import rasterize

LEAST_WEIGHT = 0.03
"""A Gaussian is kept if its blending weights, summed over the pixels of an image, reach this
value."""
LEVELS = 63
"""Largest magnitude of a quantized value. With 127 levels, files are a third larger and the
images look hardly better."""


@torch.inference_mode()
def compact(blendshapes: Blendshapes) -> dict[str, np.ndarray]:
    """Return the arrays of blendshapes, as the table above describes them."""
    shapes = blendshapes.shapes.transpose(1, 2)
    steps = shapes.abs().amax(2).clamp_min(1e-12) / LEVELS
    mean = blendshapes.mean.T.cpu().numpy().astype(np.float16)
    return {
        "mean": mean[:PARAMETERS],
        "harmonics": mean[PARAMETERS:],
        "blendshapes": (shapes / steps[..., None]).round().to(torch.int8).cpu().numpy(),
        "steps": steps.cpu().numpy(),
    }


def visible(
    blendshapes: Blendshapes,
    weights: Float[Tensor, "N K"],
    viewmats: Float[Tensor, "N 4 4"],
    K: Float[Tensor, "3 3"],
    width: int,
    height: int,
) -> Bool[np.ndarray, "G"]:
    """Return which Gaussians contribute to one of N images, bool [G].

    The sum over an image of a Gaussian's blending weights is the gradient of the summed colors of
    the image with respect to the color of the Gaussian.

    Args:
        weights: weights of the blendshapes [N, K].
        viewmats: world-to-camera matrices [N, 4, 4].
        K: intrinsics in pixels [3, 3].
    """
    points = blendshapes.mean[:, :3]
    kept = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for one, view in zip(weights.split(1), viewmats.split(1), strict=True):
        with torch.no_grad():
            splats = to_view(blendshapes.gaussians(one), points, view)
        splats = splats._replace(colors=splats.colors.clone().requires_grad_())
        with torch.enable_grad():
            rasterize(splats, view, K[None], width, height).rgb[..., 0].sum().backward()
        assert splats.colors.grad is not None
        kept |= splats.colors.grad[0, :, 0] > LEAST_WEIGHT
    return kept.cpu().numpy()


def expand(arrays: dict[str, np.ndarray], weights: Float[Tensor, "B K"]) -> Gaussians:
    """Return the Gaussians [B, G, ...] that a player shows for weights [B, K]."""
    values = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    shapes = values["blendshapes"] * values["steps"][..., None]
    moved = values["mean"] + (weights @ shapes.flatten(1)).unflatten(1, shapes.shape[1:])
    harmonics = values["harmonics"].expand(len(weights), -1, -1)
    return Gaussians.from_flat(torch.cat([moved, harmonics], dim=1).transpose(1, 2))
