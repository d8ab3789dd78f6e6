"""Print the versions and the hardware to include in a bug report."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from talker import __version__
from talker.core.config import validated
from talker.core.gpu import visible_gpus
from talker.core.parallel import usable_cores

PACKAGES = (
    *("torch", "numpy", "numba", "opencv-contrib-python", "av", "mediapipe", "onnx", "hama"),
    *("snakemake", "gsplat", "cuda-core", "triton", "transformers"),
)
"""Packages whose versions are listed."""
GIB = 1 << 30
"""Bytes of a GiB."""


@validated
class Config:
    """How to print the information."""

    json: bool = False
    """Print JSON instead of `name: value` lines."""


def main(config: Config = Config()) -> None:
    """Print what a bug report needs: versions of packages, GPU, memory, CPU cores and disk space.

    Args:
        config: Options.
    """
    facts = collect()
    if config.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(f"{name}: {value}" for name, value in facts.items()))


def collect() -> dict[str, str]:
    """Return {name: value} as text; if something is missing, its value says so."""
    return {
        "talker": f"{__version__} in {Path(__file__).parent}",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        "memory": _memory(),
        "disk": _disk(Path.cwd()),
        "temporary files": _disk(_temporary_folder()),
        "encoding of file names": sys.getfilesystemencoding(),
        "gpu": _gpus(),
        "visible gpus": ", ".join(visible_gpus()) or "none",
        "cuda": _cuda(),
        "ffmpeg": _ffmpeg(),
    } | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES")
    return f"{pages * size / GIB:.1f} GiB, {free * size / GIB:.1f} GiB free"


def _temporary_folder() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


def _disk(folder: Path | None) -> str:
    if folder is None:
        return "no writable folder"
    usage = shutil.disk_usage(folder)
    access = "writable" if os.access(folder, os.W_OK) else "read-only"
    return f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {folder} ({access})"


def _gpus() -> str:
    """Return the names, memory sizes and driver of the GPUs that the driver lists."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except OSError:
        return "nvidia-smi is not installed"
    except subprocess.TimeoutExpired:
        return "nvidia-smi does not answer"
    lines = (listed.stdout or listed.stderr).strip().splitlines()
    return "; ".join(lines) or "nvidia-smi lists no GPU"


def _cuda() -> str:
    """Return the CUDA version of torch, and whether torch can use it."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({error})"
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    state = "usable" if torch.cuda.is_available() else "not usable"
    return f"torch was built for CUDA {torch.version.cuda}, {state}"


def _ffmpeg() -> str:
    """Return the version of the ffmpeg libraries inside PyAV, which decode and encode all media."""
    try:
        import av
    except ImportError as error:
        return f"av cannot be imported ({error})"
    versions = {name: ".".join(map(str, v)) for name, v in av.library_versions.items()}
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
