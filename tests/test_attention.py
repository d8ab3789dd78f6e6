"""Attention maps and videos next to the real frames: right where the answer is known."""

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fake_avatar import FakeAvatar, untrained_avatar
from test_disclosure import SOURCE, TYPE, xmp_of_boxes, xmp_of_chunks

from talker import render as stage
from talker.avatar.attention import (
    TOKENS,
    AttentionMap,
    attention_maps,
    color_scales,
    colored,
    write_attention,
)
from talker.avatar.model import Avatar
from talker.dataset import Dataset
from talker.errors import UserError
from talker.media.ffmpeg import ffmpeg_program, side_by_side
from talker.media.images import read_image
from talker.render import split_drive


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    data = Dataset.load(dataset, 64)
    return dataclasses.replace(data, val_ids=data.val_ids[:5])


@pytest.fixture
def avatar(data: Dataset) -> Avatar:
    return untrained_avatar(data).eval()


def test_the_weights_of_a_gaussian_are_those_that_the_network_uses(avatar: Avatar) -> None:
    """One block: the weights mix the values of the tokens into what the block computes."""
    inputs = torch.randn(2, 10), torch.rand(2, 2), torch.eye(4).expand(2, 4, 4)
    shared = avatar.shared()
    weights = avatar.attention(*inputs, shared)
    assert weights.shape == (2, 3000, 4)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3000), atol=1e-5)
    (block,) = avatar.blocks
    tokens = avatar.tokens(inputs[0], inputs[1], avatar.pose_vector(inputs[2]))
    key, value = block.project_tokens(tokens)
    mixed = torch.einsum("bghn,bhno->bgo", block.weights(shared.features[None], key), value)
    x = block.norm1(shared.features + mixed + block.out_proj.bias)
    expected = block.norm2(x + block.linear2(torch.relu(block.linear1(x))))
    assert torch.allclose(block(shared.features[None], tokens), expected, atol=1e-6)


def test_without_a_query_all_tokens_weigh_the_same(avatar: Avatar, data: Dataset) -> None:
    (block,) = avatar.blocks
    with torch.no_grad():
        block.query.weight.zero_()
        block.query.bias.zero_()
    maps = list(attention_maps(avatar, data, split_drive(data, "val"), np.arange(3), 2))
    assert len(maps) == 3
    for one in maps:
        assert one.weights.shape == (data.height, data.width, 4)
        assert (one.alpha > 0.5).mean() > 0.05
        assert one.weights[one.alpha > 0.5] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("token", range(4))
