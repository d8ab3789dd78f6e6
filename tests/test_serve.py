"""The studio takes videos safely and runs them one by one; its avatars answer each person alone."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import uvicorn
from browser import open_page
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from test_speak import encoder, learned, syllables  # noqa: F401 (fixtures)
from torch import nn

from talker.avatar.model import Avatar
from talker.clip import SAMPLES_PER_FRAME
from talker.core.parallel import one_thread
from talker.dataset import Dataset
from talker.media.audio import write_wav
from talker.media.video_writer import video_writer
from talker.tools import live
from talker.tools.live import MAX_DELAY, START_DELAY, Session, SkippingAvatar
from talker.tools.serve import Config, make_app, share_memory_pools
from talker.tools.speak import Config as StreamConfig
from talker.tools.speak import StreamingAvatar
from talker.tools.studio import Studio

HERE = "http://127.0.0.1:8000"
LIVE = "ws://127.0.0.1:8000/api/avatars/me/live"
CONSENT = {"suffix": "mp4", "consent": "The person agreed in writing."}


class Runs:
    """Takes the place of `talker run` and `talker bundle`; a run lasts until it is released."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.release = threading.Event()
        self.release.set()
        self.stopped = threading.Event()
        self.status = 0

    def execute(self, studio: Studio, command: list[str], log: Path) -> int:
        self.commands.append(command)
        log.write_text("the last words of the run", encoding="utf-8")
        if command[0] == "bundle":
            Path(command[command.index("--file") + 1]).write_bytes(b"avatar")
            return 0
        name = Path(command[1]).stem
        studio.process = self  # pyright: ignore
        while not self.release.is_set():
            if self.stopped.wait(0.01):
                self.stopped.clear()
                return 143
        results = studio.out / "results" / name
        results.mkdir(parents=True, exist_ok=True)
        status = Path(command[command.index("--status") + 1])
        content = {"state": "failed" if self.status else "finished"}
        status.write_text(json.dumps(content), encoding="utf-8")
        if not self.status:
            (results / "report.html").write_text("<p>report")
            (results / "metrics.json").write_text('{"verdict": {"grade": "good"}}')
        return self.status

    def send_signal(self, _: int) -> None:
        self.stopped.set()

    def wait(self, _: float) -> None:
        self.stopped.wait(1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(Studio, "_execute", lambda *arguments: runs.execute(*arguments))
    return runs


@pytest.fixture
def client(tmp_path: Path, runs: Runs) -> Iterator[TestClient]:
    app = make_app(Config(out=tmp_path / "studio", max_upload_mb=1))
    with TestClient(app, base_url=HERE) as client:
        yield client


@pytest.fixture(scope="session")
def video(synthetic, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Half a second of a video with sound."""
    path = tmp_path_factory.mktemp("video") / "me.mp4"
    with video_writer(path, synthetic.wav, crf=30) as write:
        for image in synthetic.images[:12]:
            write(image)
    return path.read_bytes()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def state_of(client: TestClient, name: str) -> str:
    return client.get(f"/api/subjects/{name}").json()["state"]


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_page_contacts_no_other_server(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    assert client.get("/docs").status_code == 404
    assert "/api/subjects/{name}" in client.get("/api/openapi.json").json()["paths"]


def test_a_video_becomes_an_avatar_with_its_consent(client, runs: Runs, video: bytes) -> None:
    answer = client.put("/api/subjects/me", params=CONSENT, content=video)
    assert answer.status_code == 201, answer.text
    wait_until(lambda: state_of(client, "me") == "finished")
    run, bundle = runs.commands
    assert run[0] == "run" and Path(run[1]).read_bytes() == video
    assert any(word.startswith(f"--consent={CONSENT['consent']} (20") for word in bundle)
    one = client.get("/api/state").json()["subjects"][0]
    assert one["report"] and one["avatar"] and one["verdict"]["grade"] == "good"
    assert client.get("/api/subjects/me/report").text == "<p>report"
    assert client.get("/api/avatars/me").content == b"avatar"


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e%2fup", "..%2F..%2Fup", "a%2Fb", ".hidden", "me.avatar", "a b", "-x", "x" * 41,
     "a%00b", "ä", "C:%5Cx", "%7Broot%7D"],
)  # fmt: skip
def test_names_cannot_leave_the_folder(client, video: bytes, tmp_path: Path, name: str) -> None:
    before = files_in(tmp_path)
    answer = client.put(f"/api/subjects/{name}", params=CONSENT, content=video)
    assert answer.status_code in (404, 405, 422)
    assert client.get(f"/api/subjects/{name}/report").status_code in (404, 405, 422)
    assert client.get(f"/api/avatars/{name}").status_code in (404, 405, 422)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "options", "headers", "status"),
    [
        (b"x", {}, {"content-length": str(10 * 10**9)}, 413),
        ([b"x" * 600_000] * 2, {}, {}, 413),
        (b"<html>no video</html>", {}, {}, 422),
        (b"#EXTM3U\nhttp://127.0.0.1/x.ts", {"suffix": "mp4"}, {}, 422),
        (b"", {}, {}, 422),
        (None, {"suffix": "exe"}, {}, 422),
        (None, {"suffix": "../mp4"}, {}, 422),
        (None, {"consent": " "}, {}, 422),
    ],
)
def test_what_is_no_video_with_consent_is_refused(
    client, video: bytes, tmp_path: Path, runs: Runs, content, options, headers, status: int
) -> None:
    content = video if content is None else content
    before = files_in(tmp_path)
    body = iter(content) if isinstance(content, list) else content
    answer = client.put("/api/subjects/me", params=CONSENT | options, content=body, headers=headers)
    assert answer.status_code == status
    assert str(tmp_path) not in answer.text
    assert files_in(tmp_path) == before
    assert not runs.commands


def test_a_video_without_sound_is_refused(client, synthetic, tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    size = synthetic.images.shape[2], synthetic.images.shape[1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, size)
    for image in synthetic.images[:5]:
        writer.write(image)
    writer.release()
    answer = client.put("/api/subjects/me", params=CONSENT, content=path.read_bytes())
    assert answer.status_code == 422
    assert "The file" in answer.json()["detail"]


def test_nothing_is_overwritten(client, video: bytes, tmp_path: Path) -> None:
    answers = []

    def upload() -> None:
        answers.append(client.put("/api/subjects/me", params=CONSENT, content=video).status_code)

    uploads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in uploads:
        thread.start()
    for thread in uploads:
        thread.join()
    assert sorted(answers) == [201, 409, 409, 409]
    (tmp_path / "studio" / "results" / "other").mkdir(parents=True)
    assert client.put("/api/subjects/other", params=CONSENT, content=video).status_code == 409
    assert list((tmp_path / "studio" / "uploads").iterdir()) == [
        tmp_path / "studio" / "uploads" / "me"
    ]


def test_runs_wait_in_one_queue_and_can_be_continued(client, runs: Runs, video: bytes) -> None:
    runs.release.clear()
    for name in ("a", "b", "c"):
        assert client.put(f"/api/subjects/{name}", params=CONSENT, content=video).status_code == 201
    wait_until(lambda: state_of(client, "a") == "running" and len(runs.commands) == 1)
    assert [state_of(client, name) for name in "bc"] == ["waiting", "waiting"]
    assert client.get("/api/subjects/c").json()["position"] == 2
    client.post("/api/subjects/c/stop")
    assert state_of(client, "c") == "new"
    client.post("/api/subjects/a/stop")
    wait_until(lambda: state_of(client, "b") == "running")
    assert state_of(client, "a") == "stopped"
    client.post("/api/subjects/a/start")
    client.post("/api/subjects/a/start")
    runs.release.set()
    wait_until(lambda: [state_of(client, name) for name in "ab"] == ["finished"] * 2)
    assert [command[0] for command in runs.commands] == ["run", "run", "bundle", "run", "bundle"]


def test_a_failed_run_says_why(client, runs: Runs, video: bytes) -> None:
    runs.status = 1
    client.put("/api/subjects/me", params=CONSENT, content=video)
    wait_until(lambda: state_of(client, "me") == "failed")
    assert client.get("/api/subjects/me").json()["run"]["errors"] == ["the last words of the run"]


def test_a_restarted_server_knows_its_subjects(client, runs, video: bytes, tmp_path) -> None:
    runs.release.clear()
    client.put("/api/subjects/me", params=CONSENT, content=video)
    wait_until(lambda: state_of(client, "me") == "running")
    uploads = tmp_path / "studio" / "uploads"
    (uploads / "me" / "status.json").write_text('{"state": "running"}')
    (uploads / "half").mkdir()
    (uploads / "half" / "half.mp4").write_bytes(b"the first bytes")
    again = Studio(tmp_path / "studio")
    assert again.names() == ["me"]
    assert again.describe("me")["state"] == "stopped"
    assert not (uploads / "half").exists()
    again.close()


def test_foreign_pages_and_hosts_are_refused(client, runs: Runs) -> None:
    for headers, status in (
        ({"host": "example.com"}, 400),
        ({"host": "127.0.0.1.example.com"}, 400),
        ({"origin": "http://example.com"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": HERE}, 200),
        ({"host": "localhost:8000"}, 200),
    ):
        assert client.get("/api/state", headers=headers).status_code == status, headers
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(LIVE, headers={"origin": "http://example.com"}),
    ):
        pass


def test_a_token_is_required_where_there_is_one(tmp_path: Path, runs: Runs) -> None:
    app = make_app(Config(out=tmp_path), "secret")
    with TestClient(app, base_url="http://studio.example:8000") as client:
        assert client.get("/").status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        wrong = {"authorization": "Bearer wrong"}
        assert client.get("/api/state", headers=wrong).status_code == 401
        right = {"authorization": "Bearer secret"}
        assert client.get("/api/state", headers=right).status_code == 200
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(LIVE),
        ):
            pass
        assert client.get("/?token=secret").url.query == b""
        assert client.get("/api/state").status_code == 200


class Loud(Avatar):
    """Renders frames whose gray level is the first speech feature of their own 40 ms."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.device_of = nn.Parameter(torch.zeros(1))

    def shared(self) -> None:
        return None

    def speech_to_expression(self, windows):
        return windows[:, 5:7, 0].mean(1, keepdim=True)

    def render_from_expression(self, expression, eye, viewmats, Ks, height, width, shared):
        gray = (0.5 + 0.2 * expression).clamp(0, 1)[:, :, None, None]
        return gray.expand(-1, height, width, 3), torch.ones(len(eye), height, width, 1)


@pytest.fixture
def streaming(mel_only: Path, encoder, learned) -> Callable[..., StreamingAvatar]:  # noqa: F811
    data = Dataset.load(mel_only, 32, "mel")

    def make(_data, _file, config: StreamConfig) -> StreamingAvatar:
        return StreamingAvatar(Loud(), data, encoder, learned, config)

    return make


@pytest.fixture
def talking(client, streaming, tmp_path, monkeypatch) -> Iterator[TestClient]:
    """The client of a server with the avatar `me`."""
    monkeypatch.setattr(live, "load_streaming_avatar", streaming)
    (tmp_path / "studio" / "me.avatar").write_bytes(b"replaced by `streaming`")
    with one_thread():
        yield client


def split(message: bytes) -> tuple[int, np.ndarray, bytes]:
    """Return the number, the sound and the picture of a message."""
    number = int.from_bytes(message[:4], "little")
    end = 4 + 2 * SAMPLES_PER_FRAME
    return number, np.frombuffer(message[4:end], "<i2"), message[end:]


def receive(socket, count: int) -> tuple[np.ndarray, list[bytes]]:
    """Return the sound and the pictures of the next messages, which come in order."""
    numbers, sounds, pictures = zip(
        *(split(socket.receive_bytes()) for _ in range(count)), strict=True
    )
    assert np.array_equal(np.diff(numbers), np.ones(count - 1))
    return np.concatenate(sounds), list(pictures)


def speech_message(samples: np.ndarray, kind: int = live.SPEECH) -> bytes:
    return bytes([kind]) + samples.astype("<i2").tobytes()


def position_of(part: np.ndarray, sound: np.ndarray) -> int:
    """Return where `part` begins in `sound`."""
    found = np.correlate(sound.astype(float), part.astype(float)).argmax()
    assert np.array_equal(sound[found : found + len(part)], part)
    return int(found)


def test_the_avatar_says_what_it_is_sent_and_is_silent_before(talking: TestClient) -> None:
    speech = syllables(25, seed=3)
    with talking.websocket_connect(LIVE) as socket:
        about = socket.receive_json()
        assert about["fps"] == 25 and about["latency"] == pytest.approx(0.4)
        sound, pictures = receive(socket, 6)
        assert not sound.any()
        height, width = cv2.imdecode(np.frombuffer(pictures[0], np.uint8), 1).shape[:2]
        assert (height, width) == (about["height"], about["width"])
        socket.send_bytes(speech_message(speech))
        sound, _ = receive(socket, 50)
        assert position_of(speech, sound) % SAMPLES_PER_FRAME == 0


def test_sessions_do_not_hear_each_other(talking: TestClient) -> None:
    speeches = [syllables(25, seed) for seed in (1, 2, 3)]
    address = LIVE
    with (
        talking.websocket_connect(address) as a,
        talking.websocket_connect(address) as b,
        talking.websocket_connect(address) as c,
    ):
        for socket, speech in zip((a, b, c), speeches, strict=True):
            socket.receive_json()
            socket.send_bytes(speech_message(speech))
        for socket, speech in zip((a, b, c), speeches, strict=True):
            sound, _ = receive(socket, 60)
            begin = position_of(speech, sound)
            assert not sound[:begin].any() and not sound[begin + len(speech) :].any()


def test_it_can_be_interrupted(talking: TestClient) -> None:
    with talking.websocket_connect(LIVE) as socket:
        socket.receive_json()
        socket.send_bytes(speech_message(np.full(100 * 640, 999, np.int16)))
        receive(socket, 30)
        socket.send_bytes(speech_message(np.full(10 * 640, 555, np.int16)))
        sound, _ = receive(socket, 60)
        assert np.flatnonzero(sound == 999).max(initial=0) < np.flatnonzero(sound == 555).min()
        socket.send_bytes(speech_message(np.full(100 * 640, 777, np.int16)))
        receive(socket, 30)
        socket.send_text('{"stop": true}')
        sound, _ = receive(socket, 40)
        assert (sound == 777).any() and not sound[-640:].any()


def test_typed_text_is_spoken(talking: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    words = []

    def speak(text: str, voice: str) -> np.ndarray:
        words.append((text, voice))
        return np.full(1280, 321, np.int16)

    monkeypatch.setattr(live, "speech_samples", speak)
    with talking.websocket_connect(LIVE) as socket:
        socket.receive_json()
        socket.send_text('{"say": "Good morning"}')
        sound, _ = receive(socket, 40)
        assert (sound == 321).sum() == 1280
    assert words == [("Good morning", "en-us")]


def test_messages_that_are_not_understood_are_answered(talking: TestClient) -> None:
    with talking.websocket_connect(LIVE) as socket:
        socket.receive_json()
        for message in ("{", "[1]", json.dumps({"say": "x" * 501})):
            socket.send_text(message)
        socket.send_bytes(b"\x00\x00")
        errors = 0
        for _ in range(100):
            message = socket.receive()
            errors += "error" in (message.get("text") or "")
            if errors == 4:
                break
        assert errors == 4
        receive(socket, 5)


def test_sessions_are_limited_and_need_an_avatar(talking: TestClient) -> None:
    with talking.websocket_connect(LIVE.replace("/me/", "/you/")) as socket:
        assert "no avatar with the name you" in socket.receive_json()["error"]
    address = LIVE
    sockets = [talking.websocket_connect(address) for _ in range(4)]
    for socket in sockets:
        socket.__enter__().receive_json()
    with talking.websocket_connect(address) as fifth, pytest.raises(WebSocketDisconnect) as end:
        fifth.receive_json()
    assert end.value.code == 1013
    for socket in sockets:
        socket.__exit__(None, None, None)
    with talking.websocket_connect(address) as socket:
        assert socket.receive_json()["fps"] == 25


def test_a_failed_session_is_closed(talking: TestClient, monkeypatch, caplog) -> None:
    def fail(_: Session) -> list[bytes]:
        raise ValueError("out of order")

    monkeypatch.setattr(Session, "advance", fail)
    with talking.websocket_connect(LIVE) as socket:
        socket.receive_json()
        with pytest.raises(WebSocketDisconnect) as end:
            socket.receive_bytes()
    assert end.value.code == 1011
    assert "out of order" in caplog.text


def test_a_microphone_waits_little_and_has_no_gaps(streaming) -> None:
    session = Session(streaming(None, None, StreamConfig()))
    voice = np.arange(1, 16_001, dtype=np.int16)
    heard, sent = [], 0
    for tick in range(12):
        for _ in range(2 if tick % 3 else 1 if tick else 2):  # pieces come irregularly
            session.listen(voice[sent : sent + 640])
            sent += 640
        heard.append(session.take(1280))
    sound = np.concatenate(heard)
    begin = int(np.flatnonzero(sound)[0])
    assert begin <= START_DELAY
    session.listen(np.ones(10 * MAX_DELAY, np.int16))
    assert len(session.speech) == MAX_DELAY
    session.stop()
    assert not session.take(1280).any()


def test_a_slow_computer_skips_pictures_but_no_sound(streaming) -> None:
    one = streaming(None, None, StreamConfig(hop=4))
    session = Session(
        SkippingAvatar(one.avatar, one.dataset, one.encoder, one.statistics, one.config)
    )
    session.streaming.late = True
    speech = syllables(80)
    session.say(speech)
    messages = [split(message) for _ in range(25) for message in session.advance()]
    assert [number for number, _, _ in messages] == list(range(len(messages)))
    sound = np.concatenate([sound for _, sound, _ in messages])
    assert np.array_equal(sound[: len(speech)], speech)
    pictures = [bool(picture) for _, _, picture in messages]
    assert 0.2 < np.mean(pictures) <= 0.25 + 1 / len(pictures)


def lag(sound: np.ndarray, pictures: list[bytes]) -> float:
    """Return by how many milliseconds the pictures are later than the loudness of the sound."""
    shown = [k for k, picture in enumerate(pictures) if picture]
    gray = [float(cv2.imdecode(np.frombuffer(pictures[k], np.uint8), 0).mean()) for k in shown]
    level = np.log(1 + np.abs(sound.astype(float)).reshape(len(pictures), -1).mean(1))
    gray = np.interp(np.arange(len(pictures)), shown, gray)
    gray, level = gray - gray.mean(), level - level.mean()
    offsets = np.arange(-6, 7)
    found = np.array([np.dot(np.roll(gray, -k)[10:-10], level[10:-10]) for k in offsets])
    found *= np.sign(found[np.abs(found).argmax()])
    best = int(found.argmax())
    assert 0 < best < len(offsets) - 1
    before, top, after = found[best - 1 : best + 2]
    return 40 * (offsets[best] + 0.5 * (before - after) / (before - 2 * top + after))


@pytest.mark.slow
def test_sound_and_picture_stay_together_for_a_minute(talking: TestClient) -> None:
    """At real time: within 20 ms of each other, bounded delay, and flat memory.

    The environment variable TALKER_SOAK_MINUTES makes it last longer.
    """
    share_memory_pools()
    speech = syllables(500, seed=5)
    lags, memory, arrivals, parts = [], [], [], []
    page = os.sysconf("SC_PAGE_SIZE")
    with talking.websocket_connect(LIVE) as socket:
        socket.receive_json()
        start = time.monotonic()
        for k in range(1500 * int(os.environ.get("TALKER_SOAK_MINUTES", "1"))):
            if k % 500 == 0:
                socket.send_bytes(speech_message(speech))
            if k % 250 == 0:
                pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
                memory.append(int(pages) * page / 1e6)
            parts.append(split(socket.receive_bytes())[1:])
            arrivals.append(time.monotonic() - start - 0.04 * k)
            if k % 500 == 499:
                sounds, pictures = zip(*parts[30:480], strict=True)
                lags.append(lag(np.concatenate(sounds), list(pictures)))
                parts.clear()
    print(f"lags {lags} ms, arrivals {min(arrivals)} to {max(arrivals)} s, memory {memory} MB")
    assert max(map(abs, lags)) < 20
    assert max(arrivals) - min(arrivals) < 2
    assert max(memory[2:]) - min(memory[2:]) < 20


@pytest.fixture
def address(request, streaming, tmp_path: Path, runs: Runs, monkeypatch) -> Iterator[str]:
    """The address of a server, for a browser, with the avatar `me`; the parameter is `webrtc`."""
    monkeypatch.setattr(live, "load_streaming_avatar", streaming)
    (tmp_path / "me.avatar").write_bytes(b"replaced by `streaming`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(Config(out=tmp_path, webrtc=getattr(request, "param", False)))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    running = threading.Thread(target=server.run)
    running.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    running.join(20)
    assert not running.is_alive()


@pytest.mark.browser
def test_a_video_is_uploaded_in_a_browser(address: str, video: bytes, tmp_path: Path) -> None:
    """A bad file is refused with its reason, a good one leads to the report; also on a phone."""
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "good.mp4").write_bytes(video)
    with open_page(address, width=390, height=844) as page:
        page.click("#upload")
        assert "Choose a name" in page.inner_text("#refusal")
        page.fill("#name", "anna")
        page.fill("#consent", "The person agreed.")
        page.set_input_files("#file", tmp_path / "bad.mp4")
        page.click("#upload")
        assert "check the box" in page.inner_text("#refusal")
        page.check("#agreed")
        page.click("#upload")
        page.get_by_text("The file cannot be read as").wait_for()
        page.set_input_files("#file", tmp_path / "good.mp4")
        page.click("#upload")
        page.get_by_text("The avatar is ready.").wait_for()
        assert page.get_by_role("link", name="Report", exact=True).is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.browser
def test_a_person_talks_with_the_avatar_in_a_browser(address: str, tmp_path: Path) -> None:
    """Sound of a fake microphone comes back with a moving picture, both at the same time."""
    write_wav(tmp_path / "voice.wav", syllables(250, seed=4))
    flags = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'voice.wav'}",
    ]
    heard: list[np.ndarray] = []
    shown: set[bytes] = set()

    def receive_message(message: str | bytes) -> None:
        if isinstance(message, bytes):
            _, sound, picture = split(message)
            heard.append(np.abs(sound.astype(float)).mean())
            shown.add(picture)

    with open_page(address, flags=flags) as page:
        page.on("websocket", lambda one: one.on("framereceived", receive_message))
        page.goto(f"{address}#talk/me")
        page.locator("#face[data-frame]").wait_for()
        page.wait_for_timeout(1000)
        assert max(heard) == 0 and len(shown) <= 3
        page.click("#microphone")
        page.wait_for_timeout(4000)
        assert max(heard) > 100 and len(shown) > 10
        offsets = []
        for _ in range(20):
            page.wait_for_timeout(50)
            offsets.append(float(page.get_attribute("#face", "data-offset")))
        assert np.median(offsets) < 40
        page.click("#microphone")
        page.wait_for_timeout(1500)
        heard.clear()
        page.fill("#text", "Good morning")
        page.click("text=Stop speaking")
        page.wait_for_timeout(1000)
        assert max(heard) == 0


@pytest.mark.browser
@pytest.mark.parametrize("address", [True], indirect=True)
def test_a_person_calls_the_avatar_in_a_browser(address: str, tmp_path: Path) -> None:
    """Over WebRTC, a fake microphone comes back with a moving picture."""
    pytest.importorskip("aiortc")
    write_wav(tmp_path / "voice.wav", syllables(250, seed=4))
    flags = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'voice.wav'}",
    ]
    with open_page(f"{address}#talk/me", flags=flags) as page:
        page.locator("#call:not([hidden])").wait_for()
        page.get_by_text("Connected").wait_for()
        page.evaluate(MEASURE_CALL)

        def wait_for(condition: Callable[[dict[str, float]], bool]) -> None:
            for _ in range(150):  # the policy of the page forbids `page.wait_for_function`
                if condition(found := page.evaluate("measured")):
                    return
                page.wait_for_timeout(100)
            raise AssertionError(found)

        wait_for(lambda found: found["frames"] > 10 and found["pieces"] > 10)
        assert page.evaluate("measured.loudest") < 0.001
        page.click("#microphone")
        wait_for(lambda found: found["loudest"] > 0.01 and found["changes"] > 10)
        wait_for(lambda found: found["late"] > 0)  # test_calls.py checks it, without a busy browser
        print(f"sound and picture are {page.evaluate('measured.late'):.0f} ms apart")
        page.click("#microphone")
        page.wait_for_timeout(1500)
        page.evaluate("measured.loudest = 0")
        page.wait_for_timeout(500)
        assert page.evaluate("measured.loudest") < 0.001
        page.fill("#text", "Good morning")
        page.click("text=Stop speaking")
        page.evaluate("location.hash = '#new'")
        page.wait_for_timeout(200)
        assert page.evaluate("call === null")


