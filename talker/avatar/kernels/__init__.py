"""Compiled kernels of rendering and training."""
