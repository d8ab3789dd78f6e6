"""Measure the images per second that a page of `talker view` receives on this machine.

    python scripts/measure_view.py me.avatar 256 512

The numbers are the longer sides of the images in pixels. The script starts `talker view`, and takes
the place of the page: it sends camera positions faster than any page, as if somebody dragged the
mouse, and counts the images that arrive. Then it plays speech, which has 25 frames per second.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import numpy as np
import torch
import viser
import zstandard
from scipy.spatial.transform import Rotation
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from talker.clip import FPS, SAMPLES_PER_FRAME
from talker.tools.view_sound import wav_bytes

SECONDS = 5.0
"""Duration of each measurement."""
PERIOD = 0.004
"""Time in seconds between two camera positions."""
START_SECONDS = 120.0
"""Time in seconds within which the viewer must have loaded the avatar."""
TURN = math.radians(10)
"""Largest angle of the camera to the recording camera."""


class Page:
    """The part of a page that shows the images.

    Args:
        socket: connection to the server of viser.
        size: width and height of the page in pixels.
    """

    def __init__(self, socket: Connection, size: int) -> None:
        self.socket, self.size = socket, size
        self.camera: dict[str, Any] = {
            "position": (0.0, 0.0, 0.0),
            "look_at": (0.0, 0.0, 1.0),
            "up": (0.0, -1.0, 0.0),
            "fov": 1.0,
        }
        self.sizes: list[int] = []
        """Number of bytes of each image."""

    def open(self) -> None:
        """Connect to the viewer as a page does, and wait until it shows its first images."""
        self.send_camera(0.0)
        end = time.monotonic() + START_SECONDS
        while not self.sizes and time.monotonic() < end:
            self.receive(1.0)
        self.drag(1.0)

    def receive(self, seconds: float) -> None:
        """Process the messages that arrive within a time."""
        end = time.monotonic() + seconds
        with suppress(TimeoutError):
            while (left := end - time.monotonic()) > 0:
                content = self.socket.recv(left)
                assert isinstance(content, bytes)
                length = int.from_bytes(content[8:16], "little")
                inner = zstandard.decompress(content[16 : 16 + length])
                for message in msgspec.msgpack.decode(inner)["messages"]:
                    self._apply(message)

    def _apply(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "BackgroundImageMessage" and message["rgb_data"] is not None:
            self.sizes.append(len(message["rgb_data"]))
        elif kind == "SetCameraPositionMessage":
            self.camera["position"] = message["position"]
        elif kind == "SetCameraLookAtMessage":
            self.camera["look_at"] = message["look_at"]
        elif kind == "SetCameraUpDirectionMessage":
            self.camera["up"] = message["position"]
        elif kind == "SetCameraFovMessage":
            self.camera["fov"] = message["fov"]

    def send_camera(self, angle: float) -> None:
        """Send the camera, turned about the head by an angle in radians."""
        position, center, up = (
            np.array(self.camera[name]) for name in ("position", "look_at", "up")
        )
        position = center + Rotation.from_rotvec(angle * up).apply(position - center)
        forward = (center - position) / np.linalg.norm(center - position)
        right = np.cross(forward, up)
        axes = np.stack([right, np.cross(forward, right), forward], axis=1)
        message = {
            "type": "ViewerCameraMessage",
            "wxyz": Rotation.from_matrix(axes).as_quat(scalar_first=True).tolist(),
            "position": position.tolist(),
            "fov": self.camera["fov"],
            "near": 0.01,
            "far": 1000.0,
            "image_height": self.size,
            "image_width": self.size,
            "look_at": center.tolist(),
            "up_direction": up.tolist(),
        }
        self.socket.send(msgspec.msgpack.encode(message))

    def drag(self, seconds: float) -> float:
        """Turn the camera for a time, and return the images per second."""
        self.sizes.clear()
        start = time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            self.send_camera(TURN * math.sin(2 * math.pi * now / 4))
            self.receive(PERIOD)
        return len(self.sizes) / now

    def listen(self, port: int, seconds: float) -> float:
        """Play speech for a time, and return the images per second."""
        frames = round((seconds + 1) * FPS)
        noise = np.random.default_rng(0).normal(0, 3000, frames * SAMPLES_PER_FRAME)
        with connect(f"ws://127.0.0.1:{port}", max_size=None) as panel:
            panel.send(wav_bytes(noise.astype(np.int16)))
            while "ready" not in str(panel.recv(START_SECONDS)):
                pass
            panel.send(json.dumps({"time": 0.0, "playing": True}))
            self.sizes.clear()
            self.receive(seconds)
        return len(self.sizes) / seconds


@contextmanager
def viewer(avatar: Path, data: Path | None, size: int, port: int) -> Iterator[Connection]:
    """Start `talker view`, and yield a connection to it."""
    command = [sys.executable, "-m", "talker", "view", avatar, "--port", port, "--size", size]
    command += ["--data", data] if data is not None else []
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(round(START_SECONDS / 0.5)):
            if process.poll() is not None:
                raise SystemExit("The viewer ended.")
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}"):
                break
            time.sleep(0.5)
        protocol: Any = f"viser-v{viser.__version__}"
        with connect(f"ws://127.0.0.1:{port}", subprotocols=[protocol], max_size=None) as page:
            yield page
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("avatar", type=Path)
    parser.add_argument("sizes", type=int, nargs="*", default=[256, 512])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print("size, device, images per second: while dragging, during speech; KB per image")
    for size in arguments.sizes:
        with viewer(arguments.avatar, arguments.data, size, arguments.port) as socket:
            page = Page(socket, size)
            page.open()
            rate = page.drag(SECONDS)
            kilobytes = np.mean(page.sizes) / 1000
            speech = page.listen(arguments.port + 1, SECONDS)
        print(f"{size}, {device}, {rate:.1f}, {speech:.1f}, {kilobytes:.0f}", flush=True)


if __name__ == "__main__":
    main()
