"""`talker run`: one command from a video to the results, in any folder."""

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from fake_workflow import TALKER
from published import publish
from rich.console import Console

from talker.core.boundary import explain
from talker.core.progress import read_progress
from talker.errors import UserError
from talker.media import espeak
from talker.tools import run, summary
from talker.tools.run import Config
from talker.tools.screen import Screen, duration, earlier_times, plain_error

VERDICT = (
    '{"verdict": {"grade": "usable", "reasons": ["The mouth is late."], "advice": ["Shift."]},'
    ' "held_out": {}}'
)
WITH_VERDICT = (
    TALKER
    + f"""
if stage == "evaluate":
    Path(args[args.index("--metrics") + 1]).write_text({VERDICT!r})
if stage == "check":
    print("warning: few blinks")
if stage == "train":
    Path("options_of_training").write_text(" ".join(args))
"""
)
"""A `talker` for the jobs that only creates its outputs, and writes a verdict."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with an executable `talker` for the jobs in its subfolder `bin`."""
    (tmp_path / "bin").mkdir()
    job = tmp_path / "bin" / "talker"
    job.write_text(WITH_VERDICT)
    job.chmod(0o755)
    return tmp_path


def start(folder: Path, *args: str) -> "subprocess.Popen[str]":
    """Start `talker ARGS` in a folder, with its stand-in for the jobs."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "talker", *args],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_video_with_a_difficult_name_says_a_file_with_a_difficult_name(folder: Path):
    video, speech = folder / 'it\'s #1: a $HOME "ü".mp4', folder / "hello: #2 'x'.wav"
    video.touch()
    speech.touch()
    (folder / "mine.yaml").write_text("options: {train: {gaussians: 7}}")
    options = ["--say", speech.name, "--preset", "draft", "--configfile", "mine.yaml"]
    options += ["--status", "status.json"]
    process = start(folder, "run", video.name, *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    name = "it_s_1_a_HOME_ü_"
    for line in (
        f"New speech:    results/{name}/novel/hello_2_x_.mp4",
        f"Held-out part: results/{name}/val.mp4",
        f"Report:        results/{name}/report.html",
        "Verdict:       usable. The mouth is late.",
        "Advice:        Shift.",
        f"warning: {name}: few blinks",
    ):
        assert f"\n{line}\n" in f"\n{out}\n"
    assert out.count("\n") <= 30, out
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished" and status["done"] == status["total"] > 10
    assert len(status["lines"]) > status["total"] and not status["running"]
    assert "SNAKEMAKE" not in out + err
    assert "--gaussians=7" in (folder / "options_of_training").read_text()
    assert (folder / "data" / name / "source.txt").read_text().startswith(video.name + "\n")


def test_a_failed_stage_is_one_sentence_and_its_log(folder: Path):
    (folder / "me.mp4").touch()
    (folder / "results" / "out").mkdir(parents=True)
    (folder / "results" / "out" / "broken").write_text("landmarks")
    options = ["--out", "results/out", "--status", "status.json"]
    process = start(folder, "run", "me.mp4", *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert any("no face in any frame" in text for text in status["errors"])
    assert "failed: me: detecting the face mesh and 68 landmarks in every frame" in out
    assert "logs/me/landmarks.log: talker landmarks: error: no face in any frame" in err
    assert "Traceback" not in out + err
    assert "Error in rule" not in out + err


def test_a_killed_stage_is_explained(folder: Path):
    """The kernel kills a stage if the memory is exhausted, so its log has no message."""
    (folder / "me.mp4").touch()
    job = folder / "bin" / "talker"
    job.write_text(
        TALKER.replace(
            "import sys",
            'import os, sys; "landmarks" in sys.argv[1:2] and os.kill(os.getpid(), 9)',
            1,
        )
    )
    out, err = start(folder, "run", "me.mp4").communicate(timeout=120)
    assert "failed: me: detecting the face mesh and 68 landmarks in every frame" in out
    assert (
        "\nlogs/me/landmarks.log: killed before it could report an error, probably because the "
        "memory was exhausted. Stop other programs" in err
    )
    assert "Traceback" not in out + err


def test_several_videos_are_run_and_a_failure_stops_only_its_own(folder: Path):
    names = [f"p{number}" for number in range(30)]
    for name in ("good", "bad", *names):
        (folder / f"{name}.mp4").touch()
    # the shell expands a pattern only if it is not quoted
    out, _ = start(folder, "run", "*.mp4", "--dry-run").communicate(timeout=120)
    assert f" {len(names) + 2} train," in " ".join(out.split())
    assert out.count("\n") < 20
    (folder / "broken").write_text("landmarks --clip data/bad/clip.json")
    process = start(folder, "run", "good.mp4", "bad.mp4", "--snakemake=--retries 0")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "warning: good: few blinks" in out
    assert "good  usable              results/good/report.html\n" in out
    assert "bad   failed              landmarks: talker landmarks: error: no face in any" in out
    assert out.endswith("All subjects: results/index.html\n")
    assert "logs/bad/landmarks.log: talker landmarks: error: no face in any frame" in err
    assert out.count("\n") < 20


def test_ctrl_c_says_how_to_go_on(folder: Path):
    (folder / "me.mp4").touch()
    job = folder / "bin" / "talker"
    job.write_text(TALKER.replace("import sys", "import sys, time; time.sleep(60)", 1))
    process = start(folder, "run", "me.mp4")
    logs = folder / "logs" / "me"
    deadline = time.monotonic() + 60
    while not list(logs.rglob("*.log")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert err.endswith(run.INTERRUPTED + "\n")
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("reaction", "signals"),
    [
        ("""print('{"event": "job_info"}', flush=True)""", 2),
        ("""print('{"event": "job_finished"}', flush=True)""", 1),
    ],
    ids=["lost, so that another stage starts", "stopping"],
)
def test_stages_that_start_after_ctrl_c_are_interrupted_too(
    monkeypatch: pytest.MonkeyPatch, reaction: str, signals: int
):
    """Here, Snakemake waits for 1.5 s after the first SIGINT, and stops after the second one."""
    monkeypatch.setattr(run, "SECONDS_TO_REACT", 0.3)
    program = f"""
