"""Make one small file of a dataset folder, to train on another machine; `talker train` reads it.

    talker pack --data data/me --pack me.zip
    talker train --data me.zip --avatar results/me/avatar --checkpoints results/me/checkpoints

Frames and torsos are stored as WebP, a fifth of their size; the mean PSNR that it costs is told.
"""

import logging
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from talker.core.config import validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.dataset import PUBLISHED_SPEECH, Dataset, speech_file
from talker.encoders.registry import ENCODERS
from talker.errors import UserError
from talker.measure.metrics import psnr
from talker.media.images import read_image, webp_bytes

logger = logging.getLogger(__name__)

KEPT = (
    "clip.json",
    "aud.wav",
    "au.csv",
    "bc.jpg",
    "track_params.pt",
    "track_report.json",
    "transforms_train.json",
    "transforms_val.json",
)


@validated
class Config:
    """Options of `talker pack`."""

    quality: int = 85
    """of the WebP images, 1 to 100"""


def main(*, data: Path, pack: Output, config: Config = Config()) -> None:
    """Pack what training reads into one file.

    Args:
        data: dataset folder.
        pack: the file to write, a zip archive.
        config: options.

    Raises:
        UserError: the folder is none, or lacks or breaks something.
    """
    if data.is_file():
        raise UserError(f"{data}: expected a dataset folder, found a file")
    encoders = [name for name in ENCODERS if speech_file(data, name).exists()] or list(ENCODERS)[:1]
    for encoder in encoders:
        frames = Dataset.load(data, 64, encoder).frames  # a broken folder is refused here
    speech = [f"aud_{encoder}.{suffix}" for encoder in ENCODERS for suffix in ("npy", "npz")]
    kept = [data / name for name in (*KEPT, PUBLISHED_SPEECH, *speech) if (data / name).exists()]
    with atomic_write(pack) as (scratch,), zipfile.ZipFile(scratch, "w") as archive:
        for path in kept:
            archive.write(path, path.name, zipfile.ZIP_DEFLATED)
        for i in range(frames):
            name = f"ori_imgs/{i}.lms"
            archive.write(data / name, name, zipfile.ZIP_DEFLATED)
        for i, parts in enumerate(_encoded(data, frames, config)):
            for folder, suffix, content in parts:
                archive.writestr(f"{folder}/{i}.{suffix}", content)
    logger.info(
        "%s: %.1f MiB; frames keep %.1f dB, torsos %.1f dB",
        *(pack, pack.stat().st_size / 2**20, *_cost(data, pack, encoders[0])),
    )


def _encoded(
    data: Path, frames: int, config: Config
) -> Iterator[tuple[tuple[str, str, bytes], ...]]:
    """Folder, suffix and content of the images of each frame."""

    def encode(i: int) -> tuple[tuple[str, str, bytes], ...]:
        frame = read_image(data / "ori_imgs" / f"{i}.jpg")
        torso = read_image(data / "torso_imgs" / f"{i}.png")
        if torso.shape[2] != 4:
            raise UserError(f"{data}/torso_imgs/{i}.png: expected an alpha channel, found none")
        return (
            ("ori_imgs", "webp", webp_bytes(frame, config.quality)),
            ("torso_imgs", "webp", webp_bytes(torso, config.quality)),
            ("parsing", "png", (data / "parsing" / f"{i}.png").read_bytes()),
        )

    cv2.setNumThreads(1)
    with ThreadPoolExecutor() as pool:
        yield from progress(pool.map(encode, range(frames)), "pack", frames)


def _cost(data: Path, pack: Path, encoder: str) -> tuple[float, float]:
    """Mean PSNR of some packed frames and torsos against the originals, dB."""
    size = max(read_image(data / "ori_imgs" / "0.jpg").shape[:2])
    before, after = (Dataset.load(place, size, encoder) for place in (data, pack))
    some = np.linspace(0, before.frames - 1, min(before.frames, 20)).astype(int)
    return (
        float(np.mean([psnr(after.frame(i), before.frame(i)) for i in some])),
        float(np.mean([psnr(after.background(i), before.background(i)) for i in some])),
    )
