"""The tables of subjects and speeches, and the table of results."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from talker.core.batch import (
    SpeechRow,
    SubjectRow,
    failures,
    read_speeches,
    read_subjects,
    write_outcome,
)
from talker.errors import UserError

SCHEMAS = Path(__file__).parent.parent / "workflow" / "schemas"


def schema(name: str) -> dict[str, Any]:
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text())


def table(folder: Path, *rows: str) -> Path:
    path = folder / "table.tsv"
    path.write_text("".join(row.replace(" | ", "\t") + "\n" for row in rows))
    return path


def subjects(path: Path) -> dict[str, SubjectRow]:
    return read_subjects(path, schema("subjects"), schema("config")["properties"]["options"])


def test_a_row_may_have_options_of_its_own(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "subject | video | frames.crop | train.weights.l1 | train.image_size",
        "me | me.mp4 | [420, 0, 720] | 0.5 | ",
        "you | you.mp4 |  |  | ",
    )
    assert subjects(path) == {
        "me": SubjectRow(
            "me.mp4", {"frames": {"crop": [420, 0, 720]}, "train": {"weights": {"l1": 0.5}}}
        ),
        "you": SubjectRow("you.mp4"),
    }


def test_every_faulty_row_is_listed_at_once(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "subject | video | train.image_size | train.imagesize",
        "a/b | a.mp4 |  | ",
        "me | me.mp4 | big | ",
        "me2 | me.mp4 |  | 3",
        "good | good.mp4 | 64 | ",
        "good | other.mp4 |  | ",
        "cut",
        "long | long.mp4 |  |  | more",
        "open | open.mp4 | [1 | ",
        "low | low.mp4 | -1 | ",
    )
    with pytest.raises(UserError) as refused:
        subjects(path)
    lines = str(refused.value).splitlines()
    for complaint in (
        "line 2: subject: 'a/b' does not match",
        "line 3: train.image_size: 'big' is not of type 'integer'",
        "line 4: train: unknown key 'imagesize'; did you mean 'image_size'?",
        "line 6: The subject 'good' already has a row above",
        "line 7: video: None is not of type 'string'",
        "line 8: the row has more cells than the header has columns",
        "line 9: train.image_size: '[1' is not valid YAML",
        "line 10: train.image_size: -1 is less than the minimum of ",
    ):
        assert any(line.startswith(f"{path}, {complaint}") for line in lines), (complaint, lines)
    assert len(lines) == 8


def test_speeches_are_for_all_or_some(tmp_path: Path) -> None:
    path = table(tmp_path, "speech | file | subjects", "hi | hi.wav | ", "bye | bye.wav | me, you")
    assert read_speeches(path, schema("speeches"), ["me", "you"]) == {
        "hi": SpeechRow("hi.wav"),
        "bye": SpeechRow("bye.wav", frozenset({"me", "you"})),
    }
    path = table(tmp_path, "speech | file | subjects", "hi | hi.wav | she", " |  | me")
    with pytest.raises(
        UserError, match="line 2: The subject 'she' is not in the table of subjects"
    ) as refused:
        read_speeches(path, schema("speeches"), ["me"])
    assert "line 3" in str(refused.value)


def test_a_faulty_file_is_one_message(tmp_path: Path) -> None:
    path = table(
        tmp_path, "subject | video | train.weights | train.weights.l1", "a | a.mp4 | 1 | 2"
    )
    with pytest.raises(UserError, match=r"line 2: train\.weights\.l1: Another column already sets"):
        subjects(path)
    path.write_bytes("\ufeffsubject\tvideo\nmé\ta.mp4\n".encode())  # as Excel does
    assert subjects(path) == {"mé": SubjectRow("a.mp4")}
    path.write_bytes("subject\tvideo\nmé\ta.mp4\n".encode("latin-1"))
    with pytest.raises(UserError, match="must be UTF-8 text"):
        subjects(path)
    path.write_text("subject\tvideo\nme\tmy {clip}.mp4\n")
    with pytest.raises(UserError, match=r"line 2: video: 'my {clip}\.mp4' does not match"):
        subjects(path)


SAID = """Building DAG of jobs...
[Sun Nov 22 12:52:49 2026]
Error in rule frames:
    message: None
    output: {data}/broken/clip.json, {data}/broken/ori_imgs
    log: {logs}/broken/frames.log (check log file(s) for error details)
[Sun Nov 22 12:52:49 2026]
Error in rule train:
    message: SLURM-job '5' failed, SLURM status is: 'CANCELLED'.
    log: {logs}/stopped/train.log (check log file(s) for error details)
Error in rule render:
    message: SLURM-job '5' failed, SLURM status is: 'CANCELLED'.
    log: {logs}/stopped/render_val.log (check log file(s) for error details)
Error in rule track:
    log: {logs}/crashed/track.log (check log file(s) for error details)
Error in rule train:
    output: {data}/again
    log: {logs}/again/train.log (check log file(s) for error details)
Error in rule render_novel:
    output: {data}/says/my words.mp4
    log: {logs}/says/novel/my waiting words/again.log (check log file(s) for error details)
Finished jobid: 3
"""


def test_the_outcome_says_where_and_why(tmp_path: Path) -> None:
    """A subject that is complete from an earlier run is listed, one that failed only once is
    not."""
    logs, data = tmp_path / "logs", tmp_path / "data"
    for log, text in (
        ("broken/frames", "talker frames: error: b.mp4: cannot be read as a video\n"),
        ("stopped/train", "canonical: 20 steps in 3 s\n"),
        ("crashed/track", 'Traceback\n  File "x"\nMemoryError\n'),
        ("again/train", "torch.OutOfMemoryError: CUDA out of memory.\n"),
        ("says/novel/my waiting words/again", "torch.OutOfMemoryError: CUDA out of memory.\n"),
    ):
        (logs / log).parent.mkdir(parents=True)
        (logs / f"{log}.log").write_text(text)
    (data / "broken").mkdir(parents=True)
    (data / "broken/ori_imgs").touch()
    good = data / "again"
    good.touch()
    names = ("stopped", "crashed", "waiting")
    wanted = {name: [tmp_path / f"{name}.html"] for name in names}
    wanted |= {name: [good] for name in ("again", "broken", "says")}
    outcome = tmp_path / "batch.tsv"
    failed = failures(SAID.format(logs=logs, data=data))
    assert write_outcome(outcome, wanted, failed, logs) == (1, 5)
    rows = [line.split("\t")[:4] for line in outcome.read_text().splitlines()]
    assert outcome.read_text().splitlines()[0].endswith("\tlog\tverdict")
    assert rows == [
        ["subject", "state", "rule", "reason"],
        ["stopped", "failed", "train", "killed CANCELLED"],
        ["crashed", "failed", "track", "MemoryError"],
        ["waiting", "not finished", "", f"{tmp_path}/waiting.html is missing"],
        ["again", "done", "", ""],
        ["broken", "failed", "frames", "talker frames: error: b.mp4: cannot be read as a video"],
        ["says", "failed", "render_novel", "torch.OutOfMemoryError: CUDA out of memory."],
    ]


def test_an_option_of_another_stage_is_named_with_its_stage(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "subject | video | track.focal_px | track.min_frames",
        "me | me.mp4 | 900 | 9",
    )
    with pytest.raises(UserError) as refused:
        subjects(path)
    lines = str(refused.value).splitlines()
    assert any(
        line.endswith("track: unknown key 'focal_px'; it is an option of `fit`") for line in lines
    )
    assert any(line.endswith("it is an option of `shots` and `fit`") for line in lines)
