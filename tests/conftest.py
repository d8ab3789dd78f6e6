"""Fixtures: a synthetic talking person with exact ground truth, and the real clips."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from talker import fit, shots, track
    from talker.synthetic.subject import GroundTruth, SyntheticSubject

ROOT = Path(__file__).parents[1]
CLIPS = ROOT.parent / "shared" / "clips"
DEMO = ROOT / "demo"
COMPILED = {"talker.head.zbuffer"}
"""Modules with kernels, which are compiled from their source and cannot be wrapped."""
SHAPES_CHECKED = [
    name
    for room in ("avatar", "head", "measure", "encoders")
    for path in (ROOT / "talker" / room).glob("[!_]*.py")
    if (name := f"talker.{room}.{path.stem}") not in COMPILED
]
"""Modules whose annotations, the shapes of arrays among them, are checked in every call."""
install_import_hook(SHAPES_CHECKED, "shape_checker.check")
FRAMES, SIZE = 100, 256
for profile, examples in {"default": 25, "fuzz": 1000}.items():
    settings.register_profile(
        profile,
        max_examples=examples,
        derandomize=profile == "default",
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@dataclass(frozen=True)
class Synthetic:
    """The synthetic subject as a video and as arrays."""

    video: Path
    wav: Path
    images: np.ndarray
    """uint8 [T, H, W, 3]"""
    truth: "GroundTruth"
    subject: "SyntheticSubject"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """The demo subject's first 4 seconds, 256 px."""
    from talker.clip import SAMPLES_PER_FRAME
    from talker.media.audio import read_wav, write_wav
    from talker.media.video_writer import video_writer
    from talker.synthetic.acting import read_timings
    from talker.synthetic.subject import SyntheticSubject

    folder = tmp_path_factory.mktemp("synthetic")
    subject = SyntheticSubject.create(read_timings(DEMO / "timings.json"), FRAMES, SIZE)
    images, masks = map(np.stack, zip(*subject.render(), strict=True))
    wav = folder / "speech.wav"
    write_wav(wav, read_wav(DEMO / "speech.wav")[: FRAMES * SAMPLES_PER_FRAME])
    video = folder / "synthetic.mp4"
    with video_writer(video, wav, crf=16) as write:
        for image in images:
            write(image)
    return Synthetic(
        video=video,
        wav=wav,
        images=images,
        truth=subject.ground_truth(masks),
        subject=subject,
    )


@pytest.fixture(scope="session")
def dataset(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete dataset folder of the synthetic subject, written from its ground truth."""
    from talker.media.audio import read_wav
    from talker.synthetic.dataset import write_dataset

    folder = tmp_path_factory.mktemp("data") / "synthetic"
    samples = read_wav(synthetic.wav)
    bodies = synthetic.subject.render(body_only=True)
    write_dataset(folder, synthetic.truth, synthetic.images, bodies, samples)
    return folder


@pytest.fixture(scope="session")
def mel_only(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the dataset whose speech features are stored as those of the encoder mel."""
    folder = tmp_path_factory.mktemp("mel") / "synthetic"
    shutil.copytree(dataset, folder)
    for path in folder.glob("aud_hama.*"):
        path.rename(path.with_stem("aud_mel"))
    return folder


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips; tests that use it carry the marker `clips`."""
    return CLIPS


def read_mask(path: Path) -> np.ndarray:
    """The classes uint8 [H, W] of a parsing mask."""
    from talker.data.layout import to_classes
    from talker.media.images import read_image

    return to_classes(read_image(path), path)


def missing(marker: str) -> str | None:
    """Return why tests with this marker cannot run on this machine, or None."""
    if marker == "clips" and not CLIPS.is_dir():
        return f"no folder {CLIPS}"
    if marker == "gpu":
        import torch

        return None if torch.cuda.is_available() else "no NVIDIA GPU"
    if marker == "transformers" and importlib.util.find_spec("transformers") is None:
        return "the package transformers is not installed"
    if marker == "browser":
        if shutil.which("chromium") is None:
            return "no program chromium (Debian package chromium)"
        found = importlib.util.find_spec("playwright")
        return None if found else "the package playwright is not installed"
    if marker == "slurm":
        import slurm

        return slurm.absent()
    return None


LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that this machine cannot run; the summary says which and why."""
    config.stash[LEFT_OUT] = []
    for marker, name in (
        ("clips", "on real clips"),
        ("gpu", "on a GPU"),
        ("transformers", "of encoders"),
        ("browser", "in a browser"),
        ("slurm", "on Slurm"),
    ):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = missing(marker) if marked else None
        if reason:
            items[:] = [item for item in items if item not in marked]
            config.hook.pytest_deselected(items=marked)
            config.stash[LEFT_OUT].append(f"{len(marked)} tests {name} left out: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Exit with status 0 if all selected tests were skipped."""
    nothing = session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
    if nothing and session.config.stash.get(LEFT_OUT, []):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(line)


def track_files(
    folder: Path,
    images: Path,
    shots_config: "shots.Config | None" = None,
    fit_config: "fit.Config | None" = None,
    track_config: "track.Config | None" = None,
) -> None:
    """Run the stages shots, fit and track on the clip.json and the landmarks.npz of a folder."""
    from talker import fit, shots, track
    from talker.data import layout

    clip, landmarks = folder / layout.CLIP, folder / layout.LANDMARKS
    found, fitted = folder / layout.SHOTS, folder / layout.FIT
    shots.main(
        clip=clip,
        images=images,
        landmarks=landmarks,
        shots=found,
        config=shots_config or shots.Config(),
    )
    fit.main(
        clip=clip,
        landmarks=landmarks,
        shots=found,
        fit=fitted,
        config=fit_config or fit.Config(),
    )
    track.main(
        clip=clip,
        images=images,
        landmarks=landmarks,
        fit=fitted,
        params=folder / layout.TRACK_PARAMS,
        train=folder / layout.TRANSFORMS_TRAIN,
        val=folder / layout.TRANSFORMS_VAL,
        report=folder / layout.TRACK_REPORT,
        config=track_config or track.Config(),
    )