def test_a_token_with_all_attention_has_all_weight(
    avatar: Avatar, data: Dataset, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = avatar.blocks
    monkeypatch.setattr(avatar, "tokens", lambda *inputs: torch.eye(4, 8)[None])
    with torch.no_grad():
        block.query.weight.zero_()
        block.query.bias.fill_(100.0)
        block.key.weight.zero_()
        block.key.bias.zero_()
        block.key.weight[:, token] = 1.0
    (one,) = attention_maps(avatar, data, split_drive(data, "val"), np.arange(1), 0)
    mean = one.weights[one.alpha > 0.5].mean(0)
    assert mean == pytest.approx(np.eye(4)[token], abs=1e-4)


def test_colors_span_the_weights() -> None:
    weights = np.zeros((4, 100, 4), np.float32)
    weights[..., 0] = np.linspace(0.2, 0.6, 100)
    weights[..., 1] = 0.3
    one = AttentionMap(weights, np.ones((4, 100), np.float32))
    scales = color_scales([one])
    assert scales[0] == pytest.approx([0.204, 0.596], abs=2e-3)
    assert scales[1] == pytest.approx([0.29, 0.31]), "a constant weight is not noise"
    speech, eye, *_ = colored(one, scales)
    assert speech[0, 0, 2] > speech[0, 0, 0] and speech[0, -1, 0] > speech[0, -1, 2]
    assert (eye == eye[0, 0]).all()
    around = AttentionMap(weights, np.zeros((4, 100), np.float32))
    assert (colored(around, scales)[0] == 32).all()


def test_a_folder_of_videos_and_stills(
    avatar: Avatar, data: Dataset, dataset: Path, tmp_path: Path
) -> None:
    write_attention(tmp_path, avatar, data, split_drive(data, "val"), dataset / "aud.wav", 2)
    facts = json.loads((tmp_path / "attention.json").read_text())
    assert facts["frames"] == 5 and list(facts["tokens"]) == list(TOKENS)
    assert sum(one["mean_weight"] for one in facts["tokens"].values()) == pytest.approx(1, abs=1e-3)
    for name in TOKENS:
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            assert len(list(container.decode(video=0))) == 5
            assert container.streams.audio
        assert xmp_of_boxes((tmp_path / f"{name}.mp4").read_bytes())[SOURCE] == TYPE
    stills = sorted(tmp_path.glob("still_*.png"))
    assert [path.name for path in stills] == [f"still_0000{i}.png" for i in (0, 1, 3, 4)]
    assert all(xmp_of_chunks(path.read_bytes())[SOURCE] == TYPE for path in stills)
    assert read_image(stills[0]).shape == (data.height + 24, 5 * data.width, 3)


def test_render_writes_attention_maps_of_new_speech(
    avatar: Avatar, data: Dataset, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("talker.avatar.bundle.load_avatar", lambda folder: avatar)
    stage.main(
        data=dataset,
        avatar=tmp_path,
        video=tmp_path / "out.mp4",
        attention=tmp_path / "maps",
        split="val",
    )
    assert {"speech.mp4", "attention.json"} <= {path.name for path in (tmp_path / "maps").iterdir()}


def test_a_video_next_to_the_real_frames(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both halves are the same, because the avatar replays the real frames."""
    pytest.importorskip("ffmpeg")
    size = 65
    data = Dataset.load(dataset, size)
    avatar = FakeAvatar(data)
    monkeypatch.setattr("talker.avatar.bundle.load_avatar", lambda folder: avatar)
    video, both = tmp_path / "100% real.mp4", tmp_path / "both.mp4"
    stage.main(data=dataset, avatar=tmp_path, video=video, side_by_side=both, split="val")
    with av.open(str(both)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25 and container.streams.audio
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.metadata["comment"].startswith("Synthetic video. The face was generated")
    assert xmp_of_boxes(both.read_bytes()) == xmp_of_boxes(video.read_bytes())
    assert len(frames) == len(data.val_ids)
    height, width = (2 * -(-side // 2) for side in (data.height, data.width))
    for i, frame in zip(data.val_ids, frames, strict=True):
        assert frame.shape == (height, 2 * width, 3)
        real = data.frame(i).astype(int)
        left, right = frame[:, :width], frame[:, width:]
        for half in (left, right):
            error = half[: data.height, : data.width] - real
            assert np.abs(error).mean() < 6 and abs(error.mean()) < 1.5
    assert Path(ffmpeg_program()).exists()


def test_side_by_side_refuses_what_it_cannot_show(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ffmpeg")
    for arguments in (
        {"video": tmp_path / "a.webm", "split": "val"},
        {"video": tmp_path / "a.mp4", "speech": tmp_path / "a.npy", "wav": tmp_path / "a.wav"},
    ):
        with pytest.raises(UserError, match="requires `--split` and a `--video` that ends in"):
            stage.main(data=dataset, avatar=tmp_path, side_by_side=tmp_path / "b.mp4", **arguments)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    pattern = dataset / "ori_imgs" / "%d.jpg"
    with pytest.raises(UserError, match=r"ffmpeg could not write .*both\.mp4: "):
        side_by_side(pattern, 0, tmp_path / "broken.mp4", (64, 64), tmp_path / "both.mp4")
    assert not (tmp_path / "both.mp4").exists()