import signal, sys, time
received = []
def receive(*_):
    received.append(1)
    {reaction}
signal.signal(signal.SIGINT, receive)
print("{{}}", flush=True)
end = time.monotonic() + 1.5
while not received or (len(received) < 2 and time.monotonic() < end):
    time.sleep(0.01)
sys.exit(len(received))
"""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None
    process.stdout.readline()
    lines: run.Lines = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()])
    reader.start()
    run._stop(process, lines)
    reader.join()
    assert process.returncode == signals


def test_a_run_in_the_background_can_be_stopped():
    """A shell ignores SIGINT there, but stages are stopped with it after SIGTERM."""
    program = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status, _ = run._run_snakemake([sys.executable, "-c", program], Config(verbose=True), ["a"])
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 0


def test_a_stage_that_lost_ctrl_c_is_interrupted_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "SECONDS_BETWEEN_SIGNALS", 0.3)
    program = "trap 'count=${count}x; [ $count != xx ] || exit 2' INT; echo; while :; do :; done"
    process = subprocess.Popen(["bash", "-c", program], stdout=subprocess.PIPE, process_group=0)
    assert process.stdout is not None
    process.stdout.readline()
    run._stop(process, queue.Queue())
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.mp4"], "talker run: error: absent.mp4 does not exist.\n"),
        (["a{b}.mp4"], "a{b}.mp4: The name must not contain any of the characters { } < >."),
        (["bin"], "bin is a folder, but not a dataset folder, because it contains neither "),
        (["me.mp4", "--say", "absent.wav"], "--say: The file absent.wav does not exist.\n"),
        (["me.mp4", "--say", " "], "--say: The value is empty. Give an audio file or a text.\n"),
        (["me.mp4", "--say", "a.wav", "--say", "bin/a.wav"], "Two values have the name 'a'"),
        (["me.mp4", "--cores", "0"], "--cores: "),
        (["me.mp4", "--configfile", "no.yaml"], "--configfile: The file no.yaml does not exist.\n"),
    ],
)
def test_a_mistake_is_refused_at_once(folder: Path, args: list[str], message: str):
    for name in ("me.mp4", "a{b}.mp4", "a.wav", "bin/a.wav"):
        (folder / name).touch()
    out, err = (process := start(folder, "run", *args)).communicate(timeout=60)
    assert process.returncode == 1
    assert message in err
    assert err.count("\n") == 1
    assert not out
    assert not (folder / ".snakemake").exists()


def test_a_text_without_espeak_names_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.chdir(folder)
    Path("me.mp4").touch()
    with pytest.raises(
        UserError, match=r"`apt install espeak-ng` or `pip install espeakng-loader`"
    ):
        run.main(("me.mp4",), config=Config(say=("Good morning",)))
    assert not Path("data").exists()


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(folder)
    Path("me.mp4").touch()
    with pytest.raises(ImportError) as refused:
        run.main(("me.mp4",), config=Config())
    assert "`pip install '.[workflow]'`" in str(explain(refused.value))


def test_a_spoken_text_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spoken = []

    def write(text: str, voice: str, file: Path) -> None:
        spoken.append((text, voice))
        file.write_bytes(text.encode())

    monkeypatch.setattr(espeak, "write_speech", write)
    config = Config(say=("Good morning!", "a" * 100, "a" * 101, "?"), out=tmp_path)
    folders = [tmp_path / "me" / "novel", tmp_path / "you" / "novel"]
    for _ in range(2):
        assert not list(run._speeches(config, folders)), "the workflow finds the files itself"
        for folder in folders:
            assert len(list(folder.iterdir())) == 4, "different texts have different names"
            assert (folder / "Good_morning.wav").read_bytes() == b"Good morning!"
        assert spoken[0] == ("Good morning!", "en-us")
    (folders[1] / "Good_morning.wav").write_bytes(b"the user's own recording")
    with pytest.raises(
        UserError, match=r"Good_morning\.wav already exists and contains other audio"
    ):
        list(run._speeches(config, folders))


def test_a_dry_run_speaks_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(espeak, "find_espeak", lambda: ("libespeak-ng.so", None))
    config = Config(say=("Good morning!",), out=tmp_path, dry_run=True)
    folders = [tmp_path / "me" / "novel", tmp_path / "you" / "novel"]
    [(name, file)] = run._speeches(config, folders)
    assert name == "Good_morning" and Path(file).is_file()
    assert not list(tmp_path.iterdir())
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "Good_morning.wav").touch()
    assert not list(run._speeches(config, folders)), "the workflow finds the files itself"


def test_the_next_command_needs_no_espeak(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("talker.media.espeak.find_espeak", missing_espeak)
    say = summary._next_command("me.mp4", "me", Config(), "good")
    assert say == "talker run me.mp4 --say speech.wav"


def missing_espeak() -> tuple[str, None]:
    raise UserError("not installed")


def test_the_next_command_fits_the_verdict(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("talker.media.espeak.find_espeak", lambda: ("libespeak-ng.so", None))
    video, config = "my clip.mp4", Config()
    say = summary._next_command(video, "my_clip", config, "good")
    assert say == "talker run 'my clip.mp4' --say \"Good morning\""
    assert "longer.mp4" in summary._next_command(video, "my_clip", config, "failed")
    bundle = summary._next_command(video, "my_clip", Config(say=("hello.wav",)), "usable")
    assert ": talker bundle --data data/my_clip --avatar results/my_clip/avatar " in bundle


def test_an_error_of_snakemake_is_shown_without_the_places_in_the_rules():
    message = (
        'WorkflowError in file "/site/rules/preflight.smk", line 63:\nme: it has no sound\n'
        '  File "/site/Snakefile", line 52, in __onstart\n  File "/site/x.smk", line 1, in f'
    )
    assert plain_error(message) == "me: it has no sound"


def event(**fields: object) -> str:
    return json.dumps({"message": "", "level": "INFO", "from_rules": False, **fields})


def test_a_running_stage_has_a_line_with_the_time_left(tmp_path: Path):
    screen = Screen(tmp_path, ["me"])
    screen.console = screen.bars.live.console = Console(
        file=io.StringIO(), force_terminal=True, width=100, color_system=None
    )
    (tmp_path / "train.log").write_text("deformation: 30/120 steps, 0.5/s\n")
    with screen:
        screen.show(event(event="run_info", stats={"train": 1, "report": 1, "all": 1, "total": 3}))
        screen.show(
            event(event="job_info", jobid=4, rule_name="train", rule_msg="m", log=["train.log"])
        )
        screen.update()
        text = screen.console.file.getvalue()
        screen.show(event(event="job_finished", job_id=4))
    assert "0 of 2 stages" in text
    assert "deformation 30/120 steps, 3:00 min left" in text
    assert "[1/2] m (0 s)" in screen.console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_long_lines_are_wrapped_between_words_on_a_terminal_only(tmp_path: Path, terminal: bool):
    screen, file = Screen(tmp_path, ["me"]), io.StringIO()
    screen.console = Console(file=file, force_terminal=terminal, width=20, color_system=None)
    screen.print("warning: this clip is short")
    assert file.getvalue().count("\n") == 1 + terminal
    assert "this clip" in file.getvalue()


def test_the_time_left_comes_from_earlier_runs(tmp_path: Path):
    for subject, frames in (("short", 100), ("me", 200)):
        (tmp_path / "data" / subject).mkdir(parents=True)
        (tmp_path / "data" / subject / "clip.json").write_text(f'{{"frames": {frames}}}')
    novel = tmp_path / "benchmarks" / "short" / "novel" / "hello"
    novel.mkdir(parents=True)
    (tmp_path / "benchmarks" / "me").mkdir()
    for file, seconds in (
        ("short/frames.tsv", 10),
        ("short/train.tsv", 60),
        ("short/render_val.tsv", 3),
        ("short/novel/hello/render.tsv", 4),
        ("short/check.tsv", 5),
        ("me/check.tsv", 7),
    ):
        (tmp_path / "benchmarks" / file).write_text(f"s\th:m:s\n{seconds}\tx\n")
    expected = {"frames": 20, "train": 60, "render": 6, "render_novel": 8, "check": 7}
    assert dict(earlier_times(tmp_path, "me", {})) == expected
    screen = Screen(tmp_path, ["me"])
    stats = {"frames": 1, "train": 1, "check": 1, "total": 3}
    screen.show(event(event="run_info", stats=stats))
    assert screen.seconds_left() == 87
    screen.show(event(event="run_info", stats={**stats, "layers": 1}))
    assert screen.seconds_left() is None


@pytest.mark.parametrize(
    ("max_epochs", "images"), [(10, 100 + 10 * 181), (1000, 100 + 3000)], ids=["short", "long"]
)
def test_the_time_of_training_follows_its_steps(tmp_path: Path, max_epochs: int, images: int):
    for subject, frames in (("other", 100), ("me", 200)):
        (tmp_path / "data" / subject).mkdir(parents=True)
        (tmp_path / "data" / subject / "clip.json").write_text(f'{{"frames": {frames}}}')
    (tmp_path / "benchmarks" / "other").mkdir(parents=True)
    (tmp_path / "benchmarks" / "other" / "train.tsv").write_text("s\th:m:s\n60\tx\n")
    steps = {"canonical_steps": 50, "deformation_steps": 1000, "max_epochs": max_epochs}
    training = {"canonical_batch": 2, "deformation_batch": 3, **steps}
    screen = Screen(tmp_path, ["me"])
    screen.show(event(message="The preset is draft.", from_rules=True, training=training))
    screen.show(event(event="run_info", stats={"train": 1, "total": 1}))
    other = 100 + min(3000, max_epochs * 90)
    assert screen.seconds_left() == pytest.approx(60 * images / other, rel=0.01)


def test_the_last_progress_line_of_a_log_counts():
    state = read_progress("face: 2/5 images, 1.0/s\nmasks: 3/10 frames, 0.5/s\nother\n")
    assert state is not None
    assert (state.name, state.done, state.total, state.unit) == ("masks", 3, 10, "frames")
    assert state.seconds_left == 14
    assert read_progress("wrote 5 files\n") is None
    assert read_progress("face: 2/5 images, 1.0/s\nface: 5 images in 5.0 s\n") is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1:00 min"), (185, "3:05 min"), (7300, "2:01 h")]
)
def test_durations_are_short(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_dataset_folder_elsewhere_is_used(folder: Path, dataset: Path):
    """A folder in the layout of GaussianTalker is linked, and nothing is extracted again."""
    published = publish(dataset, folder / "old/me")
    args = ["run", "old/me/", "--dry-run"]
    out, err = (process := start(folder, *args)).communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert (folder / "data/me").samefile(published)
    assert "me: training the avatar" in out, out
    assert "tracking" not in out and "background" not in out, out
    other = folder / "other/me"
    (other / "ori_imgs").mkdir(parents=True)
    out, err = (process := start(folder, "run", "other/me")).communicate(timeout=60)
    assert process.returncode == 1
    assert "other/me cannot be used, because data/me is another dataset folder" in err
