"""The prior from other speakers: it helps where the speakers share a map, and does no harm else."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from talker.avatar.checkpoint import Origin
from talker.avatar.expression import (
    EXPRESSIONS,
    Speaker,
    SpeechPrior,
    SpeechToExpression,
    expression_components,
    fit_speech_to_expression,
)
from talker.avatar.options import Config
from talker.avatar.trainer import fit
from talker.avatar.training_set import training_set
from talker.data.formats import read_expression_basis
from talker.dataset import Dataset
from talker.encoders.features import FeatureStats
from talker.errors import UserError
from talker.tools.prior import fit_speech_prior, main

TINY = Config(
    image_size=64,
    device="cpu",
    gaussians=300,
    plane_resolutions=(8,),
    canonical_steps=1,
    deformation_steps=1,
    deformation_batch=2,
)
DIMS, COMPONENTS, POINTS = 30, 24, 20
SECONDS_5, GAP = 125, 16


@dataclasses.dataclass(frozen=True)
class Person:
    """A made-up speaker, of whom some frames are used for training."""

    speaker: Speaker
    windows: torch.Tensor
    expressions: torch.Tensor
    """scores of all frames in the components of the training frames"""

    def held_out_correlation(self, train: int, prior: SpeechPrior | None) -> float:
        """Fit the first `train` frames, and return the correlation of the others."""
        layer = SpeechToExpression(COMPONENTS)
        fit_speech_to_expression(
            layer,
            self.windows[:train],
            self.expressions[:train],
            silence=torch.from_numpy(self.speaker.silence).float(),
            rest=torch.from_numpy(self.speaker.rest).float(),
            other_speakers=None if prior is None else prior.map_of(self.speaker),
        )
        with torch.no_grad():
            predicted = layer(self.windows)[train + GAP :, 0]
        return float(np.corrcoef(predicted, self.expressions[train + GAP :, 0])[0, 1])


def a_person(seed: int, mouth: np.ndarray, train: int, frames: int = 500) -> Person:
    """Make a person whose mesh follows `mouth` [DIMS, 3 POINTS] of the sound, and own noise.

    As in real clips, the components of speech and of expressions are those of the training frames.
    """
    rng = np.random.default_rng(seed)
    sound = gaussian_filter1d(rng.normal(size=(2 * frames, DIMS)), 1.5, axis=0)
    sound *= 0.95 ** np.arange(DIMS) / sound.std(0)
    index = (2 * np.arange(frames)[:, None] + np.arange(-7, 9)).clip(0, 2 * frames - 1)
    moved = sound[index][:, 7:9].mean(1) @ mouth
    noise = rng.normal(size=(frames, 3)) @ rng.normal(size=(3, mouth.shape[1]))
    motion = moved + noise * moved.std() / noise.std()
    motion = rng.uniform(0.5, 2) * gaussian_filter1d(motion, 0.5, axis=0)
    _, sizes, axes = np.linalg.svd(sound[: 2 * train] - sound[: 2 * train].mean(0))
    scale = sizes[:COMPONENTS] / np.sqrt(2 * train)
    mean = sound[: 2 * train].mean(0)
    windows = ((sound - mean) @ axes[:COMPONENTS].T / scale)[index]
    silence = np.random.default_rng(99).normal(size=DIMS)  # the same for everyone
    parts = expression_components(motion[:train], np.zeros((train, 2)))
    size = (motion[:train] - motion[:train].mean(0)) @ parts.axes[0].numpy()
    scores = (motion - motion[:train].mean(0)) @ parts.axes.numpy().T / size.std()
    opening = scores[:train, 0]
    speaker = Speaker(
        windows=windows[:train],
        silence=(2 * silence - mean) @ axes[:COMPONENTS].T / scale,
        directions=axes[:COMPONENTS] * scale[:, None],
        expressions=parts.scores.double().numpy(),
        rest=scores[:train][opening <= np.quantile(opening, 0.1)].mean(0),
        mesh_axes=parts.axes.numpy(),
        encoder="made up",
        identity=str(seed),
    )
    return Person(speaker, torch.from_numpy(windows).float(), torch.from_numpy(scores).float())


def a_mouth(seed: int) -> np.ndarray:
    rng = np.random.default_rng(100 + seed)
    return rng.normal(size=(DIMS, 3)) @ rng.normal(size=(3, 3 * POINTS))


def gains(shared: bool) -> list[float]:
    """Return the gain of held-out correlation by the prior, for several people with 5 s of video.

    Args:
        shared: whether all people move their mouths in the same way.
    """
    mouths = [a_mouth(0 if shared else seed) for seed in range(12)]
    others = [a_person(seed, mouths[seed], 400).speaker for seed in range(6)]
    prior = fit_speech_prior(others)
    people = [a_person(seed, mouths[seed], SECONDS_5) for seed in range(6, 12)]
    return [
        person.held_out_correlation(SECONDS_5, prior) - person.held_out_correlation(SECONDS_5, None)
        for person in people
    ]


def test_it_helps_if_the_speakers_share_a_map() -> None:
    found = gains(shared=True)
    assert np.mean(found) > 0.05
    assert min(found) > 0


def test_it_does_no_harm_if_they_do_not() -> None:
    found = gains(shared=False)
    assert np.mean(found) > -0.01
    assert min(found) > -0.05


def test_the_map_of_the_others_predicts_a_speaker_if_it_is_shared() -> None:
    shared = fit_speech_prior([a_person(seed, a_mouth(0), 200).speaker for seed in range(4)])
    own = fit_speech_prior([a_person(seed, a_mouth(seed), 200).speaker for seed in range(4)])
    assert shared.correlations.min() > 0.8
    assert own.correlations.mean() < 0.3


def test_a_speaker_of_the_prior_gets_the_map_of_the_others() -> None:
    speakers = [a_person(seed, a_mouth(0), 150).speaker for seed in range(4)]
    prior, others = fit_speech_prior(speakers), fit_speech_prior(speakers[1:])
    x = np.random.default_rng(0).normal(size=(50, 16 * COMPONENTS))
    of_others, of_all, alone = (
        made.map_of(speaker).predict(x)
        for made, speaker in (
            (prior, speakers[0]),
            (prior, dataclasses.replace(speakers[0], identity="new")),
            (others, speakers[0]),
        )
    )
    assert np.corrcoef(of_others[:, 0], alone[:, 0])[0, 1] > 0.98
    assert np.abs(of_others - of_all).max() > 1e-3


def test_the_map_does_not_depend_on_the_axes_of_the_clip() -> None:
    """Turned components of speech and of expressions describe the same speaker."""
    rng = np.random.default_rng(1)
    speakers = [a_person(seed, a_mouth(0), 150).speaker for seed in range(3)]
    prior = fit_speech_prior(speakers)
    one = dataclasses.replace(speakers[0], identity="new")
    turn, swap = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (COMPONENTS, EXPRESSIONS))
    other = dataclasses.replace(
        one, directions=turn.T @ one.directions, mesh_axes=swap.T @ one.mesh_axes
    )
    expected = prior.map_of(one).predict(one.windows.reshape(150, -1)) @ swap
    found = prior.map_of(other).predict((one.windows @ turn).reshape(150, -1))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    prior = fit_speech_prior([a_person(0, a_mouth(0), 100).speaker])
    prior.save(tmp_path / "prior.npz")
    again = SpeechPrior.load(tmp_path / "prior.npz")
    for name, value in vars(prior).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "prior.npz").read_bytes()[:1000])
    np.savez(tmp_path / "other.npz", **{**vars(prior), "bias": prior.bias[:1]})
    for name in ("damaged.npz", "other.npz", "missing.npz"):
        with pytest.raises(UserError, match="talker prior"):
            SpeechPrior.load(tmp_path / name)


def test_what_does_not_fit_is_refused() -> None:
    speaker = a_person(0, a_mouth(0), 100).speaker
    prior = fit_speech_prior([speaker])
    encoder = dataclasses.replace(speaker, encoder="another")
    mesh = dataclasses.replace(speaker, mesh_axes=speaker.mesh_axes[:, :30])
    for other, message in ((encoder, "features of another"), (mesh, "has 10")):
        with pytest.raises(UserError, match=message):
            prior.map_of(other)
        with pytest.raises(UserError, match="Run `talker"):
            fit_speech_prior([speaker, other])
    with pytest.raises(UserError, match="at least one"):
        fit_speech_prior([])


def test_the_command_fits_a_prior_that_training_uses(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "subject"
    shutil.copytree(dataset, folder)
    with pytest.raises(UserError, match=r"aud_hama.npz does not exist.*talker speech"):
        main(data=(folder,), prior=tmp_path / "prior.npz")
    data = Dataset.load(folder, 64)
    count, dims = data.speech.shape[2], 40
    FeatureStats(
        *("hama", "", 0, "0" * 64, 2, -20.0, 0.3),
        mean=np.zeros(dims, np.float32),
        components=np.eye(count, dims, dtype=np.float32),
        scale=np.ones(count, np.float32),
        silence=np.full(count, 3, np.float32),
    ).save(folder / "aud_hama.npz")
    main(data=(folder,), prior=tmp_path / "prior.npz")
    data = Dataset.load(folder, 64)
    found = SpeechPrior.load(tmp_path / "prior.npz").map_of(Speaker.of(data, "hama"))
    assert found.weight.shape == (data.speech[0].size, EXPRESSIONS)
    predicted = found.predict(data.speech[data.train_ids].reshape(len(data.train_ids), -1))
    truth = Speaker.of(data, "hama").expressions
    assert np.corrcoef(predicted[:, 0], truth[:, 0])[0, 1] > 0.5
    config = dataclasses.replace(TINY, speech_prior=str(tmp_path / "prior.npz"))
    subset = training_set(data, torch.device("cpu"))
    maps = [
        fit(data, subset, options, tmp_path / f"{k}.pt").avatar.speech_to_expression.weight
        for k, options in enumerate((config, TINY))
    ]
    assert not torch.equal(*maps)
    before = Origin.of(config, data)
    assert before.data != Origin.of(TINY, data).data
    fit_speech_prior([a_person(0, a_mouth(0), 100).speaker]).save(tmp_path / "prior.npz")
    assert Origin.of(config, data).differences(before) == ["data"]


def test_a_dataset_without_a_basis_is_refused(tmp_path: Path) -> None:
    torch.save({"exp": torch.zeros(3, 79)}, tmp_path / "track_params.pt")
    with pytest.raises(UserError, match=r"exp_basis is missing.*talker track"):
        read_expression_basis(tmp_path / "track_params.pt")
