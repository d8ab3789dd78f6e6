"""Checks at the start of a run that stop it before the first job, not after hours."""

import shutil
from types import SimpleNamespace

import av

from talker.media.container import MAX_PIXELS, MAX_SECONDS

DATASET_BYTES_PER_SECOND = 6e6
"""Disk space that the dataset of a second of video takes, with frames of 512 x 512 pixels."""


def require_known_targets():
    """Stop if a target on the command line names a subject or a speech that does not exist."""
    for target in map(Path, sys.argv[1:]):
        folder, subject, *rest = *target.parts, "", ""
        if Path(folder) in (DATA, RESULTS) and subject and not target.exists():
            name = Path(rest[1]).stem if len(rest) > 1 else ""
            video_of(SimpleNamespace(subject=subject))
            if rest[:1] == ["novel"] and name:
                speech_of(SimpleNamespace(subject=subject, name=name))


def require_ffmpeg_for_extras():
    """Stop if side-by-side videos are requested, but ffmpeg-python is not installed here.

    Where torch is not installed either, the jobs run in another environment.
    """
    if "side_by_side" in (config.get("extras") or []) and importlib.util.find_spec("torch"):
        if not workflow.non_local_exec and not importlib.util.find_spec("ffmpeg"):
            raise WorkflowError(
                "config: extras: 'side_by_side' needs the package ffmpeg-python. Run "
                "`pip install '.[ffmpeg]'`"
            )


def require_gpu_for_preset(jobs):
    """Stop if jobs intended for a GPU are about to train on a CPU, unless the options say so."""
    training = [job for job in jobs if job.rule.name == "train" and job.resources.get("gpu")]
    if workflow.non_local_exec or shutil.which("nvidia-smi"):
        return
    for job in training:
        subject = subject_with_overrides(job.wildcards.subject)
        if options_of("train", subject).get("device") != "cpu":
            raise WorkflowError(
                f"Preset '{PRESET}' requires an NVIDIA GPU, but nvidia-smi was not found here. "
                "Use the preset 'draft', which takes minutes on a CPU. To train on the CPU anyway, "
                "which takes days, set the option `train: {device: cpu}`."
            )


def require_disk_space(jobs):
    """Stop if the datasets that are about to be made do not fit on the disk."""
    needed = 0
    for job in jobs:
        if job.rule.name == "frames" and LOCAL and Path(job.input.video).exists():
            options = options_of("frames", subject_with_overrides(job.wildcards.subject))
            scale = (options.get("size", 512) / 512) ** 2
            needed += DATASET_BYTES_PER_SECOND * scale * seconds_of_video(job.input.video)
    folder = next(path for path in (DATA, *DATA.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WorkflowError(
            f"The datasets need about {needed / 1e9:.1f} GB, but {folder.resolve()} has only "
            f"{free / 1e9:.1f} GB of free space. Free some space, or use a folder on another disk."
        )


def seconds_of_video(file):
    """Return the duration of a video in seconds; 0 if it is unknown."""
    try:
        with av.open(file) as container:
            return (container.duration or 0) / av.time_base
    except (av.FFmpegError, OSError):
        return 0


# Seconds by which the length in the header of a file may differ from that of its frames.
LENGTH_TOLERANCE = 0.1


def fault_of_video(file, min_seconds):
    """Return why a video cannot be used, or None; `frames` reports the faults of damaged files."""
    try:
        with av.open(file) as container:
            seconds = (container.duration or 0) / av.time_base
            if not container.streams.audio:
                return "it has no audio, but training needs a video with speech"
            if not container.streams.video:
                return "it has no video stream"
            width, height = (getattr(container.streams.video[0], k) for k in ("width", "height"))
            if width * height > MAX_PIXELS:
                return f"its frames of {width} x {height} pixels are larger than 8K"
            if seconds > MAX_SECONDS:
                return f"it is longer than {MAX_SECONDS // 3600} hours"
            if 0 < seconds < min_seconds - LENGTH_TOLERANCE:
                return (
                    f"it is {seconds:.1f} s long, but at least {min_seconds:g} s are required "
                    "(set by the option `check: {limits: {min_seconds: ...}}`)"
                )
    except (av.FFmpegError, OSError):
        pass
    return None


def require_usable_videos(jobs):
    """Stop, and list the videos that cannot be used and whose frames do not exist yet."""
    faults = []
    for job in jobs:
        if job.rule.name != "frames" or not LOCAL:
            continue
        options = options_of("check", subject_with_overrides(job.wildcards.subject))
        schema = CONFIG_SCHEMA["properties"]["options"]["properties"]["check"]["properties"]
        default = schema["limits"]["properties"]["min_seconds"]["default"]
        min_seconds = options.get("limits", {}).get("min_seconds", default)
        video = job.input.video
        fault = None if options.get("force") else fault_of_video(video, min_seconds)
        if fault:
            faults.append(f"{job.wildcards.subject}: {video}: {fault}")
    if faults:
        raise WorkflowError("\n".join(faults))
