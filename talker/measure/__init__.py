"""Metrics, quality checks, and the figures that show them."""
