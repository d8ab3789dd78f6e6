"""Failures of disks, memory, permissions and processes give one sentence and an exit status."""

import ast
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from talker import __main__ as cli
from talker.core import boundary
from talker.core.boundary import explain, use_writable_caches
from talker.core.files import atomic_write
from talker.errors import UserError

PACKAGE = Path(boundary.__file__).parents[1]
UNPRIVILEGED = "-dac_override,-dac_read_search,-fowner,-chown"


def run(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `talker ARGS` in a process of its own, without the special rights of root."""
    command = [sys.executable, "-m", "talker", *map(str, args)]
    if os.getuid() == 0:
        drop = [f"--bounding-set={UNPRIVILEGED}", f"--inh-caps={UNPRIVILEGED}"]
        command = ["setpriv", *drop, *command]
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | options.pop("env", {})
    return subprocess.run(command, capture_output=True, text=True, env=env, **options)


def visible(folder: Path) -> set[str]:
    """Return the names in a folder, without lock files."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left", "a.npy"), r"^a\.npy: no space is left on the disk"),
        (OSError(errno.EDQUOT, "Quota exceeded", "a.npy"), r"^a\.npy: the disk quota is exceeded"),
        (OSError(errno.EROFS, "Read-only", "a"), "^a: this file system is read-only"),
        (PermissionError(errno.EACCES, "denied", "a"), "^a: permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "^too many files are open.*ulimit -n"),
        (OSError(errno.EIO, "I/O error", "a"), "^a: the disk reported"),
        (OSError(errno.ENXIO, "No such device", "a"), "^a: no such device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "^no space is left"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data.pkl"), "df -h"),
        (OSError("800 requested and 56 written"), "could not be written completely"),
        (RuntimeError("Symlink loop from '/a/b'"), "^/a/b: this symbolic link refers to itself"),
        (OSError(errno.ELOOP, "Too many levels", "a"), "^a: this symbolic link refers to itself"),
        (MemoryError(), "this machine has run out of memory"),
        (RuntimeError("can't start new thread"), "this machine has run out of memory"),
        (ModuleNotFoundError("No module named 'gsplat'", name="gsplat"), r"pip install '\.\[cuda"),
        (ModuleNotFoundError("No module named 'cv2'", name="cv2"), "pip install opencv-contrib"),
        (UserError("a.mp4: has no video"), r"^a\.mp4: has no video$"),
    ],
)
def test_a_failure_of_the_machine_is_one_sentence(error: Exception, text: str) -> None:
    explained = explain(error, "render")
    assert explained is not None
    assert re.search(text, explained), explained
    assert "\n" not in explained


def test_the_cause_of_a_library_error_counts() -> None:
    error = RuntimeError("cannot save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left", "a.npz")
    assert "no space is left" in (explain(error) or "")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("mouth"),
        ValueError("shapes (3,) and (4,)"),
        OSError("without a number"),
        ModuleNotFoundError("No module named 'talker.moved'", name="talker.moved"),
    ],
)
def test_a_bug_is_not_explained_away(error: Exception) -> None:
    assert explain(error) is None


