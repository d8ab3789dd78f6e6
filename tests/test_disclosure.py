"""Marks of synthetic pictures and videos, read back by parsers of the formats."""

import dataclasses
import hashlib
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from fake_avatar import untrained_avatar

from talker.avatar.bundle import disclosure_of, read_bundle, write_bundle
from talker.dataset import Dataset
from talker.media.disclosure import Disclosure, labeled
from talker.media.video_writer import video_writer
from talker.render import Config, render, speech_drive

DISCLOSURE = Disclosure("me.avatar", "ab12", consent='<by "letter" & phone>', license="CC BY 4.0")
SOURCE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
XMP_UUID = "be7acfcb97a942e89c71999491e3afac"
C2PA_UUID = "d8fec3d61b0e483c92975828877ec481"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
FRAMES = [np.full((48, 64, 3), 40 * i, np.uint8) for i in range(5)]


def xmp_of_boxes(content: bytes) -> dict[str, str]:
    """Walk through the top-level boxes of a file of the MP4 family, to its end."""
    at, found = 0, None
    while at < len(content):
        size, name = struct.unpack(">I4s", content[at : at + 8])
        if size == 1:
            size = struct.unpack(">Q", content[at + 8 : at + 16])[0]
        if name == b"uuid":
            identifier = content[at + 8 : at + 24].hex()
            if identifier == XMP_UUID:
                assert found is None
                found = content[at + 24 : at + size]
            else:
                assert identifier == C2PA_UUID
        assert size >= 8
        at += size
    assert at == len(content) and found
    return attributes(found)


def xmp_of_chunks(content: bytes) -> dict[str, str]:
    """Walk through the chunks of a .png, and verify their checksums."""
    at, found = 8, None
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunk = content[at + 4 : at + 8 + size]
        assert struct.pack(">I", zlib.crc32(chunk)) == content[at + 8 + size : at + 12 + size]
        if chunk.startswith(b"iTXtXML:com.adobe.xmp\0"):
            found = chunk.removeprefix(b"iTXtXML:com.adobe.xmp\0\0\0\0\0")
        at += 12 + size
    assert found
    return attributes(found)


def attributes(packet: bytes) -> dict[str, str]:
    (description,) = ElementTree.fromstring(packet).iter(f"{RDF}Description")
    return dict(description.attrib)


def write(path: Path, disclosure: Disclosure | None) -> Path:
    with video_writer(path, disclosure=disclosure) as append:
        for frame in FRAMES:
            append(frame)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
def test_videos_say_that_they_are_synthetic(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", DISCLOSURE)
    with av.open(str(path)) as container:
        tags = {name.lower(): value for name, value in container.metadata.items()}
        assert len(list(container.decode(video=0))) == len(FRAMES)
    assert tags["comment"].startswith("Synthetic video.")
    assert "ab12" in tags["comment"] and '<by "letter" & phone>' in tags["comment"]
    assert tags["copyright"] == "CC BY 4.0"
    if suffix == ".webm":
        assert tags["digital_source_type"] == TYPE
    else:
        assert xmp_of_boxes(path.read_bytes())[SOURCE] == TYPE


def test_pictures_say_it_too_and_keep_their_pixels(tmp_path: Path) -> None:
    write(tmp_path / "marked", DISCLOSURE)
    write(tmp_path / "plain", None)
    for i in range(len(FRAMES)):
        path = tmp_path / "marked" / f"{i:05d}.png"
        properties = xmp_of_chunks(path.read_bytes())
        assert properties[SOURCE] == TYPE
        assert '<by "letter" & phone>' in "".join(properties.values())
        plain = cv2.imread(str(tmp_path / "plain" / f"{i:05d}.png"))
        assert np.array_equal(cv2.imread(str(path)), plain)
    assert b"iTXt" not in (tmp_path / "plain" / "00000.png").read_bytes()


def test_without_a_disclosure_nothing_is_written(tmp_path: Path) -> None:
    content = write(tmp_path / "a.mp4", None).read_bytes()
    assert b"iptc" not in content and b"Synthetic" not in content


@pytest.mark.parametrize("channels", [3, 4])
def test_the_label_is_legible_on_any_background(channels: int) -> None:
    for level in (0, 255):
        frame = np.full((256, 256, channels), level, np.uint8)
        marked = labeled(frame, "Synthetic")
        changed = np.argwhere((marked != frame).any(-1))
        assert (frame == level).all()
        top, left = changed.min(0)
        assert top > 220 and left < 20  # in the corner only
        corner = marked[top:248, left:100, :3]
        assert corner.max() > 240 and corner.min() <= 85
        if channels == 4:
            assert (marked[230:240, 20:60, 3] == 255).all()


def test_render_names_the_avatar_its_consent_and_draws_the_label(
    mel_only: Path, tmp_path: Path
) -> None:
    data = Dataset.load(mel_only, 64, "mel")
    untrained_avatar(data).save(tmp_path / "avatar")
    (tmp_path / "avatar" / "speech.npz").write_bytes(b"unused")
    write_bundle(tmp_path / "me.avatar", tmp_path / "avatar", data, "private", "by\nletter")
    model, replay = read_bundle(tmp_path / "me.avatar")
    disclosure = disclosure_of(model, replay)
    weights = (tmp_path / "avatar" / "weights.safetensors").read_bytes()
    assert disclosure.digest == hashlib.sha256(weights).hexdigest()
    assert disclosure == Disclosure("me.avatar", disclosure.digest, "by letter", "private")
    given = disclosure_of(model, data)  # with the dataset instead of the recording in the file
    assert given == dataclasses.replace(disclosure, avatar=mel_only.name)
    drive = speech_drive(replay, data.speech[:3])
    pictures = []
    for name, label in (("plain", ""), ("labeled", "Synthetic")):
        sound = data.folder / "aud.wav"
        render(model, replay, drive, sound, tmp_path / name, Config(label=label))
        path = tmp_path / name / "00001.png"
        assert "by letter" in "".join(xmp_of_chunks(path.read_bytes()).values())
        pictures.append(cv2.imread(str(path)).astype(int))
    rows, columns = np.nonzero(np.abs(pictures[0] - pictures[1]).sum(-1))
    assert len(rows) > 20 and rows.min() > 40 and columns.min() < 8
