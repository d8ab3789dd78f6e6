"""The examples run on a small dataset and an untrained avatar."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEMO, ROOT
from fake_avatar import untrained_avatar

from talker import speech
from talker.dataset import Dataset
from talker.media.audio import read_wav, write_wav
from talker.media.video_reader import probe

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def avatar(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained avatar with the statistics of the speech features, as `talker train` writes."""
    folder = tmp_path_factory.mktemp("results") / "avatar"
    untrained_avatar(Dataset.load(dataset, 64)).save(folder)
    speech.main(
        wav=dataset / "aud.wav",
        clip=dataset / "clip.json",
        statistics=folder / "speech.npz",
        features=folder.parent / "features.npy",
        config=speech.Config(encoder="mel"),
    )
    return folder


def test_the_script_renders_new_speech(
    dataset: Path, avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, video = tmp_path / "hello.wav", tmp_path / "hello.mp4"
    write_wav(source, read_wav(DEMO / "speech.wav")[:16_000])
    arguments = [avatar, source, video, dataset]
    monkeypatch.setattr("sys.argv", ["say.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / "say.py"))
    assert probe(video).duration == pytest.approx(1.0, abs=0.05)


def test_the_notebook_shows_an_avatar(
    dataset: Path, avatar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = json.loads((EXAMPLES / "explore.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "avatar" not in names:  # the first cell names the demo's folders
                names |= {"data": dataset, "results": avatar.parent}
    assert len(names["rendered"]) == 4
    assert not np.array_equal(names["views"][0], names["views"][-1])
