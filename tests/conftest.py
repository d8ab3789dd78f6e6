"""A synthetic talking person with known truth, and where the real clips are."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
CLIPS = ROOT.parent / "shared" / "clips"
DEMO = ROOT / "demo"
FRAMES, SIZE = 100, 256


@dataclass(frozen=True)
class Synthetic:
    """The synthetic subject as a video and as arrays."""

    video: Path
    wav: Path
    images: np.ndarray
    """uint8 [T, H, W, 3]"""
    torsos: np.ndarray
    """uint8 [T, H, W, 4]"""
    truth: "Truth"  # noqa: F821


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """The demo subject's first 4 seconds, 256 px."""
    from talker.clip import SAMPLES_PER_FRAME
    from talker.media.audio import read_wav, write_wav
    from talker.media.video import video_writer
    from talker.synthetic.performance import read_timings
    from talker.synthetic.subject import Subject

    folder = tmp_path_factory.mktemp("synthetic")
    subject = Subject.make(read_timings(DEMO / "timings.json"), FRAMES, SIZE)
    pictures = list(subject.pictures())
    wav = folder / "speech.wav"
    write_wav(wav, read_wav(DEMO / "speech.wav")[: FRAMES * SAMPLES_PER_FRAME])
    video = folder / "synthetic.mp4"
    with video_writer(video, wav, crf=16) as write:
        for picture in pictures:
            write(picture.image)
    return Synthetic(
        video=video,
        wav=wav,
        images=np.stack([picture.image for picture in pictures]),
        torsos=np.stack([picture.torso for picture in pictures]),
        truth=subject.truth(np.stack([picture.mask for picture in pictures])),
    )


@pytest.fixture(scope="session")
def dataset(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete dataset folder of the synthetic subject, written from its truth."""
    from talker.media.audio import read_wav
    from talker.synthetic.dataset import write_dataset
    from talker.synthetic.renderer import Picture

    folder = tmp_path_factory.mktemp("data") / "synthetic"
    layers = zip(synthetic.images, synthetic.truth.masks, synthetic.torsos, strict=True)
    pictures = (Picture(*layer) for layer in layers)
    write_dataset(folder, synthetic.truth, pictures, read_wav(synthetic.wav))
    return folder


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips; tests that use it carry the marker `clips`."""
    return CLIPS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run; the summary says how many."""
    if not CLIPS.is_dir():
        left_out = [item for item in items if item.get_closest_marker("clips")]
        if left_out:
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)
            config.stash[MISSING_CLIPS] = len(left_out)


MISSING_CLIPS = pytest.StashKey[int]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    missing = config.stash.get(MISSING_CLIPS, 0)
    if missing:
        terminalreporter.write_line(f"{missing} tests on real clips left out: no folder {CLIPS}")
