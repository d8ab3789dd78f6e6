"""Numerical kernels for CPU (numba) and GPU (Triton)."""
