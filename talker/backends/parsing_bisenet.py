"""Parsing by BiSeNet trained on CelebAMask-HQ, as in the preprocessing of AD-NeRF."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from talker.backends.bisenet import CLASSES, BiSeNet
from talker.backends.torch_weights import device, load_state
from talker.backends.weights import require_weights
from talker.clip import Clip
from talker.data.layout import BACKGROUND, HEAD, NECK, TORSO
from talker.data.weights import WEIGHTS
from talker.media.images import read_numbered

PUBLISHED = WEIGHTS["bisenet"]
"""The published weights."""

SIZE = 512
"""Width and height of the images that the network is given, in pixels."""

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
"""Mean RGB color, 0..1, by which the inputs are normalized (ImageNet)."""

DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
"""Standard deviation of the RGB colors, 0..1, by which the inputs are normalized (ImageNet)."""

CLASS_OF = np.array(
    [
        {"background": BACKGROUND, "neck": NECK, "necklace": NECK, "cloth": TORSO}.get(name, HEAD)
        for name in CLASSES
    ]
)
"""Class of a mask for each class of the network; hair, hat, ears and glasses belong to the head."""


class Options(Protocol):
    """The options of the stage that this backend reads."""

    weights: str | None


def parse(clip: Clip, images: Path, points: np.ndarray, options: Options) -> Iterator[np.ndarray]:
    """Yield the mask of each frame, uint8 [H, W] of the classes in talker.data.layout.

    Args:
        clip: the clip.
        images: folder of its frames.
        points: not used.
        options: options of the stage.

    Raises:
        UserError: the weights are missing or wrong; raised before a frame is read.
    """
    file = require_weights(options.weights, "bisenet", PUBLISHED)
    network = load_state(BiSeNet(), file, PUBLISHED)
    return (classify(network, image) for image in read_numbered(images, clip))


@torch.no_grad()
def classify(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Return the mask uint8 [H, W] of RGB uint8 [H, W, 3]."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    values = np.ascontiguousarray(((small / 255 - MEAN) / DEVIATION).transpose(2, 0, 1))
    scores = network(torch.from_numpy(values)[None].to(device()))[0]
    likely = torch.softmax(scores, 0).cpu().numpy()
    merged = [likely[each == CLASS_OF].sum(0) for each in range(CLASS_OF.max() + 1)]
    merged = [cv2.resize(plane, (width, height)) for plane in merged]
    return np.argmax(merged, 0).astype(np.uint8)
