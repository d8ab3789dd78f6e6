"""Checks at the start of a run that stop it before the first job, not after hours."""

import shutil
from types import SimpleNamespace

import av


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
    """Stop if videos next to the real frames are wanted, but ffmpeg-python is not installed here.

    Where torch is not installed either, the jobs run in another environment.
    """
    if "side_by_side" in (config.get("extras") or []) and importlib.util.find_spec("torch"):
        if not workflow.non_local_exec and not importlib.util.find_spec("ffmpeg"):
            raise WorkflowError(
                "config: extras: 'side_by_side' needs the package ffmpeg-python; run "
                "`pip install '.[ffmpeg]'`"
            )


def warn_without_gpu(jobs):
    """Warn if jobs intended for a GPU are about to run on a CPU."""
    if workflow.non_local_exec or not any(job.resources.get("gpu") for job in jobs):
        return
    if not shutil.which("nvidia-smi"):
        logger.warning(
            f"Preset '{PRESET}' is intended for an NVIDIA GPU, but nvidia-smi was not found here. "
            "On a CPU, its training takes days. With `--config preset=draft`, it takes minutes."
        )


# Seconds by which the length in the header of a file may differ from that of its frames.
LENGTH_TOLERANCE = 0.1


def fault_of_video(file, min_seconds):
    """Return why a video cannot be used, or None; `frames` reports the faults of damaged files."""
    try:
        with av.open(file) as container:
            seconds = (container.duration or 0) / av.time_base
            if not container.streams.audio:
                return "it has no sound, but training needs a video with speech"
            if 0 < seconds < min_seconds - LENGTH_TOLERANCE:
                return (
                    f"it is {seconds:.1f} s long, but at least {min_seconds:g} s are required "
                    "(set by the option `check: {limits: {min_seconds: ...}}`)"
                )
    except (av.FFmpegError, OSError):
        pass
    return None


def require_usable_videos(jobs):
    """Stop, and list the videos, if videos without frames are too short or have no sound."""
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
