"""Find the compilers for the CUDA kernels of gsplat, which are compiled at first use.

nvcc comes from an installed CUDA toolkit, or from the wheels that `pip install '.[cuda]'` installs
next to torch, so that a machine needs no more than a driver and a C++ compiler.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from talker.core.files import file_lock
from talker.errors import UserError

EXTENSION = "gsplat_cuda"
"""Name under which gsplat compiles its kernels into torch's folder of extensions."""
TRIAL = """
#include <Python.h>
#include <cuda/std/version>
__global__ void kernel() {}
void launch() { kernel<<<1, 1>>>(); }
"""
"""Source of a small extension that needs the same compilers and headers as gsplat."""
SYSTEM_TOOLKITS = (Path("/usr/local/cuda"),)
"""Folders where installers of CUDA toolkits put them."""
INSTALL_NVCC = "Run `pip install '.[cuda]'` in the folder of the project to install nvcc"
"""How to get nvcc without a CUDA toolkit."""


def require_gsplat() -> None:
    """Check that gsplat's kernels are compiled, or can be compiled on this machine.

    Call it only if torch can use a GPU.

    Raises:
        UserError: gsplat is not installed, a compiler is missing or too old, or nvcc belongs to
            another major version of CUDA than torch.
    """
    gsplat = importlib.util.find_spec("gsplat")
    if gsplat is None or gsplat.origin is None:
        raise UserError(
            "This machine has a GPU, but gsplat, which renders on it, is not installed. Run "
            "`pip install '.[cuda]'` in the folder of the project."
        )
    if _is_precompiled(Path(gsplat.origin).parent):
        return
    home = cuda_home()
    if _is_built():
        return
    missing = _missing_tool()
    if missing:
        raise UserError(f"gsplat compiles its CUDA kernels on first use, but {missing}.")
    _try_to_compile(home)


@contextmanager
def gsplat_compilers() -> Iterator[None]:
    """Let gsplat compile its kernels while the block imports them, in one process at a time.

    Raises:
        UserError: there is no nvcc that fits torch.
    """
    gsplat = importlib.util.find_spec("gsplat")
    if gsplat and gsplat.origin and _is_precompiled(Path(gsplat.origin).parent):
        yield
        return
    with compilers(cuda_home()), file_lock(_build_folder()):
        yield


def cuda_home() -> Path:
    """Return the folder of the CUDA toolkit that fits torch; its compiler is `bin/nvcc`.

    The first toolkit of the same major version is taken, in this order: CUDA_HOME, CUDA_PATH, the
    wheels, nvcc on the PATH, /usr/local/cuda.

    Raises:
        UserError: there is no nvcc of the required major version of CUDA.
    """
    import torch  # takes seconds

    expected = str(torch.version.cuda)
    others = {}
    for home in _toolkits(expected.partition(".")[0]):
        release = _release(home)
        if release and release.partition(".")[0] == expected.partition(".")[0]:
            return home
        if release:
            others[home] = release
    if not others:
        raise UserError(
            "gsplat compiles its CUDA kernels on first use, but the CUDA compiler nvcc was not "
            "found. CUDA_HOME, the installed wheels, the PATH and /usr/local/cuda were searched. "
            f"{INSTALL_NVCC}."
        )
    installed = ", ".join(f"CUDA {release} in {home}" for home, release in others.items())
    raise UserError(
        f"gsplat compiles its CUDA kernels on first use. For torch {torch.__version__}, it needs "
        f"nvcc of CUDA {expected}, but this machine only has {installed}. {INSTALL_NVCC}."
    )


