"""Calls of `talker serve`: live sessions over WebRTC.

The microphone arrives as a track, and the frames and the audio leave as two tracks with the same
clock. Text, whole speeches and interruptions are requests of their own. aiortc opens UDP ports on
all addresses of this machine, and answers only to a page whose offer the server has accepted.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.clock import current_ntp_time
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import RtcpSrPacket

from talker.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from talker.errors import UserError
from talker.tools.live import Answer, Live, Session, describe_session
from talker.tools.studio import MissingError

logger = logging.getLogger(__name__)

PATIENCE = 15.0
"""Time in seconds in which the page must connect after its offer."""
MAX_HOPS = 3
"""Largest number of hops whose frames or audio wait in a track; older ones are dropped. It is the
same for both, so that they stay together if the network is slow."""
PIECE = SAMPLE_RATE // 50
"""Number of samples of a piece of audio, which becomes one packet of 20 ms."""
ENDED = "closed", "failed"
"""States of a connection that has ended."""


class Pace:
    """The times at which the frames and the audio of a call are sent.

    The frames of a hop are rendered at once. If they were also sent at once, the browser would need
    a larger buffer. A late hop delays those after it, but by at most `slack` seconds.
    """

    def __init__(self, slack: float) -> None:
        self.slack = slack
        self.start = -math.inf
        """Time of the event loop in seconds at which the first frame is sent."""

    def arrive(self, seconds: float) -> None:
        """Adapt to an answer for the time `seconds` that has been rendered."""
        earliest = asyncio.get_running_loop().time() - seconds
        self.start = min(max(self.start, earliest), earliest + self.slack)

    async def wait(self, seconds: float) -> None:
        """Wait until the time at which the frame or the audio for the time `seconds` is sent."""
        while (delay := self.start + seconds - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(delay)


def time_of(frame: av.VideoFrame | av.AudioFrame) -> float:
    """Return the time of a frame of `pack` in seconds."""
    assert frame.time is not None
    return frame.time


class OutgoingTrack(MediaStreamTrack):
    """The frames or the audio of the avatar, of which at most `capacity` wait."""

    def __init__(self, kind: Literal["audio", "video"], capacity: int, pace: Pace) -> None:
        super().__init__()
        self.kind, self.pace = kind, pace
        self.begin: float | None = None
        """Time in seconds of the first frame that was sent."""
        self.waiting: asyncio.Queue[av.VideoFrame | av.AudioFrame] = asyncio.Queue(capacity)

    def put(self, frame: av.VideoFrame | av.AudioFrame) -> None:
        """Append what is sent next."""
        if self.waiting.full():
            self.waiting.get_nowait()
        self.waiting.put_nowait(frame)

    async def recv(self) -> av.VideoFrame | av.AudioFrame:
        """Wait for the next frame or piece of audio, and for the time at which it is sent."""
        frame = await self.waiting.get()
        seconds = time_of(frame)
        await self.pace.wait(seconds)
        if self.begin is None:
            self.begin = seconds
        return frame


def report_time(sender: RTCRtpSender, track: OutgoingTrack, start: int) -> None:
    """Let the sender reports of a track contain the time of its frames.

    From these reports, browsers know which frame belongs to which audio (RFC 3550, section 6.4.1).
    The reports of aiortc contain the time at which a packet was sent. This time includes the
    encoding and all delays of a busy computer, and these differ between frames and audio.

    Args:
        sender: sender of the track, before it has started.
        track: frames or audio.
        start: NTP timestamp of the time 0 of the track.
    """
    encode, send = sender._next_encoded_frame, sender._send_rtcp
    latest = 0  # a report before the first packet contains no time

    async def next_encoded_frame(codec: RTCRtpCodecParameters) -> Any:
        nonlocal latest
        frame = await encode(codec)
        if frame is not None:
            # the RTP timestamps of audio count from the first packet
            begin = track.begin or 0.0 if track.kind == "audio" else 0.0
            latest = start + round((begin + frame.timestamp / codec.clockRate) * 2**32)
        return frame

    async def send_rtcp(packets: list[Any]) -> None:
        for packet in packets:
            if isinstance(packet, RtcpSrPacket):
                packet.sender_info.ntp_timestamp = latest
        await send(packets)

    sender._next_encoded_frame = next_encoded_frame
    sender._send_rtcp = send_rtcp


Packed = tuple[av.VideoFrame | None, list[av.AudioFrame]]


def pack(answer: Answer) -> Packed:
    """Return the frame (None if it was skipped) and the pieces of audio of an answer."""
    image = None
    if answer.image.size:
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(answer.image), "rgb24")
        image = image.reformat(format="yuv420p")
        image.pts, image.time_base = answer.number, Fraction(1, FPS)
    sound = []
    for begin in range(0, SAMPLES_PER_FRAME, PIECE):
        piece = answer.sound[None, begin : begin + PIECE].astype(np.int16)
        frame = av.AudioFrame.from_ndarray(piece, "s16", "mono")
        frame.sample_rate, frame.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        frame.pts = answer.number * SAMPLES_PER_FRAME + begin
        sound.append(frame)
    return image, sound


@dataclass(frozen=True)
class Call:
    """One page that talks with an avatar."""

    session: Session
    connection: RTCPeerConnection
    connected: asyncio.Event
    ended: asyncio.Event
    video: OutgoingTrack
    audio: OutgoingTrack

    @classmethod
    def create(cls, session: Session) -> "Call":
        """Return a call whose connection waits for an offer. It must be called by an event loop."""
        # the default of aiortc asks a server of Google for the public address
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        capacity = MAX_HOPS * session.streaming.config.hop
        pace = Pace((MAX_HOPS - 1) * session.streaming.config.hop / FPS)
        call = cls(
            session,
            connection,
            asyncio.Event(),
            asyncio.Event(),
            OutgoingTrack("video", capacity, pace),
            OutgoingTrack("audio", capacity * SAMPLES_PER_FRAME // PIECE, pace),
        )
        start = current_ntp_time()
        for track in (call.audio, call.video):
            report_time(connection.addTrack(track), track, start)

        @connection.on("connectionstatechange")
        def follow() -> None:
            if connection.connectionState == "connected":
                call.connected.set()
            elif connection.connectionState in ENDED:
                call.hang_up()

        @connection.on("track")
        async def listen(track: MediaStreamTrack) -> None:
            if track.kind == "audio":
                await call.listen(track)

        return call

    def hang_up(self) -> None:
        """End `run`."""
        self.ended.set()
        self.connected.set()

    async def answer(self, offer: str) -> str:
        """Return the SDP of the server's side; UserError if that of the page is not possible."""
        # the names of hidden addresses would have to be looked up by multicast
        lines = [line for line in offer.splitlines() if ".local " not in line]
        sdp = "".join(line + "\r\n" for line in lines)
        try:
            await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            answer = await self.connection.createAnswer()
            if answer is None:
                raise ValueError("it cannot be answered")
            await self.connection.setLocalDescription(answer)
        except Exception as error:  # aiortc raises errors of many types for a wrong description
            await self.connection.close()
            raise UserError(
                f"The offer of the call cannot be used ({error}). It must contain audio and video."
            ) from error
        return self.connection.localDescription.sdp

    async def listen(self, track: MediaStreamTrack) -> None:
        """Pass the audio of a microphone to the session until the track ends."""
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if isinstance(frame, av.AudioFrame):
                    for piece in resampler.resample(frame):
                        self.session.listen(piece.to_ndarray()[0])

    async def send(self, packed: Packed) -> None:
        """Send the frame and the audio of an answer."""
        image, sound = packed
        self.video.pace.arrive(time_of(sound[0]))
        if image is not None:
            self.video.put(image)
        for piece in sound:
            self.audio.put(piece)

    async def run(self) -> None:
        """Send the answers of the session until the page hangs up or is not reachable."""
        ended = asyncio.create_task(self.ended.wait())
        running = None
        try:
            await asyncio.wait_for(self.connected.wait(), PATIENCE)
            running = asyncio.create_task(self.session.run(self.send))
            await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        except TimeoutError:
            logger.info(
                "A page did not connect within %g s after it sent its WebRTC offer.", PATIENCE
            )
        except Exception:
            logger.exception("A live session failed.")
        finally:
            for task in (ended, running):
                if task is not None:
                    task.cancel()
            await self.connection.close()


