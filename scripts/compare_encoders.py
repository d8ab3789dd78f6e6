"""Compare how well speech encoders predict the mouth of a subject, without training an avatar.

    python scripts/compare_encoders.py data/me hama mel hubert:/models/hubert-base

For each encoder it prints two correlations of the ridge prediction, fitted as in `talker train`:
with the first component of the tracked expression on five left-out stretches of the training
frames, and with the lip opening on the held-out frames. Each encoder takes a few seconds.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from talker import speech
from talker.avatar.expression import (
    SpeechToExpression,
    expression_targets,
    fit_speech_to_expression,
    rest_expression,
)
from talker.dataset import Dataset
from talker.encoders.features import FeatureStats
from talker.head.landmarks68 import mouth_opening
from talker.measure.metrics import correlation


def compare(data: Dataset, name: str, model: str) -> tuple[float, float]:
    """Return the correlations on left-out training stretches and on the held-out frames."""
    assert isinstance(data.folder, Path), "The dataset is a packed file. Give a dataset folder."
    with tempfile.TemporaryDirectory() as folder:
        features, statistics = Path(folder, "aud.npy"), Path(folder, "aud.npz")
        speech.main(
            wav=data.folder / "aud.wav",
            clip=data.folder / "clip.json",
            statistics=statistics,
            features=features,
            config=speech.Config(encoder=name, model=model),  # pyright: ignore[reportArgumentType]
        )
        windows = torch.from_numpy(np.load(features))
        stats = FeatureStats.load(statistics)
    ids, held_out = data.train_ids, data.val_ids
    targets = expression_targets(data.expression[ids], data.eye[ids])
    opening = mouth_opening(data.landmarks)
    torch.manual_seed(0)
    layer = SpeechToExpression(windows.shape[-1])
    rest = rest_expression(targets, opening[ids])
    _, left_out = fit_speech_to_expression(
        layer,
        windows[ids],
        targets,
        speech_scale=torch.from_numpy(stats.scale),
        silence=torch.from_numpy(stats.silence),
        rest=rest,
        opening=torch.from_numpy(opening[ids]),
    )
    with torch.no_grad():
        predicted = layer(windows[held_out]).numpy()
    constant = np.ones((len(ids), 1))
    weight = np.linalg.lstsq(np.hstack([targets, constant]), opening[ids], rcond=None)[0]
    return left_out, correlation(predicted @ weight[:-1], opening[held_out])


if __name__ == "__main__":
    folder, *encoders = sys.argv[1:]
    dataset = Dataset.load(Path(folder), 64)
    for given in encoders:
        name, _, model = given.partition(":")
        left_out, held_out = compare(dataset, name, model)
        print(
            f"{given}: correlation {left_out:.3f} on training frames that were not used for the "
            f"fit, {held_out:.3f} on held-out frames"
        )
