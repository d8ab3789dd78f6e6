"""The report is self-contained and complete, and says what is missing."""

import base64
import copy
import dataclasses
import functools
import itertools
import json
import math
import operator
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from fake_avatar import FakeAvatar
from test_disclosure import SOURCE, TYPE, xmp_of_boxes

from talker import report as stage
from talker.avatar.model import Avatar
from talker.dataset import Dataset
from talker.measure import figures
from talker.measure.definitions import CONTROLS, DEFINITIONS, DETECTOR_FLOOR
from talker.measure.figures import Curve, chart, draw_mesh, draw_points, picture
from talker.measure.heldout import not_computed
from talker.measure.page_facts import timings
from talker.measure.pictures import _worst, rejected_frames
from talker.measure.result_tables import tiles
from talker.media.video_writer import video_writer
from talker.report import Config

BENCHMARK = "s\th:m:s\tmax_rss\tcpu_time\n{}\t0:00:01\t{}\t1\n"


@pytest.fixture
def inputs(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path | Config]:
    """Write the results of a finished run with a fake avatar."""
    data = Dataset.load(dataset, 64)
    monkeypatch.setattr(Avatar, "load", lambda folder: FakeAvatar(data))
    avatar, benchmarks = tmp_path / "avatar", tmp_path / "benchmarks"
    avatar.mkdir()
    rows = [
        {"stage": name, "step": step, "loss": 1 / step, "l1": 0.5 / step, "gaussians": 321}
        for name in ("canonical", "deformation")
        for step in (20, 40, 60)
    ]
    (avatar / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (benchmarks / "novel" / "hello").mkdir(parents=True)
    (benchmarks / "train.tsv").write_text(BENCHMARK.format(100.5, 2048))
    (benchmarks / "frames.tsv").write_text(BENCHMARK.format(2.25, "-"))
    (benchmarks / "novel" / "hello" / "render.tsv").write_text(BENCHMARK.format(3, 512))
    metrics, video = tmp_path / "metrics.json", tmp_path / "val.mp4"
    metrics.write_text(json.dumps(measured()))
    novel = tmp_path / "novel"
    novel.mkdir()
    for path in (video, novel / "hello.mp4"):
        with video_writer(path) as write:
            for i in range(10):
                write(np.full((64, 64, 3), 20 * i, np.uint8))
    sync = {"correlation": 0.52, "null_mean": -0.01, "null_sd": 0.08}
    (novel / "hello.json").write_text(json.dumps({"sync": {"avatar": sync, "real": sync}}))
    return {
        "data": dataset,
        "avatar": avatar,
        "metrics": metrics,
        "video": video,
        "novel": novel,
        "benchmarks": benchmarks,
        "html": tmp_path / "report.html",
        "config": Config(stills=3, samples=2),
    }


def measured() -> dict:
    """A metrics.json of ten frames, one of them without a face."""
    row = dict.fromkeys(DEFINITIONS, 0.25) | {"frames": 10}
    wave = [*np.sin(np.arange(9)).tolist(), None]
    return {
        "held_out": row | {"mouth_correlation": 0.789},
        "controls": {"frozen_mouth": row | {"mouth_correlation": None}, "shuffled_audio": row},
        "detector_floor": row,
        "network_metrics": {"avatar": {"CSIM": 0.8125, "Sync-C": 4.5}, "real": {"Sync-C": None}},
        "not_computed": not_computed({"identity": 0, "syncnet": 0}),
        "settings": {
            "definitions": DEFINITIONS,
            "controls": CONTROLS,
            "detector_floor": DETECTOR_FLOOR,
        },
        "curves": {
            "frames": list(range(90, 100)),
            "mouth_opening": {
                "real": wave,
                "avatar": wave,
                "frozen_mouth": [0.1] * 10,
                "shuffled_audio": [wave[::-1], wave],
            },
            "eye_opening": {"real": wave, "avatar": wave},
        },
    }


ODD = [math.nan, 10**400, True, None, "", "text", "\ud800", [], [1, "a"], [[]], {}, {"a": []}]


def places(tree: dict | list, path: tuple = ()) -> Iterator[tuple]:
    """Yield the keys that lead to each value of nested JSON, of lists the first two values only."""
    for key in tree if isinstance(tree, dict) else range(min(2, len(tree))):
        yield (*path, key)
        if isinstance(tree[key], dict | list):
            yield from places(tree[key], (*path, key))


def test_odd_values_in_the_metrics_are_named_on_the_page() -> None:
    """Each section is either complete or says what is wrong, without an exception."""
    whole = measured() | {
        "verdict": {"grade": "good", "reasons": ["a"], "advice": [], "intervals": {}}
    }
    left_out = {"missing": "not part of this test"}
    names = ("novel", "comparison", "stills", "overlays", "tracked", "rejected", "poses")
    names += ("training", "clip", "tracking", "quality", "options", "timings")
    rest = dict.fromkeys(names, left_out) | {"warnings": [], "versions": [], "commit": None}
    shape = SimpleNamespace(frames=1, width=1, height=1, train_ids=[0], val_ids=[0])
    sections = {
        "verdict": stage.verdict,
        "tiles": lambda metrics: {"tiles": stage.tiles(metrics)},
        "curves": stage.mouth_curves,
        "numbers": stage.numbers,
    }
    odd = itertools.cycle(ODD)
    complete = Counter()
    for _ in range(2):
        for path in places(whole):
            metrics = copy.deepcopy(whole)
            inner = functools.reduce(operator.getitem, path[:-1], metrics)
            inner[path[-1]] = next(odd)
            made = {
                name: stage._section(name, functools.partial(make, metrics))
                for name, make in sections.items()
            }
            complete.update(name for name, section in made.items() if "missing" not in section)
            assert stage.page(subject="me", dataset=shape, **made, **rest).endswith("</html>")
        next(odd)  # so that the next turn puts other values into each place
    assert min(complete[name] for name in sections) > 20


def written(inputs: dict) -> str:
    stage.main(**inputs)
    return inputs["html"].read_text()


def test_the_page_needs_nothing_else(inputs: dict) -> None:
    page = written(inputs)
    for file in re.findall(r"(?:src|poster)=\"([^\"]*)\"", page):
        assert file.startswith("data:"), file[:80]
    assert set(re.findall(r"href=\"([^\"]*)\"", page)) == {"novel/hello.mp4"}
    assert "<script" not in page
    assert "<link" not in page
    assert "http" not in page
    assert "url(" not in page


def test_a_finished_run_misses_nothing(inputs: dict) -> None:
    page = written(inputs)
    missing = re.findall(r'class="missing">([^<]*)', page)
    absent = ("quality.json", "track_report.json", "track_overlay.mp4", "config.json", "verdict")
    assert all(any(name in one for name in absent) for one in missing), missing
    for text in (
        "0.789",
        "321",
        "100.5",
        "2,048",
        "novel/hello/render",
        "LPIPS",
        "0.8125",
        "shuffled audio",
    ):
        assert text in page, text
    assert page.count('alt="real frame') == page.count('alt="avatar frame') == 3
    assert page.count('alt="real mouth') == page.count('alt="avatar mouth') == 3
    for kind in ("68 landmarks", "Masks", "Mesh of the tracked head"):
        assert page.count(f'alt="{kind}') == 2
    assert page.count("<video") == 2
    assert page.index("new speech hello") < page.index("real and avatar")
    assert "is 0.5, and 0.0 ± 0.1 with shifted audio. In the real video, it is 0.5." in page
    assert page.count('alt="frame with the worst mouth, avatar') >= 1


def test_every_chart_is_sound_svg_and_every_picture_a_jpeg(inputs: dict) -> None:
    page = written(inputs)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 7
    for svg in charts:
        assert "nan" not in svg
        ElementTree.fromstring(svg)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]*)", page)
    worst = page.count('alt="frame with the worst mouth, real')
    posters = 2 * 2
    assert len(pictures) == 4 * 3 + 3 * 2 + 3 * worst + posters
    shapes = {decode(one).shape for one in pictures}
    assert (64, 64, 3) in shapes


