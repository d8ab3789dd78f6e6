"""The linear map from speech to expression and the targets that it is fitted to."""

import numpy as np
import pytest
import torch

from talker.avatar.expression import (
    SpeechToExpression,
    expression_targets,
    fit_speech_to_expression,
    rest_expression,
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
    targets = expression_targets(expression, rng.random(frames))
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
        expression_targets(rng.normal(size=(300, 12)), rng.random(300)),
    )
    assert abs(correlation) < 0.25


def test_few_expression_components_are_filled_up() -> None:
    rng = np.random.default_rng(3)
    targets = expression_targets(rng.normal(size=(50, 4)), rng.random(50))
    assert targets.shape == (50, 10)
    assert targets[:, 4:].abs().max() == 0
    assert abs(targets[:, 0].std(correction=0) - 1) < 1e-5


def test_expression_tells_nothing_of_the_blinks() -> None:
    rng = np.random.default_rng(4)
    blink, mouth = rng.random(200), rng.normal(size=200)
    expression = np.stack([3 * blink + 0.1 * mouth, mouth], axis=1)
    targets = expression_targets(expression, blink).numpy()
    assert abs(np.corrcoef(targets[:, 0], mouth)[0, 1]) > 0.95
    assert np.abs(targets.T @ (blink - blink.mean())).max() < 1e-3
    still = expression_targets(expression, np.zeros(200))
    assert np.isfinite(still.numpy()).all()


def test_silence_is_answered_by_the_face_at_rest() -> None:
    """Even where speech does not predict the expression."""
    rng = np.random.default_rng(5)
    windows = torch.from_numpy(rng.normal(size=(300, 16, 4))).float()
    opening = rng.random(300)
    expression = rng.normal(size=(300, 12)) * 0.2
    expression[:, 0] += 5 * opening
    targets = expression_targets(expression, np.zeros(300))
    rest = rest_expression(targets, opening)
    silence = torch.full((4,), 2.0)
    torch.manual_seed(0)
    layer = SpeechToExpression(4)
    fit_speech_to_expression(layer, windows, targets, silence, rest)
    answer = layer(silence.expand(1, 16, 4))[0]
    assert (rest[0] - targets[:, 0].mean()).abs() > 1
    assert (answer - rest).norm() < 0.2 * (rest - targets.mean(0)).norm()
    assert (layer(windows) - answer).norm(dim=1).min() > 0


def test_rest_is_the_mean_of_the_least_open_tenth_and_a_little_more() -> None:
    targets = torch.arange(20.0)[:, None].expand(20, 10)
    opening = np.linspace(0, 1, 20)[::-1]
    assert rest_expression(targets, opening).tolist() == pytest.approx([1.2 * 18.5] * 10)
