"""Compiled kernels of rendering and training, and the constants they share with plain torch."""

TAPS = 11
"""Width in pixels of the Gaussian window of SSIM."""
SIGMA = 1.5
"""Standard deviation in pixels of the Gaussian window of SSIM."""
C1, C2 = 0.01**2, 0.03**2
"""Stabilizers of SSIM for images in 0..1 (Wang et al. 2004)."""
