"""The clean plate of the synthetic clip: a room without the person, out of focus."""

import numpy as np
from scipy.ndimage import gaussian_filter

WALL = (171, 174, 170)
FURNITURE = (  # x0, y0, x1, y1 as fractions of the image size, RGB
    (-0.10, -0.10, 0.13, 0.62, (224, 231, 236)),  # window
    (-0.10, 0.62, 0.14, 0.66, (150, 140, 128)),  # sill
    (0.085, -0.10, 0.10, 0.62, (190, 188, 182)),
    (0.80, 0.10, 1.10, 0.125, (112, 92, 76)),  # shelves
    (0.80, 0.36, 1.10, 0.385, (112, 92, 76)),
    (0.83, -0.02, 0.86, 0.10, (122, 84, 72)),  # books
    (0.865, 0.01, 0.90, 0.10, (92, 108, 120)),
    (0.905, -0.01, 0.93, 0.10, (176, 152, 104)),
    (0.85, 0.24, 0.93, 0.36, (104, 126, 98)),
    (0.95, 0.22, 0.99, 0.36, (160, 146, 130)),
)


def make_plate(size: int, seed: int) -> np.ndarray:
    """Return the background image, uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    scene = np.tile(np.array(WALL, float), (size, size, 1))
    scene *= (1.08 - 0.24 * x - 0.10 * y)[..., None]
    for x0, y0, x1, y1, color in FURNITURE:
        scene[(x >= x0) & (x < x1) & (y >= y0) & (y < y1)] = color
    blur = size / 45
    scene = gaussian_filter(scene, (blur, blur, 0), mode="nearest")
    grain = gaussian_filter(rng.standard_normal((size, size)), size / 16)
    scene += (1.5 * grain / grain.std())[..., None]
    return np.clip(np.round(scene), 0, 255).astype(np.uint8)
