"""Constants that the kernels share with their plain torch twins."""

TAPS, SIGMA = 11, 1.5
"""Width and standard deviation of the Gaussian window of SSIM, pixels."""
C1, C2 = 0.01**2, 0.03**2
"""Stabilizers of SSIM for images in 0..1 (Wang et al. 2004)."""
LEVELS = 4
"""Levels of the Laplacian pyramid."""
