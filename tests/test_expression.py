"""The linear map from speech to expression and the targets that it is fitted to."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from talker.avatar.expression import (
    SpeechToExpression,
    expression_targets,
    fit_speech_to_expression,
    rest_expression,
    weight_prior,
)


def test_prior_learns_an_expression_that_follows_the_speech_and_generalises() -> None:
    rng = np.random.default_rng(1)
    frames, train = 400, 300
    sound = np.convolve(rng.normal(size=frames), np.ones(5), "same")
    windows = rng.normal(size=(frames, 16, 4)) * 0.3
    windows[:, 6:10, 0] += sound[:, None]
    expression = rng.normal(size=(frames, 12)) * 0.1
    expression[:, 3] += sound
    torch.manual_seed(0)
    layer = SpeechToExpression(4)
    targets = expression_targets(expression, rng.random((frames, 2)))
    _, correlation = fit_speech_to_expression(
        layer, torch.from_numpy(windows[:train]).float(), targets[:train]
    )
    with torch.no_grad():
        predicted = layer(torch.from_numpy(windows).float())[train:, 0]
    held_out = np.corrcoef(predicted, targets[train:, 0])[0, 1]
    assert abs(held_out) > 0.9
    assert abs(correlation - held_out) < 0.1


def test_left_out_correlation_is_honest_about_noise() -> None:
    rng = np.random.default_rng(2)
    windows = torch.from_numpy(rng.normal(size=(300, 16, 4))).float()
    _, correlation = fit_speech_to_expression(
        SpeechToExpression(4),
        windows,
        expression_targets(rng.normal(size=(300, 12)), rng.random((300, 2))),
    )
    assert abs(correlation) < 0.25


def test_few_expression_components_are_filled_up() -> None:
    rng = np.random.default_rng(3)
    targets = expression_targets(rng.normal(size=(50, 4)), rng.random((50, 2)))
    assert targets.shape == (50, 10)
    assert targets[:, 4:].abs().max() == 0
    assert abs(targets[:, 0].std(correction=0) - 1) < 1e-5


def test_expression_does_not_contain_blinks_and_brows() -> None:
    rng = np.random.default_rng(4)
    upper, mouth = rng.random((200, 2)), rng.normal(size=200)
    expression = np.stack([3 * upper[:, 0] - upper[:, 1] + 0.1 * mouth, mouth], axis=1)
    targets = expression_targets(expression, upper).numpy()
    assert abs(np.corrcoef(targets[:, 0], mouth)[0, 1]) > 0.95
    assert np.abs(targets.T @ (upper - upper.mean(0))).max() < 1e-3
    for columns in ([1, 0], [0, 1], [0, 0]):  # a motion that was not recorded is constant
        still = expression_targets(expression, upper * columns)
        assert np.isfinite(still.numpy()).all()


def test_silence_is_answered_by_the_face_at_rest() -> None:
    """This also holds if speech does not predict the expression."""
    rng = np.random.default_rng(5)
    windows = torch.from_numpy(rng.normal(size=(300, 16, 4))).float()
    opening = rng.random(300)
    expression = rng.normal(size=(300, 12)) * 0.2
    expression[:, 0] += 5 * opening
    targets = expression_targets(expression, np.zeros((300, 2)))
    rest = rest_expression(targets, opening)
    silence = torch.full((4,), 2.0)
    torch.manual_seed(0)
    layer = SpeechToExpression(4)
    fit_speech_to_expression(layer, windows, targets, silence=silence, rest=rest)
    answer = layer(silence.expand(1, 16, 4))[0]
    assert (rest[0] - targets[:, 0].mean()).abs() > 1
    assert (answer - rest).norm() < 0.2 * (rest - targets.mean(0)).norm()
    assert (layer(windows) - answer).norm(dim=1).min() > 0


def test_rest_is_the_mean_of_the_least_open_tenth_and_a_little_more() -> None:
    targets = torch.arange(20.0)[:, None].expand(20, 10)
    opening = np.linspace(0, 1, 20)[::-1]
    assert rest_expression(targets, opening).tolist() == pytest.approx([1.2 * 18.5] * 10)


def test_the_prior_favors_near_slots_and_large_components() -> None:
    prior = weight_prior(np.array([3.0, 1.0])).reshape(16, 2)
    np.testing.assert_allclose(np.mean(prior**2), 1)
    np.testing.assert_allclose(prior[:, 0], 3 * prior[:, 1])
    np.testing.assert_allclose(prior, prior[::-1])
    assert (np.diff(prior[:8, 0]) > 0).all()


def test_the_prior_helps_where_few_frames_teach() -> None:
    """Speech of 32 components; the large components near the center open the mouth."""
    gains = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scale = 0.8 ** np.arange(32)
        slots = gaussian_filter1d(rng.normal(size=(2 * 600, 32)), 1.5, axis=0)
        slots /= slots.std(0)
        index = (2 * np.arange(600)[:, None] + np.arange(-7, 9)).clip(0, 1199)
        windows = slots[index]
        mouth = (windows[:, 7:9].mean(1) * scale) @ rng.normal(size=32)
        expression = np.stack([mouth, 0.1 * rng.normal(size=600)], 1)
        expression += 0.5 * mouth.std() * rng.normal(size=(600, 2))
        targets = expression_targets(expression, np.zeros((600, 2)))
        correlations = []
        for speech_scale in (torch.from_numpy(scale), None):
            layer = SpeechToExpression(32)
            x = torch.from_numpy(windows).float()
            fit_speech_to_expression(layer, x[:150], targets[:150], speech_scale)
            with torch.no_grad():
                predicted = layer(x[166:])[:, 0]
            correlations.append(np.corrcoef(predicted, targets[166:, 0])[0, 1])
        gains.append(correlations[0] - correlations[1])
    assert np.mean(gains) > 0.02


def test_the_amplitude_is_restored_as_far_as_asked() -> None:
    rng = np.random.default_rng(6)
    windows = rng.normal(size=(400, 16, 4))
    expression = np.stack([windows[:, 7, 0] + 1.2 * rng.normal(size=400)] * 2, 1)
    targets = expression_targets(expression, np.zeros((400, 2)))
    spread = []
    for amplitude in (0.0, 0.5, 1.0):
        layer = SpeechToExpression(4)
        x = torch.from_numpy(windows).float()
        fit_speech_to_expression(layer, x, targets, amplitude=amplitude)
        with torch.no_grad():
            spread.append(float(layer(x)[:, 0].std()))
    assert spread[0] < spread[1] < spread[2]
    assert spread[1] == pytest.approx((spread[0] + spread[2]) / 2, rel=1e-3)
    assert spread[2] / spread[0] == pytest.approx(1.5, rel=0.05), "limited"


def closing_speech(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return windows [600, 16, 8], expressions [600, 10] and mouth openings [600].

    The lips close for up to four frames where speech component 7 is large, and the mouth opens
    slowly with component 0, which also determines an expression that is four times larger. Noise
    hides part of the opening.
    """
    rng = np.random.default_rng(seed)
    slots = gaussian_filter1d(rng.normal(size=(1200, 8)), 4, axis=0)
    slots[:, 7] = gaussian_filter1d((rng.random(1200) < 0.03).astype(float), 2)
    slots = (slots - slots.mean(0)) / slots.std(0)
    windows = slots[(2 * np.arange(600)[:, None] + np.arange(-7, 9)).clip(0, 1199)]
    center = windows[:, 7:9].mean(1)
    opening = 0.08 + 0.02 * (center[:, 0] + rng.normal(size=600))
    opening = opening.clip(0.02, None) * (center[:, 7] < 1)
    jaw = center[:, 0] + 2 * rng.normal(size=600)
    expression = np.stack([0.1 * jaw, opening], axis=1)
    targets = expression_targets(expression, np.zeros((600, 2)))
    return torch.from_numpy(windows).float(), targets, torch.from_numpy(opening)


