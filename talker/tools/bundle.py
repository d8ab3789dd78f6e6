"""Write an avatar to one file, which renders new speech without the dataset folder.

    talker bundle --avatar results/me/avatar --data data/me --file me.avatar
    talker speak --avatar me.avatar

In Python, `talker.load("me.avatar").say("hello.wav", "hello.mp4")` renders a video.
"""

import logging
from pathlib import Path

from talker.avatar.bundle import write_bundle
from talker.avatar.renderer import avatar_dataset, load_avatar
from talker.core.config import validated
from talker.core.files import Output
from talker.encoders.features import FeatureStats

logger = logging.getLogger(__name__)


@validated
class Config:
    """Options of `talker bundle`."""

    license: str = ""
    """Terms under which the avatar may be used, as text that is stored in the file."""
    consent: str = ""
    """How the person has consented to the avatar, as text that is stored in the file."""


def main(*, avatar: Path, data: Path, file: Output, config: Config = Config()) -> None:
    """Write an avatar, and the parts of its dataset that rendering needs, to one file.

    The file contains images of the person: the torso and the background of every tracked frame.

    Args:
        avatar: Avatar folder written by `talker train`.
        data: Dataset folder of the same subject.
        file: File to write, such as me.avatar.
        config: Options.
    """
    dataset = avatar_dataset(data, load_avatar(avatar))
    if (avatar / "speech.npz").exists():
        FeatureStats.load(avatar / "speech.npz")  # raises if it is damaged
    write_bundle(file, avatar, dataset, config.license, config.consent)
    logger.info(
        "Wrote %s: %.1f MB, %d frames.", file, file.stat().st_size / 1e6, dataset.valid.sum()
    )
