"""ST-LPIPS: perceptual distance of two images that hardly changes if one is shifted by a pixel.

Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022. The network is AlexNet
with blurred downsampling, followed by the linear weights of LPIPS (Zhang et al., CVPR 2018). Its
published weights are read from the file alex_shift_tolerant.pth; its values are not comparable
with those of LPIPS.
"""

from collections import OrderedDict
from io import BytesIO
from itertools import count
from pathlib import Path
from pickle import UnpicklingError

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from talker.data.formats import read_verified
from talker.errors import UserError

MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of each channel, by which images in -1..1 are standardized."""
CHANNELS = (64, 192, 384, 256, 256)
"""Channels of the five layers whose features are compared."""
BLUR = (1.0, 2.0, 1.0)
"""Filter that is applied before each downsampling, not normalized."""
MIN_SIZE = 32
"""Smallest width and height in pixels of the images that can be compared."""


class BlurredDownsampling(nn.Module):
    """Blurs images [B, C, H, W] and keeps every second pixel of the result."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor(BLUR) / sum(BLUR)
        self.register_buffer("filt", torch.outer(taps, taps).repeat(channels, 1, 1, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(padded, self.filt, stride=2, groups=len(self.filt))


class ShiftTolerantLpips(nn.Module):
    """Maps two batches of images [B, 3, H, W] in -1..1 to distances [B].

    Its parameters have the names of the published ones. The layers of the five slices are numbered
    consecutively.
    """

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = CHANNELS
        slices = (
            (nn.Conv2d(3, a, 11, padding=2), BlurredDownsampling(a), nn.ReLU()),
            (*_downsampling(a), nn.Conv2d(a, b, 5, padding=2), nn.ReLU()),
            (*_downsampling(b), nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
            (nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            (nn.Conv2d(d, e, 3, padding=1), nn.ReLU()),
        )
        number = count()
        self.net = nn.ModuleDict(
            {
                f"slice{k}": nn.Sequential(OrderedDict((str(next(number)), m) for m in modules))
                for k, modules in enumerate(slices, 1)
            }
        )
        for k, size in enumerate(CHANNELS):
            weights = nn.Sequential(nn.Identity(), nn.Conv2d(size, 1, 1, bias=False))
            self.add_module(f"lin{k}", nn.ModuleDict({"model": weights}))

    def features(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Return the features of the five slices, normalized over their channels."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        x = (images - mean) / std
        features = []
        for layers in self.net.values():
            x = layers(x)
            features.append(F.normalize(x, dim=1, eps=1e-10))
        return features

    def forward(
        self, images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B"]:
        distances = []
        pairs = zip(self.features(images), self.features(targets), strict=True)
        for k, (x, y) in enumerate(pairs):
            weighted = self.get_submodule(f"lin{k}.model")((x - y).square())
            distances.append(weighted.mean((1, 2, 3)))
        return torch.stack(distances).sum(0)


def _downsampling(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.MaxPool2d(3, stride=1), BlurredDownsampling(channels)


def load_stlpips(path: Path, sha256: str) -> ShiftTolerantLpips:
    """Load the published weights of ST-LPIPS.

    Raises:
        UserError: the file is missing, has another checksum, or holds another network.
    """
    content = BytesIO(read_verified(path, sha256))
    network = ShiftTolerantLpips().requires_grad_(False).eval()
    try:
        published = torch.load(content, map_location="cpu", weights_only=True)
        network.load_state_dict({name: published[name] for name in network.state_dict()})
    except (RuntimeError, UnpicklingError, EOFError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path} is not the file alex_shift_tolerant.pth of ST-LPIPS ({error}). Download it "
            "with `talker weights fetch stlpips`."
        ) from error
    return network
