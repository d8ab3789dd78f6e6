"""Many subjects run on a real Slurm while jobs, Snakemake and the controller are killed."""

import csv
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
import yaml
from slurm import Slurm

ROOT = Path(__file__).parent.parent
SUBJECTS = int(os.environ.get("TALKER_SLURM_SUBJECTS", "20"))
STUCK = 20
"""seconds without a running job"""
CLIPS, SEEDS = 2, 2
GPU_RULES = ("train", "render", "evaluate")

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]


class Study:
    """A folder with a configuration and the clips of its subjects."""

    def __init__(self, folder: Path, clips: list[Path], subjects: dict[str, tuple[int, int]]):
        self.folder = folder
        folder.mkdir()
        rows = [["subject", "video", "train.seed"]]
        for name, (clip, seed) in subjects.items():
            video = folder / f"{clip}.mp4"  # clip.json holds the name of the video
            shutil.copy(clips[clip], video) if clip < len(clips) else video.write_text("no video")
            rows.append([name, video.name, str(seed)])
        lines = "".join("\t".join(row) + "\n" for row in rows)
        (folder / "subjects.tsv").write_text(lines)
        (folder / "config").mkdir()
        shutil.copy(ROOT / "tests/smallest.yaml", folder / "config/config.yaml")

    def command(self, *args: str) -> list[str]:
        workflow = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile")]
        return [*workflow, "--config", "preset=draft", *args]

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        # an empty cache: some jobs compile numba's kernels, at the same time, and others load them
        cache = str(self.folder / "numba")
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "NUMBA_CACHE_DIR": cache,
        }

    def start(self, name: str, *args: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.out", "w", encoding="utf-8") as output:
            return subprocess.Popen(
                self.command(*args),
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.out")))


def until(happened: Callable[[], object], driver: subprocess.Popen[bytes], study: Study) -> None:
    while not happened():
        assert driver.poll() is None, study.said()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seconds of synthetic persons."""
    folder = tmp_path_factory.mktemp("clips")
    videos = [folder / f"{i}.mp4" for i in range(CLIPS)]
    for seed, video in enumerate(videos):
        subprocess.run(
            [
                *(sys.executable, "-m", "talker", "synthesize"),
                *("--speech", ROOT / "demo/speech.wav", "--timings", ROOT / "demo/timings.json"),
                *("--video", video, "--truth", folder / f"{seed}.npz"),
                *("--size", "240", "--frames", "50", "--seed", str(seed)),
            ],
            check=True,
            cwd=ROOT,
        )
    return videos


class Watch(threading.Thread):
    """Record the controller's information about every job, until the cluster ends.

    After its controller was killed, Slurm 22.05 may count the GPUs of finished jobs as allocated
    until it reads its configuration again. If jobs wait and none runs, this class requests that.
    """

    def __init__(self, slurm: Slurm):
        super().__init__(daemon=True)
        self.slurm, self.jobs, self.ended = slurm, {}, threading.Event()

    def run(self) -> None:
        stuck = 0
        while not self.ended.wait(1):
            states = [job["JobState"] for job in self.look()]
            stuck = stuck + 1 if "PENDING" in states and "RUNNING" not in states else 0
            if stuck == STUCK:
                self.slurm.ask("scontrol", "reconfigure")
                stuck = 0

    def look(self) -> list[dict[str, str]]:
        jobs = self.slurm.jobs()
        for job in jobs:
            known = self.jobs.setdefault(job["JobId"], {})
            known.update({key: value for key, value in job.items() if value not in ("", "(null)")})
        return jobs


def journals(folder: Path) -> Iterator[tuple[Path, list[tuple[float, str, str, str]]]]:
    """Every lock of the study and what was noted in it: time, process, event, work."""
    for path in folder.rglob(".*.lock"):
        rows = [line.split() for line in path.read_text().splitlines()]
        if rows:
            yield path, [(float(when), who, event, work) for when, who, event, work in rows]


def content(path: Path) -> list[bytes]:
    """The bytes of a file; of a video only its packets, because its metadata names the subject."""
    if path.suffix != ".mp4":
        return [path.read_bytes()]
    with av.open(path) as video:
        return [bytes(packet) for packet in video.demux()]


OUTPUTS = [
    "data/{}/clip.json",
    "data/{}/aud.wav",
    "data/{}/aud_hama.npy",
    "data/{}/landmarks.npz",
    "data/{}/au.csv",
    "data/{}/transforms_train.json",
    "data/{}/transforms_val.json",
    "data/{}/bc.jpg",
    "data/{}/gt_imgs/49.jpg",
    "data/{}/torso_imgs/49.png",
    "results/{}/avatar/weights.safetensors",
    "results/{}/avatar/point_cloud.ply",
    "results/{}/metrics.json",
    "results/{}/val.mp4",
]


def test_subjects_on_a_cluster_survive_everything(tmp_path: Path, clips: list[Path]) -> None:
    kinds = list(itertools.product(range(CLIPS), range(SEEDS)))
    names = {f"s{i}": kinds[i % len(kinds)] for i in range(SUBJECTS - 1)}
    study = Study(tmp_path / "study", clips, names | {"broken": (CLIPS, 0)})
    # the machine has fewer cores than the nodes claim
    settings = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text("utf-8"))
    wide = [entry.partition("=")[0] for entry in settings["set-threads"]]
    threads = ["--set-threads", *(f"{rule}=1" for rule in (*GPU_RULES, *wide))]
    twins = {kind: f"l{i}" for i, kind in enumerate(sorted(set(names.values())))}
    local = Study(tmp_path / "local", clips, {name: kind for kind, name in twins.items()})
    profile = ["--workflow-profile", str(ROOT / "profiles/batch")]
    driver = local.start("local", "--cores", "2", *profile, *threads)
    assert driver.wait() == 0, local.said()
    arguments = [
        *("--workflow-profile", str(ROOT / "profiles/slurm")),
        *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"),
        *("--default-resources", "slurm_account=me", "slurm_partition=main"),
        *("--set-resources", *(f"{rule}:gpu=1" for rule in GPU_RULES), *threads),
        *("--latency-wait", "10"),
    ]
    (tmp_path / "slurm").mkdir()
    with Slurm(tmp_path / "slurm", nodes=2, gpus=2, cpus=8) as slurm:
        watch = Watch(slurm)
        watch.start()

        def on_gpus() -> list[str]:
            return [
                job["JobId"]
                for job in slurm.jobs()
                if job["JobState"] == "RUNNING" and "gres:gpu" in job.get("TresPerJob", "")
            ]

        def reports() -> int:
            return len(list(study.folder.glob("results/*/report.html")))

        driver = study.start("first", *arguments)
        until(on_gpus, driver, study)
        cancelled = on_gpus()[0]
        slurm.ask("scancel", cancelled)
        until(lambda: "Trying to restart" in study.said(), driver, study)
        until(lambda: reports() >= (SUBJECTS - 1) // 4, driver, study)
        slurm.kill_controller()
        time.sleep(3)
        slurm.start_controller()
        until(lambda: reports() >= (SUBJECTS - 1) // 3 and on_gpus(), driver, study)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        assert study.start("unlock", "--unlock").wait(120) == 0
        driver = study.start("second", *arguments)
        assert driver.wait() == 1, study.said()
        watch.ended.set()
        watch.join()
        watch.look()

    with open(study.folder / "results/batch.tsv", encoding="utf-8", newline="") as file:
        outcome = {row["subject"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert {name for name, row in outcome.items() if row["state"] == "done"} == set(names)
    assert outcome["broken"]["rule"] == "frames"
    assert f"talker frames: error: {CLIPS}.mp4" in outcome["broken"]["reason"]

    # every training had a device of its own; one waited for the job that outlived its Snakemake
    spans: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for job in watch.jobs.values():
        if index := re.search(r"\(IDX:(\d+)\)", job.get("GRES", "")):
            span = (job["StartTime"], job["EndTime"])
            spans.setdefault((job["NodeList"], index[1]), []).append(span)
    assert len(spans) == 4
    for taken in map(sorted, spans.values()):
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(taken)), taken
    for name in names:
        log = (study.folder / f"logs/{name}/train.log").read_text()
        assert re.search(
            r"^Using GPU [01] on .*, as set by CUDA_VISIBLE_DEVICES\.$"
            r"|Another process has already written",
            log,
            re.MULTILINE,
        )

    # the job that was cancelled came again with twice the memory
    before = watch.jobs[cancelled]
    assert before["JobState"] == "CANCELLED"
    memory = int(before["MinMemoryNode"].removesuffix("M"))
    assert any(
        job["Comment"] == before["Comment"] and job["MinMemoryNode"] == f"{2 * memory}M"
        for job in watch.jobs.values()
    )

    # nothing was made twice at the same time
    for path, notes in journals(study.folder):
        running = None
        for _, who, event, _ in notes:
            if event == "start":
                running = who
            else:
                assert who == running, (path, notes)
                running = None

    # the same as on one machine
    for name, kind in names.items():
        for output in OUTPUTS:
            mine = study.folder / output.format(name)
            other = local.folder / output.format(twins[kind])
            assert content(mine) == content(other), mine