class Calls:
    """The calls of all pages."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.calls: dict[str, Call] = {}
        self.tasks: set[asyncio.Task] = set()

    async def accept(self, name: str, offer: str) -> dict[str, Any]:
        """Start a call with an avatar, and return its description with the answer to the offer.

        Raises:
            BusyError: there are as many sessions as allowed.
            MissingError: no avatar has this name.
            UserError: the file of the avatar is damaged, or the offer cannot be used.
        """
        with ExitStack() as stack:
            stack.enter_context(self.live.counted())
            file = self.live.studio.avatar(name)
            session = await asyncio.to_thread(self.live.avatars.session, file, pack)
            call = Call.create(session)
            answer = await call.answer(offer)
            counted = stack.pop_all()
        key = secrets.token_urlsafe(16)
        self.calls[key] = call
        task = asyncio.create_task(self._run(key, call, counted))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return {
            **describe_session(session),
            "call": key,
            "sdp": answer,
        }

    async def apply(self, key: str, message: Mapping[str, Any]) -> None:
        """Apply a message to the session of a call, as `Live.apply` does.

        Raises:
            MissingError: the call does not exist.
            UserError: the message is not understood.
        """
        if key not in self.calls:
            raise MissingError("The call has ended.")
        await asyncio.to_thread(self.live.apply, self.calls[key].session, message)

    async def _run(self, key: str, call: Call, counted: ExitStack) -> None:
        with counted:
            try:
                await call.run()
            finally:
                del self.calls[key]

    async def close(self) -> None:
        """End all calls."""
        for call in self.calls.values():
            call.hang_up()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=PATIENCE)
