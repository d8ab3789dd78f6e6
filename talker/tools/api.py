"""The Python interface: load an avatar, render it with new speech, or stream it.

import talker

me = talker.load("me.avatar")
me.say("hello.wav", "hello.mp4")
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from talker.avatar.bundle import load_subject, speech_statistics
from talker.avatar.model import Avatar
from talker.avatar.renderer import Drive
from talker.clip import SAMPLES_PER_FRAME
from talker.dataset import Dataset
from talker.encoders import load_encoder
from talker.encoders.features import FeatureStats, avatar_features, windows
from talker.media.audio import decode_audio
from talker.render import Config as RenderConfig
from talker.render import Tracks, apply_tracks, render, rendered_frames, speech_drive
from talker.tools.player import Config as PlayerConfig
from talker.tools.player import write_player
from talker.tools.speak import Config as StreamConfig
from talker.tools.speak import StreamingAvatar

__all__ = ["PlayerConfig", "RenderConfig", "StreamConfig", "TalkingAvatar", "load"]


def load(avatar: str | Path, data: str | Path | None = None) -> "TalkingAvatar":
    """Read an avatar, onto the GPU if there is one.

    Args:
        avatar: file that `talker bundle` wrote, or folder that `talker train` wrote.
        data: dataset folder; it is not needed if the avatar is a file.

    Raises:
        UserError: a file is missing, damaged or of another format version.
    """
    path = Path(avatar)
    model, dataset = load_subject(path, None if data is None else Path(data))
    stats = FeatureStats.load(speech_statistics(path, dataset, model.config.encoder))
    return TalkingAvatar(model, dataset, stats)


class TalkingAvatar:
    """An avatar that is ready to speak."""

    def __init__(self, avatar: Avatar, dataset: Dataset, stats: FeatureStats) -> None:
        self.avatar, self.dataset, self.stats = avatar, dataset, stats
        self.encoder = load_encoder(stats.choice)

    def say(
        self, speech: str | Path, video: str | Path, config: RenderConfig = RenderConfig()
    ) -> Path:
        """Render new speech to a video, which contains the speech at its original sample rate.

        Args:
            speech: audio or video file of any format.
            video: video to write: .mp4, .webm, .mov, or a folder of .png.

        Returns:
            The path of the video.
        """
        render(
            self.avatar,
            self.dataset,
            self._drive(speech, config),
            Path(speech),
            Path(video),
            config,
        )
        return Path(video)

    def render(
        self, speech: str | Path, config: RenderConfig = RenderConfig()
    ) -> Iterator[np.ndarray]:
        """Return the frames of new speech, 25 per second.

        They are RGB uint8 [H, W, 3], or RGBA uint8 [H, W, 4] if the background is transparent.
        """
        drive = self._drive(speech, config)
        return rendered_frames(self.avatar, self.dataset, drive, config)

    def player(
        self, speech: str | Path, page: str | Path, config: PlayerConfig = PlayerConfig()
    ) -> Path:
        """Write a web page that plays new speech, with an avatar that the viewer can turn.

        Args:
            speech: audio or video file of any format.
            page: HTML file to write.

        Returns:
            The path of the page.
        """
        motion = RenderConfig(blinks=config.blinks, seed=config.seed)
        drive = self._drive(speech, motion)
        write_player(Path(page), self.avatar, self.dataset, drive, Path(speech), config)
        return Path(page)

    def stream(self, config: StreamConfig = StreamConfig()) -> StreamingAvatar:
        """Return an avatar for live speech, which receives audio and yields frames."""
        return StreamingAvatar(self.avatar, self.dataset, self.encoder, self.stats, config)

    def _drive(self, speech: str | Path, config: RenderConfig) -> Drive:
        samples = decode_audio(Path(speech))
        samples = np.pad(samples, (0, -len(samples) % SAMPLES_PER_FRAME))
        slots = avatar_features(self.encoder, self.stats, samples)
        features = np.concatenate(list(windows(slots, self.stats.look_ahead)))
        drive = speech_drive(self.dataset, features, config)
        return apply_tracks(drive, self.avatar, self.dataset, Tracks(), config)