def test_the_lips_close_where_the_real_lips_are_closed() -> None:
    """How far the lips stay open where the real lips are closed, relative to open lips."""
    remaining, correlations = [], []
    for seed in range(3):
        windows, targets, opening = closing_speech(seed)
        train, test = slice(0, 400), slice(416, 600)
        design = np.hstack([targets, np.ones((600, 1))])
        axis = np.linalg.lstsq(design, opening.numpy(), rcond=None)[0]
        closed = opening[test].numpy() == 0
        for given in (None, opening[train]):
            layer = SpeechToExpression(8)
            fit_speech_to_expression(
                layer, windows[train], targets[train], amplitude=1.0, opening=given
            )
            with torch.no_grad():
                predicted = layer(windows[test]).numpy() @ axis[:-1] + axis[-1]
            correlations.append(np.corrcoef(predicted, opening[test])[0, 1])
            remaining.append(predicted[closed].mean() / predicted[~closed].mean())
    before, after = np.reshape(remaining, (3, 2)).mean(0)
    assert after < before - 0.1
    before, after = np.reshape(correlations, (3, 2)).mean(0)
    assert after > before - 0.02


def test_the_opening_has_the_amplitude_of_the_recording() -> None:
    windows, targets, opening = closing_speech(3)
    design = np.hstack([targets, np.ones((600, 1))])
    axis = np.linalg.lstsq(design, opening.numpy(), rcond=None)[0]
    layer = SpeechToExpression(8)
    fit_speech_to_expression(layer, windows, targets, amplitude=1.0, opening=opening)
    with torch.no_grad():
        predicted = layer(windows).numpy() @ axis[:-1]
    assert predicted.std() == pytest.approx(float(opening.std()), rel=0.1)


def test_an_opening_that_the_expression_does_not_contain_has_no_effect() -> None:
    windows, targets, _ = closing_speech(4)
    layers = [SpeechToExpression(8) for _ in range(2)]
    results = [
        fit_speech_to_expression(layer, windows, targets, opening=opening)
        for layer, opening in zip(layers, (None, torch.full((600,), 0.1)), strict=True)
    ]
    assert results[0] == results[1]
    torch.testing.assert_close(*[layer.weight for layer in layers])
    torch.testing.assert_close(*[layer.bias for layer in layers])


def test_silence_closes_the_mouth_also_if_the_opening_is_fitted_by_itself() -> None:
    windows, targets, opening = closing_speech(5)
    rest, silence = rest_expression(targets, opening.numpy()), torch.full((8,), 2.0)
    layer = SpeechToExpression(8)
    fit_speech_to_expression(layer, windows, targets, None, silence, rest, 0.0, None, opening)
    answer = layer(silence.expand(1, 16, 8))[0]
    assert (answer - rest).norm() < 0.2 * (rest - targets.mean(0)).norm()