def test_memory_errors_of_libraries_are_recognized() -> None:
    import numpy as np
    import torch

    for allocate in (np.empty, torch.empty):
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            allocate(1 << 50)
        assert "this machine has run out of memory" in (explain(raised.value) or ""), raised.value
    message = explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "render")
    assert message is not None
    assert "GPU has run out of memory" in message
    assert "reduce `--batch`" in message
    assert "jobs_per_gpu" in message


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `talker track` in this process with a stage that raises the given exception."""

    def run_stage(error: BaseException) -> Any:
        def main() -> None:
            raise error

        monkeypatch.setattr(cli, "_run", lambda stage, args: main())
        monkeypatch.setattr(sys, "argv", ["talker", "track", "--clip", "my clip.json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code

    return run_stage


def test_a_bug_is_one_line_and_a_file(
    failing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    message = failing(KeyError("mouth"))
    (saved,) = (tmp_path / "logs").iterdir()
    assert message.startswith("talker track: error: unexpected KeyError: 'mouth'. This is a bug")
    assert "\n" not in message
    assert str(saved) in message
    assert "talker info" in message
    report = saved.read_text()
    assert "command: talker track --clip 'my clip.json'" in report
    assert "KeyError: 'mouth'" in report
    assert "Traceback" in report


def test_a_traceback_that_cannot_be_saved_is_printed(
    failing: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(boundary, "_report_folders", lambda: iter([Path("/proc/nowhere")]))
    message = failing(KeyError("mouth"))
    assert "Traceback" in capsys.readouterr().err
    assert message.startswith("talker track: error: unexpected KeyError")


def test_an_interrupted_command_exits_like_one(failing: Any, capsys: Any) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "talker track: Interrupted by the user (SIGINT).\n"


WRITER = """
import sys, time
from pathlib import Path
from talker.core.boundary import boundary
from talker.core.files import atomic_write
with boundary("track"), atomic_write(Path(sys.argv[1])) as (scratch,):
    scratch.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_leaves_nothing(tmp_path: Path, number: int, status: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "a.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, message = process.communicate(timeout=20)
    assert process.returncode == status
    assert message.startswith("talker track: ")
    assert message.count("\n") == 1
    assert visible(tmp_path) == set()


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))


@pytest.mark.parametrize("stage", ["audio", "blink", "layers", "background", "pack"])
def test_a_failed_write_is_one_sentence_and_leaves_nothing(
    dataset: Path, tmp_path: Path, stage: str
) -> None:
    """The kernel refuses to write more than 600 bytes to a file, which acts like a full disk."""
    out = tmp_path / "out"
    given = {"--clip": dataset / "clip.json", "--masks": dataset / "parsing"}
    images, landmarks = (
        {"--images": dataset / "ori_imgs"},
        {"--landmarks": dataset / "landmarks.npz"},
    )
    flags = {
        "audio": {"--source": dataset / "aud.wav", "--wav": out / "a.wav"},
        "blink": {"--clip": given["--clip"], **landmarks, "--au": out / "au.csv"},
        "background": {**given, **images, "--plate": out / "bc.jpg"},
        "layers": {
            **(given | images | {"--plate": dataset / "bc.jpg"}),
            "--truth": out / "gt_imgs",
            "--torso": out / "torso_imgs",
        },
        "pack": {"--data": dataset, "--pack": out / "a.zip"},
    }[stage]
    done = run(
        stage, *(part for flag in flags.items() for part in flag), preexec_fn=_limit_file_size
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"talker {stage}: error: {out}"), done.stderr
    assert "larger than" in last
    assert visible(out) == set()


def test_a_full_disk_is_recognized_behind_any_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(OSError, match="No space left") as raised, atomic_write(tmp_path / "a"):
        raise RuntimeError("encoder failed")
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "a")
    with pytest.raises(UserError, match="bad input"), atomic_write(tmp_path / "a"):
        raise UserError("bad input")


def test_a_read_only_folder_is_one_sentence(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    done = run("audio", "--source", dataset / "aud.wav", "--wav", out / "a.wav")
    out.chmod(0o755)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"talker audio: error: {out}")
    assert "permission denied" in line


def test_a_reader_that_went_away_is_one_sentence() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "talker", "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        message = process.stderr.read()
    assert process.returncode == 1
    assert message == (
        "talker info: error: The program that reads the standard output stopped before all "
        "output was written.\n"
    )


def test_names_that_the_terminal_cannot_show_are_no_failure(tmp_path: Path) -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("audio", "--source", tmp_path / "mé.wav", "--wav", tmp_path / "ü.wav", env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"talker audio: error: {tmp_path}/m")


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.name)
def test_text_files_have_a_named_encoding(file: Path) -> None:
    """Without an encoding argument, the encoding is that of the locale."""
    calls = [
        node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("read_text", "write_text")
    ]
    for call in calls:
        assert "encoding" in {keyword.arg for keyword in call.keywords}, call.lineno


