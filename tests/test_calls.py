"""Calls over WebRTC: sound and lips arrive together, voices are not mixed, and hanging up ends."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_serve import streaming  # noqa: F401 (fixture)
from test_speak import encoder, learned, syllables  # noqa: F401 (fixtures)

from talker.clip import SAMPLES_PER_FRAME
from talker.core.parallel import one_thread
from talker.errors import UserError
from talker.tools import live
from talker.tools.live import SPEECH, BusyError, Live
from talker.tools.speak import Config
from talker.tools.studio import MissingError, Studio

aiortc = pytest.importorskip("aiortc")


@pytest.fixture
def calls(streaming: Any, tmp_path: Path, monkeypatch) -> Iterator[Any]:  # noqa: F811
    from talker.tools.calls import Calls

    monkeypatch.setattr(live, "load_streaming_avatar", streaming)
    (tmp_path / "me.avatar").write_bytes(b"replaced by `streaming`")
    studio = Studio(tmp_path)
    with one_thread():
        yield Calls(Live(studio, Config(), "en-us", 2))
    studio.close()


class Microphone(aiortc.MediaStreamTrack):
    """Speaks int16 [S] at 16 kHz in real time, and is silent before and after."""

    kind = "audio"

    def __init__(self, sound: np.ndarray) -> None:
        super().__init__()
        self.sound, self.position, self.start = sound, 0, 0.0

    async def recv(self) -> av.AudioFrame:
        loop = asyncio.get_running_loop()
        self.start = self.start or loop.time()
        piece = np.zeros((1, 320), np.int16)
        part = self.sound[self.position : self.position + 320]
        piece[0, : len(part)] = part
        frame = av.AudioFrame.from_ndarray(piece, "s16", "mono")
        frame.sample_rate, frame.time_base = 16_000, Fraction(1, 16_000)
        frame.pts = self.position
        self.position += 320
        await asyncio.sleep(self.start + frame.pts / 16_000 - loop.time())
        return frame


class Page:
    """The other side of a call, which keeps what it hears and sees."""

    def __init__(self) -> None:
        self.connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.key = ""
        self.heard: list[tuple[float, np.ndarray]] = []
        """time in seconds and int16 samples at 48 kHz"""
        self.seen: list[tuple[float, float]] = []
        """time in seconds and mean gray level"""
        self.tasks: list[asyncio.Task] = []

    async def dial(self, calls: Any, microphone: Any = None) -> None:
        self.connection.addTransceiver(microphone or "audio", direction="sendrecv")
        self.connection.addTransceiver("video", direction="recvonly")
        self.connection.on(
            "track", lambda track: self.tasks.append(asyncio.create_task(self.follow(track)))
        )
        await self.connection.setLocalDescription(await self.connection.createOffer())
        about = await calls.accept("me", self.connection.localDescription.sdp)
        self.key = about["call"]
        assert about["fps"] == 25
        await self.connection.setRemoteDescription(
            aiortc.RTCSessionDescription(about["sdp"], "answer")
        )

    async def follow(self, track: Any) -> None:
        with suppress(aiortc.mediastreams.MediaStreamError):
            while True:
                frame = await track.recv()
                if track.kind == "audio":
                    self.heard.append((float(frame.time), frame.to_ndarray()[0, ::2]))
                else:
                    self.seen.append((float(frame.time), frame.to_ndarray(format="gray").mean()))

    def loudness(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the times in seconds and the loudness of the pieces that were heard."""
        times, pieces = zip(*self.heard, strict=True)
        return np.array(times), np.array([np.abs(one.astype(float)).mean() for one in pieces])


@asynccontextmanager
async def talking(calls: Any, microphone: Any = None) -> AsyncIterator[Page]:
    page = Page()
    try:
        await page.dial(calls, microphone)
        yield page
    finally:
        await page.connection.close()
        for task in page.tasks:
            task.cancel()
        await until(lambda: page.key not in calls.calls)


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def test_sound_and_lips_arrive_together_and_voices_are_not_mixed(calls: Any) -> None:
    speech = bytes([SPEECH]) + syllables(75, seed=3).astype("<i2").tobytes()

    async def converse() -> tuple[Page, Page]:
        async with talking(calls) as speaker, talking(calls) as listener:
            with pytest.raises(BusyError):
                await Page().dial(calls)
            await until(lambda: len(speaker.heard) > 10)
            assert speaker.loudness()[1].max() < 5
            await calls.apply(speaker.key, {"bytes": speech})
            await until(lambda: len(speaker.heard) > 200 and len(speaker.seen) > 100)
            with pytest.raises(UserError, match="neither audio nor"):
                await calls.apply(speaker.key, {"text": "{"})
        with pytest.raises(MissingError):
            await calls.apply(speaker.key, {"text": '{"stop": true}'})
        return speaker, listener

    speaker, listener = asyncio.run(converse())
    assert listener.loudness()[1].max() < 5
    heard, loud = speaker.loudness()
    assert loud.max() > 300
    seen, gray = map(np.array, zip(*speaker.seen, strict=True))
    grid = np.arange(1, min(heard[-1], seen[-1]) - 0.5, 0.005)
    level = np.interp(grid + 0.5, heard + 0.01, np.log(1 + loud))
    offsets = np.arange(-0.2, 0.2, 0.005)
    likeness = [
        abs(np.corrcoef(level, np.interp(grid + 0.5 + offset, seen + 0.02, gray))[0, 1])
        for offset in offsets
    ]
    late = offsets[int(np.argmax(likeness))]
    print(f"the lips are {1000 * late:.0f} ms late")
    assert max(likeness) > 0.7 and abs(late) <= 0.04


