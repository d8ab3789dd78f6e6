"""The room behind the synthetic subject: a wall in soft light, out of focus."""

import numpy as np
from scipy.ndimage import gaussian_filter


def make_plate(size: int, seed: int) -> np.ndarray:
    """Paint the background, uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    light = 1.05 - 0.35 * np.hypot(x - 0.3, y - 0.25)
    colour = np.array([176.0, 184.0, 186.0]) * light[..., None]
    grain = gaussian_filter(rng.standard_normal((size, size)), size / 40)
    colour += (4 * grain / grain.std())[..., None]
    return np.clip(colour, 0, 255).astype(np.uint8)