def test_caches_move_out_of_a_home_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_writable_caches()
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path), "a writable folder is kept"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    use_writable_caches()
    private = tmp_path / f"talker-cache-{os.getuid()}"
    assert os.environ["XDG_CACHE_HOME"] == str(private)
    assert private.stat().st_mode & 0o777 == 0o700
    private.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    use_writable_caches()
    assert os.environ["XDG_CACHE_HOME"] != str(private), "others could plant code in it"


def test_a_read_only_package_and_home_work(tmp_path: Path) -> None:
    package = tmp_path / "app" / "talker"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    folders = [package, *(path for path in package.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    env = {"PYTHONPATH": str(package.parent), "HOME": str(package), "TMPDIR": str(tmp_path)}
    code = "from numba import njit; from talker.core.boundary import use_writable_caches;"
    try:
        for prepare, status in (("use_writable_caches();", 0), ("", 1)):
            command = [sys.executable, "-c", f"{code}{prepare}import talker.head.zbuffer"]
            if os.getuid() == 0:
                drop = [f"--bounding-set={UNPRIVILEGED}", f"--inh-caps={UNPRIVILEGED}"]
                command = ["setpriv", *drop, *command]
            done = subprocess.run(
                command, env=os.environ | env, cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == status, done.stderr
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.parametrize("mib", [140, 260])
def test_a_limited_address_space_never_makes_a_command_hang(
    dataset: Path, tmp_path: Path, mib: int
) -> None:
    """OpenBLAS would wait forever for memory, and ignore SIGTERM."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))

    given = ("--clip", dataset / "clip.json", "--landmarks", dataset / "landmarks.npz")
    done = run(
        *("blink", *given, "--au", tmp_path / "au.csv"),
        preexec_fn=limit,
        timeout=120,
        env={"OMP_NUM_THREADS": "2"},
    )
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "this machine has run out of memory" in done.stderr.splitlines()[-1]
        assert not visible(tmp_path)


CRASHING = """
import os, sys
from talker.core.boundary import boundary, watch_for_crashes
watch_for_crashes("parsing")
with boundary("parsing"):
    exec(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("ending", "status", "message"),
    [
        ("os.abort()", 1, r"talker parsing: error: .*SIGABRT.*to 4096 MiB.*ulimit -v unlimited.*"),
        ("os.kill(os.getpid(), 11)", 1, "talker parsing: error: .*SIGSEGV.*"),
        ("raise MemoryError", 1, "talker parsing: error: this machine has run out of memory.*"),
        (
            "import time; time.sleep(0.5); os.kill(os.getppid(), 15); time.sleep(60)",
            143,
            ".*SIGTERM.*",
        ),
        ("os.kill(os.getpid(), 9)", 137, ""),
        ("pass", 0, ""),
    ],
)
def test_a_crash_under_a_limit_of_the_memory_is_one_sentence(
    ending: str, status: int, message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, ending],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == status, done.stderr
    assert re.fullmatch(message, done.stderr.rstrip("\n")), done.stderr


def test_a_gpu_that_torch_cannot_use_stops_the_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    import torch

    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: GTX 1080 (UUID: GPU-a)'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    started = []

    def main(*, avatar: Path) -> None:
        started.append(avatar)

    stage = ModuleType("talker.train")
    stage.main = main  # pyright: ignore[reportAttributeAccessIssue]
    wrapped = cli._exclusive("train", main)
    for built_for, reason in (
        (None, "built without CUDA"),
        ("13.0", "driver that supports CUDA 13.0"),
    ):
        monkeypatch.setattr(torch.version, "cuda", built_for)
        with pytest.raises(UserError, match=reason) as refused:
            wrapped(avatar=tmp_path)
        assert "CUDA_VISIBLE_DEVICES=" in str(refused.value)
        assert "preset `draft`" in str(refused.value)
    assert not started
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    wrapped(avatar=tmp_path)
    assert started == [tmp_path]
