"""talker: one command turns a video of a person talking into an audio-driven 3D Gaussian avatar."""

__version__ = "0.1.0"
