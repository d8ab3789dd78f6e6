"""Write the images of the documentation from the data and results of the demo.

    make demo
    python scripts/make_pictures.py

The demo's person is synthetic. Do not add images of real people.
"""

from pathlib import Path

import cv2
import numpy as np

from talker.clip import Clip
from talker.data import layout
from talker.media.images import read_image, webp_bytes
from talker.media.video_reader import probe, read_frames

ROOT = Path(__file__).parents[1]
DATA, RESULTS, PICTURES = ROOT / "data/demo", ROOT / "results/demo", ROOT / "docs/images"
FRAME = 100
"""Frame whose intermediate results are shown."""
SIZE = 320
"""Width of an image in pixels."""
QUALITY = 90
"""Quality of the WebP files, 0 to 100."""
EXPRESSIONS = 5
"""Number of frames in a row of a strip."""
STRIP_SIZE = 240
"""Width in pixels of each frame of a strip."""


def resize(image: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Return the image with `size` pixels along its width."""
    height = round(image.shape[0] * size / image.shape[1])
    return cv2.resize(image, (size, height), interpolation=cv2.INTER_AREA)


def frames_of(video: Path) -> list[np.ndarray]:
    """Return the frames of a video, RGB uint8 [H, W, 3] each."""
    return list(read_frames(video, probe(video)))


def strip(frames: list[np.ndarray]) -> np.ndarray:
    """Return frames spread over a video, next to each other."""
    chosen = ((np.arange(EXPRESSIONS) + 0.5) * len(frames) / EXPRESSIONS).astype(int)
    return np.hstack([resize(frames[i], STRIP_SIZE) for i in chosen])


def main() -> None:
    held_out = frames_of(RESULTS / "val.mp4")
    first = Clip.load(DATA / layout.CLIP).train_frames
    real = [read_image(layout.FRAMES.path(DATA, first + i)) for i in range(len(held_out))]
    pictures = {
        "demo": np.vstack([strip(real), strip(held_out)]),
        "hello": strip(frames_of(RESULTS / "novel" / "hello.mp4")),
        "frame": resize(read_image(layout.FRAMES.path(DATA, FRAME))),
        "masks": resize(read_image(layout.MASKS.path(DATA, FRAME))),
        "plate": resize(read_image(DATA / layout.PLATE)),
        "torso": resize(read_image(layout.TORSOS.path(DATA, FRAME))),
        "track": resize(frames_of(DATA / layout.TRACK_OVERLAY)[FRAME]),
    }
    PICTURES.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (PICTURES / f"{name}.webp").write_bytes(webp_bytes(picture, QUALITY))


if __name__ == "__main__":
    main()
