"""A copy of the workflow with a stand-in for `talker`, and a fast way to run Snakemake in it.

Importing Snakemake takes a second or two. `python fake_workflow.py` imports it once and then forks
a child for every requested run.
"""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
PARTS = ["Snakefile", "rules", "config", "workflow", "profiles", "envs", "demo"]
TALKER = f"""#!{sys.executable} -S
import sys
from pathlib import Path
stage, *args = sys.argv[1:]
if Path("broken").exists() and Path("broken").read_text() in (stage, " ".join(sys.argv[1:4])):
    sys.exit(f"talker {{stage}}: error: no face in any frame")
for path in map(Path, args):
    if "/" in str(path) and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stage) if path.suffix else path.mkdir()
        path.with_name(f".{{path.name}}.lock").write_text("1 host:1 done work\\n")
"""

WRITING_TALKER = f"""#!{sys.executable}
import hashlib, os, sys, time
from pathlib import Path
from talker.core.exclusive import exclusive
from talker.core.files import atomic_write
from talker.core import files as core_files, ownership
from talker.core.ownership import adding_to

def flush_and_list(path, flush=core_files.flush):
    flush(path)
    inodes = [file.stat().st_ino for file in [path, *path.rglob("*")]]
    with open("flushed", "a") as log:
        log.writelines(f"{{inode}}\\n" for inode in inodes)

core_files.flush = ownership.flush = flush_and_list
OUTPUTS = {{
    "synthesize": "video truth", "frames": "clip images", "audio": "wav train novel",
    "speech": "features statistics", "landmarks": "landmarks", "parsing": "masks", "blink": "au",
    "shots": "shots", "fit": "fit", "track": "params train val report", "overlay": "video",
    "background": "plate", "layers": "truth torso",
    "verify": "verified", "lipsync": "lipsync", "check": "quality",
    "train": "avatar", "render": "video", "evaluate": "metrics",
    "report": "html", "adopt": "clip",
}}
stage, *words = sys.argv[1:]
given = {{k: Path(v) for k, v in zip(words[::2], words[1::2]) if k.startswith("--")}}
roles = [f"--{{role}}" for role in OUTPUTS[stage].split()]
if "/novel/" in str(given.get("--features")):
    roles.remove("--statistics")  # those of the subject, which new speech only reads
targets = [given[role] for role in roles if role in given]
digest = hashlib.sha256()
for path in given.values():
    if path not in targets and path.is_file():
        digest.update(path.read_bytes())
with exclusive(targets, stage) as needed:
    if needed:
        with atomic_write(*targets) as scratch:
            for path, target in zip(scratch, targets):
                files = [path]
                if not target.suffix:
                    path.mkdir()
                    files = [path / f"{{i}}.png" for i in range(3)]
                for file in files:
                    with open(file, "w") as half:
                        for _ in range(4):
                            half.write(digest.hexdigest())
                            half.flush()
                            time.sleep(0.01)
        if stage == "landmarks":
            with adding_to(given["--images"]) as folder:
                (folder / "0.lms").write_text(digest.hexdigest())
"""
"""A stage that writes slowly, with the locks of the real stages. It lists the inode numbers of the
files that it has flushed to the disk in the file `flushed`."""


@dataclass(frozen=True)
class Run:
    returncode: int
    output: str


class Workflow:
    """A copy of the workflow and of the package in a separate folder."""

    def __init__(self, folder: Path, talker: str = TALKER):
        self.folder = folder
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        config = folder / "config" / "config.yaml"  # tests of new speech add their own
        config.write_text(config.read_text().replace("sample_speech: true", "sample_speech: false"))
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "talker", folder / "talker", ignore=ignore)
        (folder / "bin").mkdir()
        (folder / "bin" / "talker").write_text(talker)
        (folder / "bin" / "talker").chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
        }

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--cores", "2", *args]

    def snakemake(self, *args: str, cwd: Path | None = None) -> Run:
        """Run Snakemake in the folder, on two cores, with or without a GPU."""
        folder = str(cwd or self.folder)
        return _served(["--cores", "2", *args], folder, self.environment)

    def run(self, *args: str) -> str:
        """Run Snakemake and return its output; it must succeed."""
        done = self.snakemake(*args)
        assert done.returncode == 0, done.output
        return done.output

    def refuse(self, *args: str) -> str:
        """Run Snakemake and return its output; it must fail."""
        done = self.snakemake(*args)
        assert done.returncode != 0, done.output
        return done.output

    def planned(self, *args: str) -> set[str]:
        """Return the names of the rules that would run now, without `all`."""
        rows = re.findall(r"^(\w+) +\d+$", self.run("-n", *args), flags=re.MULTILINE)
        return set(rows) - {"all", "total"}


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server


def _served(args: list[str], folder: str, environment: dict[str, str]) -> Run:
    server = _server()
    assert server.stdin and server.stdout
    request = {"args": args, "folder": folder, "environment": environment}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Run(**json.loads(server.stdout.readline()))


def _serve() -> None:
    """Answer the requests on stdin, one per line."""
    import snakemake.cli
    import snakemake.executors.touch

    # `--touch` sleeps for each job
    snakemake.executors.touch.time = SimpleNamespace(sleep=lambda seconds: None)  # type: ignore
    sys.path.pop(0)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        with tempfile.TemporaryFile() as output:
            pid = os.fork()
            if pid == 0:
                for stream, descriptor in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1)):
                    os.dup2(stream if isinstance(stream, int) else stream.fileno(), descriptor)
                os.dup2(1, 2)
                os.chdir(request["folder"])
                os.environ.update(request["environment"])
                sys.path[:0] = request["environment"]["PYTHONPATH"].split(os.pathsep)
                sys.argv = ["snakemake", *request["args"]]
                snakemake.cli.main(request["args"])
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            output.seek(0)
            text = output.read().decode(errors="replace")
        print(json.dumps({"returncode": status, "output": text}), flush=True)


if __name__ == "__main__":
    _serve()