MEASURE_CALL = """() => {
  window.measured = {frames: 0, changes: 0, pieces: 0, loudest: 0, late: 0};
  const video = document.getElementById("call"), sound = new AudioContext();
  const analyser = sound.createAnalyser(), samples = new Float32Array(2048);
  sound.createMediaStreamSource(video.srcObject).connect(analyser);
  const picture = Object.assign(document.createElement("canvas"), {width: 8, height: 8});
  const pen = picture.getContext("2d", {willReadFrequently: true});
  let last = "";
  const look = () => {
    pen.drawImage(video, 0, 0, 8, 8);
    const now = pen.getImageData(0, 0, 8, 8).data.join();
    measured.frames++;
    measured.changes += now !== last;
    last = now;
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
  setInterval(async () => {
    if (!call) return;
    analyser.getFloatTimeDomainData(samples);
    measured.pieces++;
    measured.loudest = Math.max(measured.loudest, ...samples.map(Math.abs));
    const shown = {};
    (await call.connection.getStats()).forEach((one) => {
      if (one.type === "inbound-rtp") shown[one.kind] = one.estimatedPlayoutTimestamp;
    });
    measured.late = shown.audio && shown.video ? Math.abs(shown.audio - shown.video) : 0;
  }, 50);
}"""
"""Script that measures what a call shows and plays: numbers of frames and of changes between them,
the loudest sample, and the time in ms between the sound and the frame that are presented."""
