"""Speech context, encoder and the prior that teaches it mouth shapes."""

import numpy as np
import torch

from talker.avatar.speech_encoder import SpeechEncoder, speech_context
from talker.avatar.speech_prior import fit_speech_encoder, mouth_shapes, mouth_targets
from talker.head.landmarks68 import INNER_LIPS


def test_context_is_frames_minus_4_to_plus_3_with_repeated_edges() -> None:
    windows = torch.arange(10.0)[:, None, None].expand(10, 16, 2)
    context = speech_context(windows, torch.tensor([0, 5, 9]))
    assert context.shape == (3, 8, 16, 2)
    assert context[:, :, 0, 0].tolist() == [
        [0, 0, 0, 0, 0, 1, 2, 3],
        [1, 2, 3, 4, 5, 6, 7, 8],
        [5, 6, 7, 8, 9, 9, 9, 9],
    ]


def face(rng: np.random.Generator, frames: int) -> np.ndarray:
    landmarks = np.repeat(rng.normal(size=(1, 68, 2)) * 50, frames, axis=0)
    landmarks[:, 36], landmarks[:, 45] = (-50, 0), (50, 0)
    landmarks[:, INNER_LIPS, 1] += 10 * rng.normal(size=(frames, 1))
    return landmarks


def test_mouth_shapes_ignore_head_roll_place_and_size() -> None:
    rng = np.random.default_rng(0)
    landmarks = face(rng, 6)
    turned = landmarks.copy()
    for t, angle in enumerate(np.linspace(-0.6, 0.6, 6)):
        c, s = np.cos(angle), np.sin(angle)
        turned[t] = 1.7 * landmarks[t] @ np.array([[c, s], [-s, c]]) + (300, 200)
    np.testing.assert_allclose(mouth_shapes(turned), mouth_shapes(landmarks), atol=1e-9)
    assert np.ptp(mouth_shapes(landmarks), axis=0).max() > 0.05


def test_prior_learns_a_mouth_that_follows_the_speech_and_generalises() -> None:
    rng = np.random.default_rng(1)
    frames, train = 400, 300
    sound = np.convolve(rng.normal(size=frames), np.ones(5), "same")
    windows = rng.normal(size=(frames, 16, 4)) * 0.3
    windows[:, 6:10, 0] += sound[:, None]
    landmarks = face(rng, frames)
    landmarks[:, INNER_LIPS, 1] += 8 * sound[:, None]
    torch.manual_seed(0)
    encoder = SpeechEncoder(4, 10)
    targets = mouth_targets(landmarks)
    ids = torch.arange(frames)
    _, correlation = fit_speech_encoder(
        encoder, torch.from_numpy(windows[:train]).float(), targets[:train]
    )
    with torch.no_grad():
        told = encoder(speech_context(torch.from_numpy(windows).float(), ids))[train:, 0]
    held_out = np.corrcoef(told, targets[train:, 0])[0, 1]
    assert held_out > 0.7  # the mouth also moves by itself: 0.87 at best
    assert abs(correlation - held_out) < 0.15


def test_left_out_correlation_is_honest_about_noise() -> None:
    rng = np.random.default_rng(2)
    windows = torch.from_numpy(rng.normal(size=(300, 16, 4))).float()
    _, correlation = fit_speech_encoder(
        SpeechEncoder(4, 10), windows, mouth_targets(face(rng, 300))
    )
    assert abs(correlation) < 0.25
