"""Write small media files with exact times of pictures and sound."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 44_100
TICKS = 90_000
SIZE = 64
LASTS = 0.1  # seconds of a flash and of a beep


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """Restore the scheduling policy of this thread after the block.

    For root, SVT-AV1 gives the thread that runs it real-time priority, which child processes and
    threads inherit. They then keep all other work of the machine from running.
    """
    if sys.platform != "linux":
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_media(
    path: Path,
    times: Sequence[Fraction] = (),
    pictures: Iterable[np.ndarray] = (),
    sound: np.ndarray | None = None,
    sound_start: Fraction = Fraction(0),
    aspect: Fraction | None = None,
    codecs: tuple[str, str] = ("libx264", "aac"),
    pixels: str = "yuv420p",
) -> Path:
    """Write pictures uint8 [H, W, 3] shown from `times`, and sound float32 [C, S] at 44.1 kHz.

    The last picture is shown as long as the one before.
    """
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with scheduling_kept(), av.open(str(path), "w", options=options) as container:
        rate = 25 if codecs[0] == "libsvtav1" else TICKS  # it refuses high rates
        video = container.add_stream(codecs[0], rate=rate) if len(times) else None
        audio = None
        if sound is not None:
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream(
                codecs[1], rate=48_000 if codecs[1] == "libopus" else RATE, layout=layout
            )
        if video is not None:
            video.pix_fmt = pixels
            video.codec_context.time_base = Fraction(1, TICKS)
            if aspect:
                video.codec_context.sample_aspect_ratio = aspect
            ticks = [round(time * TICKS) for time in times]
            ticks.append(2 * ticks[-1] - ticks[-2])
            for i, picture in enumerate(pictures):
                if i == 0:
                    video.height, video.width = picture.shape[:2]
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.time_base = Fraction(1, TICKS)
                frame.pts, frame.duration = ticks[i], ticks[i + 1] - ticks[i]
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound.astype(np.float32), "fltp", layout)
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = round(sound_start * RATE)
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def write_flashes(
    path: Path,
    times: Sequence[Fraction],
    flashes: Sequence[int],
    sound_start: Fraction = Fraction(0),
    **options,
) -> Path:
    """Return frames that are white for 0.1 s from each frame in `flashes` on, with a 1 kHz beep."""
    events = [float(times[f]) for f in flashes]
    white = (any(0 <= float(time) - event < LASTS for event in events) for time in times)
    pictures = (np.full((SIZE, SIZE, 3), 255 * on, np.uint8) for on in white)
    end = times[-1] + Fraction(1, 25) - sound_start
    clock = float(sound_start) + np.arange(round(end * RATE)) / RATE
    beeping = np.any([(clock >= e) & (clock < e + LASTS) for e in events], axis=0)
    sound = 0.5 * np.sin(2 * np.pi * 1000 * clock) * beeping
    return write_media(path, times, pictures, np.stack([sound, sound]), sound_start, **options)


def onsets(signal: np.ndarray, threshold: float, quiet: int) -> np.ndarray:
    """Return the indices where |signal| exceeds `threshold` after `quiet` lower values."""
    loud = np.flatnonzero(np.abs(signal) > threshold)
    return loud[np.diff(loud, prepend=-quiet - 1) > quiet]
