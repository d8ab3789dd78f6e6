"""Video, audio and image files: the only place that knows BGR, ffmpeg and PyAV."""
