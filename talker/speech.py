"""Speech features: one window of 16 slots of 20 ms for each frame, reduced by PCA.

`talker speech --wav aud.wav --clip clip.json --statistics aud_hama.npz --features aud_hama.npy`
learns the PCA from the clip's training frames; without `--clip` it applies it to new speech.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talker.clip import SAMPLES_PER_FRAME, Clip
from talker.errors import UserError
from talker.files import Output, replacing
from talker.media.audio import read_wav
from talker.media.speech_encoders import Encoder, load_encoder

SLOT_RATE = 50  # slots a second; slot k is centred on 10 + 20 k ms
SLOTS_PER_FRAME = 2
WINDOW = 16


@dataclass(frozen=True)
class Config:
    """Options of `talker speech` for a clip; new speech takes them from the clip's statistics."""

    encoder: str = "hama"
    """Network that describes the sound."""
    components: int = 32
    """Principal components to keep."""
    look_ahead: int = 2
    """Slots of 20 ms that a window's centre lies after its frame: lips move before the sound."""


@dataclass(frozen=True)
class Statistics:
    """How an encoder's features become those of an avatar; learned from its training frames.

    mean is [D], components are orthonormal rows [C, D], scale is [C]: the standard deviations of
    the components. sha256 identifies the encoder's weights.
    """

    encoder: str
    sha256: str
    look_ahead: int
    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray

    def reduce(self, slots: np.ndarray) -> np.ndarray:
        """Map encoder features [K, D] to whitened components float32 [K, C]."""
        return ((slots - self.mean) @ self.components.T / self.scale).astype(np.float32)

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read what `save` wrote; UserError if it is missing or damaged."""
        try:
            with np.load(path) as archive:
                return cls(
                    encoder=str(archive["encoder"]),
                    sha256=str(archive["sha256"]),
                    look_ahead=int(archive["look_ahead"]),
                    mean=archive["mean"],
                    components=archive["components"],
                    scale=archive["scale"],
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: expected the statistics that `talker speech --clip` writes ({error})"
            ) from error

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))


def slot_features(encoder: Encoder, samples: np.ndarray) -> np.ndarray:
    """Describe sound at the centres of its slots, by linear interpolation of the encoder's rows.

    Args:
        encoder: the network.
        samples: int16 [640 T] at 16 kHz.

    Returns:
        float32 [2 T, D].

    Raises:
        RuntimeError: the encoder returned far more or fewer rows than its rate says.
    """
    slots = len(samples) * SLOTS_PER_FRAME // SAMPLES_PER_FRAME
    rows = encoder.encode(samples.astype(np.float32) / 32768)
    expected = slots * encoder.rate / SLOT_RATE
    if abs(len(rows) - expected) > 2 * encoder.rate / 25:
        raise RuntimeError(f"{encoder.name}: {len(rows)} rows for {slots} slots")
    centres = (np.arange(slots) + 0.5) / SLOT_RATE
    position = np.clip((centres - encoder.first_centre) * encoder.rate, 0, len(rows) - 1)
    before = np.minimum(position.astype(int), max(0, len(rows) - 2))
    after = np.minimum(before + 1, len(rows) - 1)
    weight = (position - before)[:, None].astype(np.float32)
    return rows[before] * (1 - weight) + rows[after] * weight


def fit_statistics(slots: np.ndarray, encoder: Encoder, config: Config) -> Statistics:
    """Learn the principal components of features [K, D].

    The largest entry of each component is positive, so that the same sound gives the same signs.

    Raises:
        UserError: more components are asked for than the features have.
    """
    if not 0 < config.components <= min(encoder.dims, len(slots) - 1):
        raise UserError(
            f"components: expected 1 to {min(encoder.dims, len(slots) - 1)} for the encoder "
            f"{encoder.name} and {len(slots)} training slots, found {config.components}"
        )
    exact = slots.astype(np.float64)
    mean = exact.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(exact.T, bias=True))
    kept = np.argsort(variances)[::-1][: config.components]
    components = vectors[:, kept].T
    peaks = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    scale = np.sqrt(np.maximum(variances[kept], 1e-6 * variances.max()))
    return Statistics(
        encoder=encoder.name,
        sha256=encoder.sha256,
        look_ahead=config.look_ahead,
        mean=mean.astype(np.float32),
        components=(components * np.sign(peaks)).astype(np.float32),
        scale=scale.astype(np.float32),
    )


def windows(features: np.ndarray, look_ahead: int) -> np.ndarray:
    """Cut a window for each frame out of slots [2 T, C]; the first and last slot continue the ends.

    Returns:
        [T, 16, C]; window i holds slots 2 i - 7 + `look_ahead` to 2 i + 8 + `look_ahead`.
    """
    frames = len(features) // SLOTS_PER_FRAME
    first = SLOTS_PER_FRAME * np.arange(frames) - WINDOW // 2 + 1 + look_ahead
    slots = first[:, None] + np.arange(WINDOW)
    return features[np.clip(slots, 0, len(features) - 1)]


def main(
    *,
    wav: Path,
    statistics: Path,
    features: Output,
    clip: Path | None = None,
    config: Config = Config(),
) -> None:
    """Write the speech windows of a clip and their statistics, or those of new speech.

    Args:
        wav: sound that `talker audio` wrote.
        statistics: .npz of the PCA: written with `clip`, read without.
        features: .npy of windows float32 [T, 16, C] to write.
        clip: clip.json of the sound; leave out for new speech.
        config: options.
    """
    samples = read_wav(wav)
    frames = len(samples) // SAMPLES_PER_FRAME
    if len(samples) % SAMPLES_PER_FRAME or not frames:
        raise UserError(
            f"{wav}: expected whole frames of {SAMPLES_PER_FRAME} samples, found {len(samples)} "
            "samples; make it with `talker audio`"
        )
    if clip is None:
        learned = Statistics.load(statistics)
        encoder = load_encoder(learned.encoder)
        if encoder.sha256 != learned.sha256:
            raise UserError(f"{statistics}: was made with other weights of {learned.encoder}")
        slots = slot_features(encoder, samples)
        with replacing(features) as (file,):
            np.save(file, windows(learned.reduce(slots), learned.look_ahead))
        return
    about = Clip.load(clip)
    if frames != about.frames:
        raise UserError(f"{wav}: lasts {frames} frames, expected {about.frames} as in {clip}")
    encoder = load_encoder(config.encoder)
    slots = slot_features(encoder, samples)
    learned = fit_statistics(slots[: SLOTS_PER_FRAME * about.train_frames], encoder, config)
    with replacing(features, statistics) as (file, archive):
        np.save(file, windows(learned.reduce(slots), learned.look_ahead))
        learned.save(archive)