def decode(base64: str) -> np.ndarray:
    import base64 as codec

    return cv2.imdecode(np.frombuffer(codec.b64decode(base64), np.uint8), cv2.IMREAD_COLOR)


def test_what_is_missing_is_said(inputs: dict) -> None:
    for name in ("metrics", "video", "novel", "benchmarks"):
        inputs[name] = None
    (inputs["avatar"] / "log.jsonl").unlink()
    page = written(inputs)
    for option in ("metrics", "video", "novel", "benchmarks"):
        assert f"--{option} was not given" in page
    assert "log.jsonl" in page
    assert page.count('alt="68 landmarks') == 2


@pytest.mark.parametrize("damage", ["", "{}", "not JSON", '{"held_out": {}}'])
def test_damaged_metrics_cost_their_sections_only(inputs: dict, damage: str) -> None:
    inputs["metrics"].write_text(damage)
    page = written(inputs)
    assert page.count('class="missing">The metrics are missing') == 1
    assert page.count('alt="avatar frame') == 3


def test_a_large_video_is_linked(inputs: dict) -> None:
    inputs["config"] = Config(stills=1, samples=1, embed_mb=0.0)
    page = written(inputs)
    assert page.count("<video") == 1, "the comparison is made for the page, so it has no file"
    assert 'href="novel/hello.mp4"' in page
    (video,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert xmp_of_boxes(base64.b64decode(video))[SOURCE] == TYPE


def test_few_frames_give_no_number_about_the_mouth() -> None:
    results = measured()
    for tile in tiles(results)[:3]:
        assert (tile["value"], tile["note"]) == ("-", "only 10 frames")
    results["held_out"]["frames"] = 59
    results["verdict"] = {"intervals": {"correlation": [0.512, 0.87]}}
    first = tiles(results)[0]
    assert first["value"] == "0.8", "no more digits than the interval allows"
    assert (
        first["note"] == "between 0.5 and 0.9 (90 % confidence interval); 0.2 with shuffled audio"
    )


def test_rejected_frames_are_shown(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reported"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("parsing", "gt_imgs"))
    data = dataclasses.replace(Dataset.load(dataset, 64), folder=folder)
    rows = [{"frame": i, "reason": "no face"} for i in range(20)]
    (folder / "track_report.json").write_text(json.dumps({"rejected": rows}))
    shown = rejected_frames(data, 4)
    assert len(shown) == 4
    assert {one["reason"] for one in shown} == {"no face"}


def test_the_worst_frames_are_apart() -> None:
    black = np.zeros((1, 1, 3), np.uint8)
    pairs = [(20.0 + abs(i - 30), i, black, black) for i in range(60)]
    assert [pair[1] for pair in _worst(pairs, 3)] == [30, 22, 38]


def test_the_same_twice_is_the_same_page(inputs: dict) -> None:
    assert written(inputs) == written(inputs)


def test_names_are_escaped(inputs: dict, tmp_path: Path) -> None:
    named = tmp_path / "a<b>&c"
    named.symlink_to(inputs["data"])
    inputs["data"] = named
    page = written(inputs)
    assert "<b>&c" not in page


def test_timings_follow_the_pipeline(inputs: dict) -> None:
    rows = timings(inputs["benchmarks"])["rows"]
    assert [row["name"] for row in rows] == ["frames", "train", "novel/hello/render"]
    assert rows[0]["memory"] is None
    assert rows[1]["share"] == 100


def paths(svg: str) -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(svg) if one.tag == "path"]


def test_a_curve_goes_through_its_points_and_has_gaps() -> None:
    curves = [
        Curve("one", "real", [0, 1, 2, 3], [0.0, 1.0, float("nan"), 0.5]),
        Curve("two <&>", "avatar", [0, 3], [1.0, 0.0]),
    ]
    first, second = paths(chart(curves, "x", "y", 100, 100))
    assert re.findall("[ML]", first.attrib["d"]) == ["M", "L", "M"]
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", second.attrib["d"]), float)
    assert points[0, 0] < points[1, 0]
    assert points[0, 1] < points[1, 1], "larger values lie higher"


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.003, 4000.0], [0.0, 5.0]])
def test_charts_of_awkward_ranges(values: list[float], log_y: bool) -> None:
    svg = chart([Curve("c", "real", list(range(len(values))), values)], "x", "y", log_y=log_y)
    assert "nan" not in svg
    assert "inf" not in svg
    ElementTree.fromstring(svg)


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        chart([Curve("c", "real", [0, 1], [float("nan")] * 2)], "x", "y")


