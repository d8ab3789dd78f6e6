"""A head of random colors that turns back and forth: a dataset in memory for benchmarks."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from talker.avatar.gaussians import initial_gaussians, sample_surface, to_view
from talker.avatar.rasterize import Splats, rasterize
from talker.dataset import Dataset
from talker.head.camera import intrinsics, project, viewmats_from_pose
from talker.head.dense import head_surface
from talker.head.morphable import MorphableHead

FRAMES = 64
"""Length of the clip in frames."""
FOCAL = 2.4
"""Focal length of the camera in image sizes."""
DISTANCE = 7.5
"""Distance of the head from the camera in dm; the head then covers about a third of the image."""
POINTS = 50_000
"""Number of Gaussians that the images are rendered from."""
GRAY = 128
"""Value of the background, 0..255."""
SPEECH_FEATURES = 32
"""Channels of the random speech windows."""


@dataclass(frozen=True)
class RandomHead(Dataset):
    """A dataset whose images are in memory."""

    frames_rgb: np.ndarray
    """uint8 [T, H, W, 3]"""
    masks: np.ndarray
    """uint8 [T, H, W]"""

    def frame(self, i: int) -> np.ndarray:
        return self.frames_rgb[i]

    def background(self, i: int) -> np.ndarray:
        return np.full((self.height, self.width, 3), GRAY, np.uint8)

    def head_mask(self, i: int) -> np.ndarray:
        return self.masks[i]


def random_head(size: int, device: torch.device) -> RandomHead:
    """Render the dataset on `device`, with images of `size` x `size` pixels."""
    rng = np.random.default_rng(0)
    head = MorphableHead.load()
    vertices, faces = head_surface(head, head.vertices)
    swing = np.sin(np.linspace(0, 2 * np.pi, FRAMES, endpoint=False))
    euler = np.stack([0.05 * swing, 0.2 * swing, 0 * swing], axis=1)
    trans = np.tile([0.0, 0.0, -DISTANCE], (FRAMES, 1))
    viewmats = viewmats_from_pose(euler, trans).astype(np.float32)
    K = intrinsics(FOCAL * size, size, size).astype(np.float32)
    masks = np.zeros((FRAMES, size, size), np.uint8)
    for mask, points in zip(masks, project(vertices, viewmats, K), strict=True):
        cv2.fillConvexPoly(mask, cv2.convexHull(points.round().astype(np.int32)), (255,))
    points = sample_surface(vertices, faces, POINTS, rng)
    gaussians = initial_gaussians(points, rng.random((POINTS, 3)), 0)
    frames = np.empty((FRAMES, size, size, 3), np.uint8)
    for frame, viewmat in zip(frames, torch.from_numpy(viewmats), strict=True):
        splats = to_view(gaussians, gaussians.means, viewmat[None])
        view = viewmat[None].to(device), torch.from_numpy(K)[None].to(device)
        rendered = rasterize(Splats(*(part.to(device) for part in splats)), *view, size, size)
        colors = 255 * rendered.rgb[0] + GRAY * (1 - rendered.alpha[0])
        frame[:] = colors.clamp(0, 255).round().byte().cpu()
    landmarks = project(head.landmarks(head.vertices)[:68], viewmats, K)
    return RandomHead(
        folder=Path("random-head"),
        height=size,
        width=size,
        original_size=(size, size),
        valid=np.ones(FRAMES, bool),
        viewmats=viewmats,
        K=K,
        speech=rng.normal(size=(FRAMES, 16, SPEECH_FEATURES)).astype(np.float32),
        silence=None,
        speech_scale=None,
        eye=rng.random((FRAMES, 2)).astype(np.float32),
        landmarks=landmarks.astype(np.float32),
        expression=rng.normal(size=(FRAMES, 16)).astype(np.float32),
        vertices=vertices,
        faces=faces.astype(np.int64),
        train_ids=np.arange(FRAMES),
        val_ids=np.arange(0),
        frames_rgb=frames,
        masks=masks,
    )
