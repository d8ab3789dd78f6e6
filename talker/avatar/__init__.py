"""The avatar: canonical Gaussians on a tri-plane, deformed by speech and rasterized."""
