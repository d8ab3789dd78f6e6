"""gsplat's compilers: the toolkit that fits torch is found, and a missing one has one message."""

import importlib.machinery
import os
from pathlib import Path

import pytest
import torch

from talker.core import compiler
from talker.errors import UserError

NVCC = """#!/bin/sh
[ "$1" = --version ] && { echo 'Cuda compilation tools, release {release}, V{release}.88'; exit 0; }
while [ "$1" != -o ]; do shift; done
{compile}
"""


def toolkit(home: Path, release: str, compile: str = 'touch "$2"') -> Path:
    """Write a CUDA toolkit whose nvcc writes an empty file, or runs another shell command."""
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    nvcc = home / "bin" / "nvcc"
    script = NVCC.replace("{release}", release).replace("{compile}", compile)
    nvcc.write_text(script, encoding="utf-8")
    nvcc.chmod(0o755)
    return home


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with torch for CUDA 13.0, gsplat, and compilers; without any CUDA toolkit."""
    find_spec = compiler.importlib.util.find_spec
    site = tmp_path / "site"
    (site / "gsplat").mkdir(parents=True)
    nvidia = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    nvidia.submodule_search_locations = [str(site / "nvidia")]
    gsplat = importlib.machinery.ModuleSpec("gsplat", None, origin=f"{site}/gsplat/__init__.py")
    fakes = {"nvidia": nvidia, "gsplat": gsplat}
    monkeypatch.setattr(
        compiler.importlib.util, "find_spec", lambda name: fakes.get(name) or find_spec(name)
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("c++", "gcc", "ninja"):
        (tools / name).write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    system = [str(toolkit) for toolkit in compiler.SYSTEM_TOOLKITS]
    assert system == ["/usr/local/cuda"]
    monkeypatch.setattr(compiler, "SYSTEM_TOOLKITS", (tmp_path / "usr" / "local" / "cuda",))
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda name: str(tmp_path / name))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    for name in ("CUDA_HOME", "CUDA_PATH", "CC", "CXX", "LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_first_toolkit_of_the_version_of_torch_is_taken(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = toolkit(machine / "usr" / "local" / "cuda", "13.1")
    assert compiler.cuda_home() == system
    wheels = toolkit(machine / "site" / "nvidia" / "cu13", "13.0")
    assert compiler.cuda_home() == wheels
    monkeypatch.setenv("CUDA_HOME", str(toolkit(machine / "old", "12.8")))
    assert compiler.cuda_home() == wheels
    chosen = toolkit(machine / "own", "13.2")
    monkeypatch.setenv("CUDA_HOME", str(chosen))
    assert compiler.cuda_home() == chosen


def test_the_linker_finds_the_runtime_of_the_wheels(machine: Path) -> None:
    wheels = toolkit(machine / "site" / "nvidia" / "cu13", "13.0")
    library = wheels / "lib" / "libcudart.so.13"
    library.parent.mkdir()
    library.touch()
    before = dict(os.environ)
    with compiler.compilers(wheels):
        link = Path(os.environ["LIBRARY_PATH"], "libcudart.so")
        assert link.resolve() == library
        assert os.environ["CUDA_HOME"] == str(wheels)
        assert os.environ["PATH"].startswith(f"{wheels}/bin:{machine}/scripts:")
    assert dict(os.environ) == before
    assert not link.exists()


def test_a_machine_that_can_compile_passes(machine: Path) -> None:
    toolkit(machine / "site" / "nvidia" / "cu13", "13.0")
    compiler.require_gsplat()


def test_compiled_kernels_need_no_compiler(machine: Path) -> None:
    toolkit(machine / "site" / "nvidia" / "cu13", "13.0", "exit 1")
    with pytest.raises(UserError):
        compiler.require_gsplat()
    (compiler._build_folder() / "gsplat_cuda.so").touch()
    compiler.require_gsplat()


def test_a_gsplat_with_kernels_needs_no_nvcc(machine: Path) -> None:
    (machine / "site" / "gsplat" / "csrc.cpython-311-x86_64-linux-gnu.so").touch()
    compiler.require_gsplat()
    with compiler.gsplat_compilers():
        assert "CUDA_HOME" not in os.environ


def test_no_nvcc(machine: Path) -> None:
    with pytest.raises(UserError, match=r"nvcc was not found\. .*`pip install '\.\[cuda\]'`"):
        compiler.require_gsplat()


def test_nvcc_of_another_version(machine: Path) -> None:
    home = toolkit(machine / "usr" / "local" / "cuda", "12.4")
    with pytest.raises(
        UserError, match=rf"nvcc of CUDA 13\.0, but this machine only has CUDA 12\.4 in {home}\. "
    ):
        compiler.require_gsplat()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tools/c++", r"compiler `c\+\+` was not found.*apt-get install g\+\+"),
        ("tools/gcc", r"compiler `gcc` was not found.*apt-get install g\+\+"),
        ("tools/ninja", "`ninja` was not found.*pip install ninja"),
        ("include/Python.h", r"Python\.h was not found.*python3-dev"),
    ],
)
def test_a_missing_tool(
    machine: Path, monkeypatch: pytest.MonkeyPatch, missing: str, message: str
) -> None:
    toolkit(machine / "site" / "nvidia" / "cu13", "13.0")
    (machine / missing).unlink()
    monkeypatch.setenv("PATH", str(machine / "tools"))
    monkeypatch.setattr(compiler, "_release", lambda home: "13.0")
    with pytest.raises(UserError, match=message):
        compiler.require_gsplat()


def test_a_compiler_that_fails(machine: Path) -> None:
    fail = "echo 'In file included from a.cu:1' >&2; echo 'error: unsupported GNU version!' >&2"
    toolkit(machine / "site" / "nvidia" / "cu13", "13.0", f"{fail}; exit 1")
    with pytest.raises(UserError, match=r"nvcc` failed to compile .*: error: unsupported GNU"):
        compiler.require_gsplat()


def test_gsplat_is_not_installed(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gsplat, .*, is not installed\. Run `pip install"):
        compiler.require_gsplat()