@contextmanager
def compilers(home: Path) -> Iterator[None]:
    """Let torch compile CUDA extensions with the toolkit in `home` while the block runs."""
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory(prefix="talker-cuda-") as links:
        # The wheels contain libcudart.so.13, but not libcudart.so, which the linker looks for.
        for library in sorted(home.glob("lib/libcudart.so.*"))[-1:]:
            Path(links, "libcudart.so").symlink_to(library)
        changes = {
            "CUDA_HOME": str(home),
            "PATH": _search_path(home),
            "LIBRARY_PATH": os.pathsep.join(filter(None, [links, os.environ.get("LIBRARY_PATH")])),
        }
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        cpp_extension.CUDA_HOME = str(home)  # read from the environment when torch was imported
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _build_folder() -> Path:
    """Return the folder into which torch compiles gsplat's kernels for this Python and CUDA."""
    from torch.utils import cpp_extension

    return Path(cpp_extension._get_build_directory(EXTENSION, verbose=False))


def _is_built() -> bool:
    with suppress(OSError):  # no folder is writable
        return (_build_folder() / f"{EXTENSION}.so").exists()
    return False


def _is_precompiled(package: Path) -> bool:
    """Return whether the installed gsplat contains its kernels, as the wheels on its site do."""
    return any(package.glob("csrc*.so"))


def _missing_tool() -> str | None:
    """Return which tool is missing besides nvcc, and how to install it; None if all are there."""
    for variable, name in {"CXX": "c++", "CC": "gcc"}.items():
        compiler = os.environ.get(variable) or name
        if not shutil.which(compiler):
            return (
                f"the C++ compiler `{compiler}` was not found. Install one, for example with "
                "`apt-get install g++`"
            )
    if not shutil.which("ninja", path=_search_path()):
        return "`ninja` was not found. Install it with `pip install ninja`"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return (
            f"Python's header {header} was not found. Install it, for example with "
            "`apt-get install python3-dev`"
        )
    return None


def _toolkits(major: str) -> Iterator[Path]:
    """Yield the folders that may contain `bin/nvcc`."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    wheels = importlib.util.find_spec("nvidia")
    for folder in (wheels and wheels.submodule_search_locations) or []:
        yield Path(folder, f"cu{major}")
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield Path(nvcc).parent.parent
    yield from SYSTEM_TOOLKITS


def _release(home: Path) -> str | None:
    """Return the version of the CUDA toolkit in `home`, such as "13.0"; None if it has no nvcc."""
    nvcc = home / "bin" / "nvcc"
    if not (home / "include" / "cuda_runtime.h").exists():
        return None
    try:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    return release[1] if release else None


def _search_path(home: Path | None = None) -> str:
    """Return the PATH, with nvcc and with the programs of this Python, such as ninja."""
    folders = [home and str(home / "bin"), sysconfig.get_path("scripts"), os.environ.get("PATH")]
    return os.pathsep.join(filter(None, folders))


def _try_to_compile(home: Path) -> None:
    """Compile and link a small extension.

    Raises:
        UserError: a compiler failed; the message contains the compiler's message.
    """
    with tempfile.TemporaryDirectory(prefix="talker-nvcc-") as folder, compilers(home):
        source = Path(folder, "trial.cu")
        source.write_text(TRIAL, encoding="utf-8")
        nvcc = [home / "bin" / "nvcc", "-c", "-Xcompiler=-fPIC", source, "-o", f"{folder}/trial.o"]
        headers = [f"-I{sysconfig.get_path('include')}"]
        ccbin = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []
        cxx = [os.environ.get("CXX") or "c++", "-shared", f"{folder}/trial.o"]
        libraries = [f"-L{home / name}" for name in ("lib64", "lib")] + ["-lcudart"]
        for command in (nvcc + headers + ccbin, [*cxx, *libraries, "-o", f"{folder}/trial.so"]):
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode:
                lines = (answer.stderr + answer.stdout).strip().splitlines()
                reason = next((line for line in lines if "error" in line), (lines or ["?"])[0])
                raise UserError(
                    f"gsplat compiles its CUDA kernels on first use, but `{command[0]}` failed to "
                    f"compile a small program: {reason.strip()}"
                )
