"""Compiled kernels of rendering and training, and the constants they share with plain torch."""

TAPS = 11
"""Width of the Gaussian window of SSIM, pixels."""
SIGMA = 1.5
"""Standard deviation of the Gaussian window of SSIM, pixels."""
C1, C2 = 0.01**2, 0.03**2
"""Stabilizers of SSIM for images in 0..1 (Wang et al. 2004)."""