def test_a_microphone_is_repeated_and_can_be_interrupted(calls: Any) -> None:
    async def converse() -> None:
        microphone = Microphone(syllables(50))
        async with talking(calls, microphone) as page:
            await until(lambda: bool(page.heard) and page.loudness()[1].max() > 300)
            delay = asyncio.get_running_loop().time() - microphone.start
            print(f"the microphone is heard after {delay:.2f} s")
            assert delay < 5  # 0.7 to 0.9 s on two cores with a load of 30
            with pytest.raises(UserError, match="longer than 500"):
                await calls.apply(page.key, {"text": json.dumps({"say": "x" * 501})})

    asyncio.run(converse())

    async def interrupt() -> None:
        async with talking(calls) as page:
            noise = (np.arange(100 * SAMPLES_PER_FRAME) % 40 * 100 - 2000).astype("<i2").tobytes()
            await calls.apply(page.key, {"bytes": bytes([SPEECH]) + noise})
            await until(lambda: bool(page.heard) and page.loudness()[1].max() > 300)
            await calls.apply(page.key, {"text": '{"stop": true}'})
            await until(lambda: bool(page.loudness()[1][-10:].max() < 5))
            assert page.heard[-1][0] < 3.5  # before the speech would have ended

    asyncio.run(interrupt())


def test_sender_reports_relate_sound_and_picture(calls: Any, monkeypatch) -> None:
    """A browser can only synchronize two tracks whose reports have the same clock."""
    # the timestamps of a track start at a random number, here at a small one
    monkeypatch.setattr("aiortc.rtcrtpsender.random32", itertools.count(1).__next__)
    rates, reports = {"audio": 48_000, "video": 90_000}, {"audio": [], "video": []}
    handle = aiortc.RTCRtpReceiver._handle_rtcp_packet

    async def record(receiver: Any, packet: Any) -> None:
        if isinstance(packet, aiortc.rtp.RtcpSrPacket) and packet.sender_info.ntp_timestamp:
            kind, info = receiver.track.kind, packet.sender_info
            reports[kind].append(info.ntp_timestamp / 2**32 - info.rtp_timestamp / rates[kind])
        await handle(receiver, packet)

    async def receive() -> float:
        async with talking(calls) as page:
            monkeypatch.setattr(aiortc.RTCRtpReceiver, "_handle_rtcp_packet", record)
            await until(lambda: min(map(len, reports.values())) >= 3)
            call = calls.calls[page.key]
            assert call.video.begin == 0
            return call.audio.begin

    begin = asyncio.run(receive())
    starts = np.array([*reports["video"], *(start - begin for start in reports["audio"])])
    assert np.ptp(starts) < 0.001


def test_frames_are_sent_at_their_own_times() -> None:
    from talker.tools.calls import Pace

    async def send() -> list[float]:
        pace, times = Pace(slack=0.2), []
        begin = asyncio.get_running_loop().time()
        for late, number in ((0, 0), (0, 1), (0.05, 2), (0, 3), (1, 4), (0, 5)):
            await asyncio.sleep(late)
            pace.arrive(0.04 * number)
            await pace.wait(0.04 * number)
            times.append(asyncio.get_running_loop().time() - begin)
        return times

    times = np.diff(asyncio.run(send()))
    assert np.all(times[[0, 2, 4]] >= 0.039) and times[1] >= 0.049 and times[3] >= 0.99
    pace = Pace(slack=0.2)

    async def hurry() -> float:
        """Return the delay of an answer that arrives 10 s before it was expected."""
        pace.arrive(0)
        pace.arrive(10)
        return pace.start + 10 - asyncio.get_running_loop().time()

    assert 0.19 < asyncio.run(hurry()) <= 0.2


def test_offers_that_cannot_be_used_are_refused(calls: Any) -> None:
    for offer in ("", "v=0", "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=audio x"):
        with pytest.raises(UserError, match="must contain audio and video"):
            asyncio.run(calls.accept("me", offer))
    assert calls.live.sessions == 0
    with pytest.raises(MissingError):
        asyncio.run(calls.accept("you", "v=0"))


def test_a_page_that_never_connects_loses_its_place(calls: Any, monkeypatch) -> None:
    from talker.tools import calls as module

    monkeypatch.setattr(module, "PATIENCE", 0.3)

    async def offer() -> None:
        page = Page()
        page.connection.addTransceiver("audio")
        page.connection.addTransceiver("video")
        await page.connection.setLocalDescription(await page.connection.createOffer())
        await calls.accept("me", page.connection.localDescription.sdp)
        assert calls.live.sessions == 1
        await until(lambda: calls.live.sessions == 0)
        await page.connection.close()

    asyncio.run(offer())
