"""Video, audio and image files. Only this package uses PyAV, FFmpeg and OpenCV's BGR order."""
