"""Metrics, quality gates and the figures that show them."""
