"""Backends of landmarks, parsing and blink: one adapter file for each model."""