def test_pictures_keep_their_colours() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    bgr = decode(picture(red).split(",")[1])
    assert bgr[8, 8, 2] > 240
    assert bgr[8, 8, :2].max() < 20


def test_points_and_mesh_are_drawn_where_they_project() -> None:
    black = np.zeros((100, 100, 3), np.uint8)
    dot = draw_points(black, np.array([[70.5, 20.5]]), (255, 0, 0))
    assert dot[20, 70].tolist() == [255, 0, 0]
    assert dot[:, :60].max() == 0
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)
    viewmat = np.eye(4)
    viewmat[2, 3] = 5
    K = np.array([[100, 0, 50], [0, 100, 50], [0, 0, 1]], float)
    for faces in ([[0, 1, 2]], [[0, 2, 1]]):
        mesh = draw_mesh(black, vertices, np.array(faces), viewmat, K)
        assert mesh[55, 55].min() > 100
        assert mesh[:48].max() == mesh[:, :48].max() == 0
        assert mesh[66, 66].max() == 0


def test_masks_are_laid_over() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1] = True
    grey = np.full((4, 4, 3), 100, np.uint8)
    mixed = figures.blend(grey, mask, (200, 0, 0))
    assert mixed[1, 0].tolist() == [150, 50, 50]
    assert mixed[0, 0].tolist() == [100, 100, 100]
