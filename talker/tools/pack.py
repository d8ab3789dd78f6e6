"""Pack a dataset folder into one small file, to train on another machine.

    talker pack --data data/me --pack me.zip
    talker train --data me.zip --avatar results/me/avatar --checkpoints results/me/checkpoints

Frames and torsos are compressed to a fifth of their size as WebP images. The log gives the
resulting PSNR.
"""

import logging
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from talker.clip import check_regular
from talker.core.config import DEFAULT_ENCODER, validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.data import layout
from talker.dataset import Dataset
from talker.encoders import ENCODERS
from talker.errors import UserError
from talker.measure.metrics import psnr
from talker.media.images import read_image, webp_bytes

logger = logging.getLogger(__name__)

FILES = (
    layout.CLIP,
    layout.SOUND,
    layout.DEEPSPEECH_FEATURES,
    layout.ACTION_UNITS,
    layout.PLATE,
    layout.TRACK_PARAMS,
    layout.TRACK_REPORT,
    layout.TRANSFORMS_TRAIN,
    layout.TRANSFORMS_VAL,
)
"""Files that are packed as they are; those that do not exist are left out."""


@validated
class Config:
    """Options of `talker pack`."""

    quality: Annotated[int, Field(ge=1, le=100)] = 85
    """Quality of the WebP images, from 1 to 100. With the default, they take about a fifth of the
    space of JPEG images."""


def main(*, data: Path, pack: Output, config: Config = Config()) -> None:
    """Pack all files that training needs into one archive.

    Args:
        data: Dataset folder.
        pack: Zip archive to write.
        config: Options.

    Raises:
        UserError: `data` is not a dataset folder, or a file in it is missing or damaged.
    """
    if data.is_file():
        raise UserError(f"{data} is a file. Only a dataset folder can be packed.")
    encoders = [name for name in ENCODERS if layout.speech_file(data, name).exists()] or [
        DEFAULT_ENCODER
    ]
    for encoder in encoders:
        frames = Dataset.load(data, 64, encoder).frames  # raises if the folder is incomplete
    read_image(data / layout.PLATE)  # raises if it is damaged
    speech = [
        name(encoder)
        for encoder in ENCODERS
        for name in (layout.speech_features, layout.speech_statistics)
    ]
    paths = [data / name for name in (*FILES, *speech) if (data / name).exists()]
    for path in paths:
        check_regular(path)
    with atomic_write(pack) as (scratch,):
        with zipfile.ZipFile(scratch, "w") as archive:
            for path in paths:
                archive.write(path, path.name, zipfile.ZIP_DEFLATED)
            for i in range(frames):
                name = layout.FRAME_LANDMARKS.relative(i)
                archive.write(data / name, name, zipfile.ZIP_DEFLATED)
            for members in _encoded(data, frames, config):
                for name, content in members.items():
                    archive.writestr(name, content)
        quality = _compression_psnr(data, scratch, encoders[0])  # reads the pack as training does
    logger.info(
        "Wrote %s: %.1f MiB. The PSNR of the compressed frames is %.1f dB, and that of the "
        "torsos %.1f dB.",
        *(pack, pack.stat().st_size / 2**20, *quality),
    )


def _encoded(data: Path, frames: int, config: Config) -> Iterator[dict[str, bytes]]:
    """Yield the images of each frame, as {name in the pack: content}."""

    def encode(i: int) -> dict[str, bytes]:
        images = {}
        for kind in (layout.FRAMES, layout.TORSOS):
            path = kind.path(data, i)
            pixels = read_image(path)
            if pixels.shape[2] != kind.channels:
                raise UserError(
                    f"{path} has {pixels.shape[2]} channels. It must have {kind.channels}."
                )
            images[f"{kind.folder}/{i}.webp"] = webp_bytes(pixels, config.quality)
        mask = layout.MASKS.path(data, i)
        check_regular(mask)
        images[layout.MASKS.relative(i)] = mask.read_bytes()
        return images

    cv2.setNumThreads(1)
    with ThreadPoolExecutor() as pool:
        yield from progress(pool.map(encode, range(frames)), "pack", frames)


def _compression_psnr(data: Path, pack: Path, encoder: str) -> tuple[float, float]:
    """Return the mean PSNR in dB of up to 20 packed frames and torsos against the originals."""
    size = max(read_image(layout.FRAMES.path(data, 0)).shape[:2])
    before, after = (Dataset.load(place, size, encoder) for place in (data, pack))
    sample = np.linspace(0, before.frames - 1, min(before.frames, 20)).astype(int)
    return (
        float(np.mean([psnr(after.frame(i), before.frame(i)) for i in sample])),
        float(np.mean([psnr(after.background(i), before.background(i)) for i in sample])),
    )
