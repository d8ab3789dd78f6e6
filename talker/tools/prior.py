"""Learn a prior on the map from speech to expression from the clips of several speakers.

    talker prior --data data/anna data/ben data/carl --prior prior.npz
    talker train --data data/me --speech-prior prior.npz ...

People move their mouths in similar ways when they say the same thing. A prior from other speakers
therefore improves the mouth of an avatar that is trained on a short clip. If the clip belongs to
the same speakers, it gets the prior of the others.

The file contains no images and no audio, but it is computed from the faces and voices of these
people. Share it only if they agree.
"""

import logging
from pathlib import Path

import numpy as np

from talker.avatar.speech_prior import Speaker, SpeechPrior, fit_speech_prior
from talker.core.config import DEFAULT_ENCODER, validated
from talker.core.files import Output, atomic_write
from talker.core.progress import progress
from talker.dataset import Dataset

logger = logging.getLogger(__name__)

SIZE = 64
"""Size in pixels to which images would be scaled; the prior uses none."""


@validated
class Config:
    """Options of `talker prior`."""

    encoder: str = DEFAULT_ENCODER
    """Speech encoder whose features are used. It must be that of the avatars that use the prior.
    The workflow sets it from the key `encoder` of its configuration."""


def main(*, data: tuple[Path, ...], prior: Output, config: Config = Config()) -> None:
    """Learn a prior on the map from speech to expression from the training frames of datasets.

    Args:
        data: Dataset folders, or files of `talker pack`, one for each speaker.
        prior: File to write, such as prior.npz.
        config: Options.

    Raises:
        UserError: a dataset is incomplete, or the speech features are not of one kind.
    """
    speakers = [
        Speaker.of(Dataset.load(folder, SIZE, config.encoder), config.encoder)
        for folder in progress(data, "datasets", len(data))
    ]
    fitted = fit_speech_prior(speakers)
    with atomic_write(prior) as (scratch,):
        fitted.save(scratch)
    _report(prior, data, fitted)


def _report(prior: Path, data: tuple[Path, ...], fitted: SpeechPrior) -> None:
    """Log how well the map that is fitted to the other speakers predicts each speaker."""
    if len(data) == 1:
        logger.info("Wrote %s, a prior from one speaker.", prior)
        return
    for folder, correlation in zip(data, fitted.correlations, strict=True):
        logger.info(
            "%s: the map of the other speakers predicts the expression with a correlation of %.2f.",
            *(folder, correlation),
        )
    logger.info(
        "Wrote %s, a prior from %d speakers (ridge strength: %g, mean correlation: %.2f).",
        *(prior, len(data), fitted.strength, np.nanmean(fitted.correlations)),
    )
