"""Download optional models from a local server, and list them."""

import bz2
import errno
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from talker.backends import BACKENDS
from talker.backends.weights import FILES
from talker.core import download as download_module
from talker.core.checksum import checksum
from talker.core.download import download
from talker.core.ownership import foreign_outputs
from talker.data.weights import WEIGHTS, Download, Weights, fault_of, location
from talker.errors import UserError
from talker.tools import weights as tool
from talker.tools.weights import fetch, main, state_of

if TYPE_CHECKING:
    from conftest import Synthetic

CONTENT = bytes(range(256)) * 20_000  # 5.12 MB, several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path, and can cut connections, ignore ranges or answer with errors."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: list[int] = []
        """Bytes after which each of the next answers is cut off."""
        self.ranges = True
        self.requests: list[str | None] = []
        """The header Range of every request."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and self.server.ranges and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        if asked and self.server.ranges:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            start = 0
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: self.server.cut_after.pop(0)] if self.server.cut_after else body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server at 127.0.0.1, which replaces the hosts of all addresses."""
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("TALKER_MIRROR", running.address)
        running.files["/net.pth"] = CONTENT
        yield running
        running.shutdown()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Weights:
    """A model of one file at example.org."""
    monkeypatch.setenv("TALKER_WEIGHTS", str(tmp_path / "weights"))
    return make_model(
        Download("net.pth", "https://example.org/net.pth", len(CONTENT), f"sha256:{SHA256}")
    )


def make_model(*files: Download, **others: Any) -> Weights:
    name = files[0].name if len(files) == 1 else "folder"
    texts = ("parsing", "parsing: {}", "https://example.org", "MIT")
    return Weights(name, *texts, files=files, key="net", **others)


def leftovers(folder: Path) -> list[str]:
    """Return the names of partial and temporary files."""
    return [
        path.name for path in folder.glob(".*") if ".part" in path.name or "talker-" in path.name
    ]


def test_a_model_is_fetched_once_and_belongs_to_talker(server: Server, model: Weights) -> None:
    path = fetch(model)
    assert path == location(model) and path.read_bytes() == CONTENT
    assert not leftovers(path.parent)
    assert foreign_outputs([path]) == []
    assert state_of(model) == "valid"
    fetch(model)
    assert server.requests == [None]


def test_a_cut_connection_continues_where_it_was_cut(server: Server, model: Weights) -> None:
    server.cut_after = [3_000_000, 1_000_000]
    assert fetch(model).read_bytes() == CONTENT
    starts = [int(part.removeprefix("bytes=").rstrip("-")) for part in server.requests if part]
    assert len(starts) == 2 and 0 < starts[0] < starts[1] <= 4_000_000


def test_a_later_call_continues(server: Server, model: Weights) -> None:
    server.cut_after = [2_000_000, 0, 0]
    with pytest.raises(UserError, match=r"MB were received and are kept"):
        fetch(model)
    path = location(model)
    assert not path.exists() and leftovers(path.parent) == [".net.pth.part"]
    kept = (path.parent / ".net.pth.part").stat().st_size
    server.requests.clear()
    server.cut_after = []
    assert fetch(model).read_bytes() == CONTENT
    assert server.requests == [f"bytes={kept}-"]


def test_a_server_without_ranges_starts_again(server: Server, model: Weights) -> None:
    server.ranges = False
    server.cut_after = [2_000_000]
    assert fetch(model).read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_downloaded_again(server: Server, model: Weights) -> None:
    path = location(model)
    path.parent.mkdir()
    (path.parent / ".net.pth.part").write_bytes(CONTENT)
    assert fetch(model).read_bytes() == CONTENT
    (path.parent / ".other.part").write_bytes(CONTENT + b"too long")
    download("https://example.org/net.pth", path.parent / ".other.part")
    assert (path.parent / ".other.part").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_deleted(server: Server, model: Weights) -> None:
    server.files["/net.pth"] = CONTENT[::-1]
    with pytest.raises(UserError, match=r"sha256 checksum [0-9a-f]{64}, not .* It was deleted"):
        fetch(model)
    assert not location(model).exists() and not leftovers(location(model).parent)


def test_another_size_is_refused_before_the_download(server: Server, model: Weights) -> None:
    server.files["/net.pth"] = CONTENT[:-1]
    with pytest.raises(
        UserError, match=r"the file on the server has 5,119,999 bytes instead of 5,120,000"
    ):
        fetch(model)
    assert not leftovers(location(model).parent)


def test_a_missing_file_is_reported(server: Server, model: Weights) -> None:
    server.files.clear()
    with pytest.raises(UserError, match=r"net\.pth: the server answered 404 Not Found"):
        fetch(model)
    assert not location(model).exists()


def test_no_network(model: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as unused:  # its port refuses connections after it is closed
        address = unused.address
    monkeypatch.setenv("TALKER_MIRROR", address)
    with pytest.raises(UserError, match=r"cannot be reached.*Check the network connection"):
        fetch(model)
    monkeypatch.setenv("TALKER_MIRROR", "example")
    with pytest.raises(UserError, match="not a valid address"):
        fetch(model)


def test_a_full_disk_is_reported(
    server: Server, model: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"1 MB of free space, but the download needs 5 MB"):
        fetch(model)
    monkeypatch.undo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_reported(server: Server, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        download(f"{server.address}/net.pth", partial)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(partial)


def test_files_of_the_user_are_kept(server: Server, model: Weights) -> None:
    path = location(model)
    path.parent.mkdir()
    path.write_bytes(CONTENT[:100])
    assert state_of(model).startswith("invalid") and "interrupted" in state_of(model)
    with pytest.raises(UserError, match=r"is not the published file: it has 100 bytes"):
        fetch(model)
    assert path.read_bytes() == CONTENT[:100]
    path.write_bytes(CONTENT)
    fetch(model)
    assert server.requests == []


def test_packed_files_are_unpacked(server: Server, model: Weights, tmp_path: Path) -> None:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("folder/net.pth", CONTENT)
    server.files |= {"/net.bz2": bz2.compress(CONTENT), "/net.zip": archive.getvalue()}
    for kind in ("bz2", "zip"):
        file = Download(
            "net.pth", f"https://example.org/net.{kind}", len(CONTENT), f"sha256:{SHA256}", kind
        )
        assert fetch(make_model(file), tmp_path / kind / "net.pth").read_bytes() == CONTENT
        server.files[f"/net.{kind}"] = server.files[f"/net.{kind}"][:1000]
        with pytest.raises(UserError, match="cannot be unpacked"):
            fetch(make_model(file), tmp_path / kind / "again.pth")
        assert not (tmp_path / kind / "again.pth").exists() and not leftovers(tmp_path / kind)


def test_a_model_of_several_files_is_a_folder(server: Server, model: Weights) -> None:
    server.files |= {"/a": b"a", "/b": b"<html>"}
    several = make_model(
        Download("a", "https://x.org/a"), Download("b", "https://x.org/b", begins=b"{")
    )
    with pytest.raises(UserError, match="does not begin like the published file"):
        fetch(several)
    assert state_of(several) == "missing"
    server.files["/b"] = b"{}"
    folder = fetch(several)
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["a", "b"]
    assert state_of(several) == "valid"


def test_restricted_licenses_have_to_be_accepted(
    server: Server, model: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    restricted = make_model(*model.files, restricted=True)
    with pytest.raises(UserError, match=r"restricts its use: MIT.*--accept-license"):
        fetch(restricted)
    monkeypatch.setattr(tool.sys.stdin, "isatty", lambda: True, raising=False)
    for answer, there in (("", False), ("n", False), ("y", True)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        if there:
            fetch(restricted)
        else:
            with pytest.raises(UserError, match="were not accepted"):
                fetch(restricted)
        assert location(restricted).exists() == there


def test_models_without_an_address_are_refused_by_name(model: Weights) -> None:
    with pytest.raises(UserError, match=r"bfm2009.*registration form.*model_files"):
        main("fetch", ("bfm2009",))
    with pytest.raises(UserError, match=r"git clone https://github\.com/ICT-VGL"):
        main("fetch", ("ict",))
    with pytest.raises(UserError, match=r"There is no model 'bisnet'.*bisenet"):
        main("fetch", ("bisnet",))
    with pytest.raises(UserError, match="needs the name of a model"):
        main("fetch")


def test_the_example_is_identified_by_its_git_blob(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    address = "/YudongGuo/AD-NeRF/raw/master/dataset/vids/Obama.mp4"
    server.files[address] = CONTENT
    with pytest.raises(UserError, match=r"git checksum .* not f4a3388f412b5c050666f477f54cc7ea"):
        fetch(WEIGHTS["obama"])
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    published = WEIGHTS["obama"].files[0]
    file = Download(published.name, published.url, checksum=f"git:{blob}")
    example = Weights(**{**vars(WEIGHTS["obama"]), "files": (file,)})
    monkeypatch.setitem(WEIGHTS, "obama", example)
    assert fetch(WEIGHTS["obama"]) == Path("data/obama/obama.mp4")
    assert Path("data/obama/obama.mp4").read_bytes() == CONTENT


def test_checksums(tmp_path: Path) -> None:
    file = tmp_path / "hello"
    file.write_bytes(b"hello\n")
    assert checksum(file, "git") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert checksum(file, "sha1") == "f572d396fae9206628714fb2ce00f72e94f2258f"
    assert fault_of(Download("hello", "", 6, "sha1:0"), file)
    assert fault_of(Download("hello", "", 6), file) is None


def test_every_entry_is_complete() -> None:
    for name, weights in WEIGHTS.items():
        assert weights.key == name
        assert weights.source.startswith("http") and weights.license and weights.purpose
        assert weights.files or weights.manual
        for file in weights.files:
            assert file.url.startswith("https://")
            kind, _, digits = (file.checksum or "").partition(":")
            assert len(digits) == {"sha256": 64, "sha1": 40, "git": 40}[kind]
    for step, names in BACKENDS.items():
        for name in names:
            if FILES.get((step, name)) in ("weights", "model_files"):
                assert name in WEIGHTS


def test_the_list_shows_everything(
    capsys: pytest.CaptureFixture[str], model: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    main()
    text = capsys.readouterr().out
    for name, weights in WEIGHTS.items():
        assert f"\n{name}" in f"\n{text}" and weights.license in text and weights.source in text
        for file in weights.files:
            assert (file.checksum or "unknown") in text
    main("list", ("bisenet",), config=tool.Config(json=True))
    (row,) = json.loads(capsys.readouterr().out)
    assert row["state"] == "missing" and row["size"] == "53,289,463 bytes"


def test_the_command_line_shows_no_traceback(server: Server, tmp_path: Path) -> None:
    environment = os.environ | {"TALKER_WEIGHTS": str(tmp_path), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "talker", "weights", "fetch"]
    for name, message in (
        ("multiclass", "404 Not Found"),
        ("bfm2009", "registration form"),
        ("fan", "--accept-license"),
    ):
        done = subprocess.run(
            [*command, name],
            env=environment,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1


WRAPPER = '''#!{python}
"""`talker` as it would be if the example video were {blob}."""
import dataclasses
from talker.data.weights import WEIGHTS, Weights
from talker.__main__ import main

example = WEIGHTS["obama"]
file = dataclasses.replace(example.files[0], checksum="git:{blob}")
WEIGHTS["obama"] = dataclasses.replace(example, files=(file,))
main()
'''


def test_the_workflow_fetches_and_uses_the_example(
    server: Server, synthetic: "Synthetic", tmp_path: Path
) -> None:
    """The published video is replaced by a synthetic one, which has another checksum."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-s", root / "Snakefile"]
    command += ["--configfile", root / "config/config.yaml", "--config", "example=obama"]
    command += ["--", "data/obama/clip.json"]
    programs = tmp_path / "bin"
    programs.mkdir()
    environment = os.environ | {"PYTHONPATH": str(root), "PATH": f"{programs}:{os.environ['PATH']}"}

    def run() -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    server.files["/YudongGuo/AD-NeRF/raw/master/dataset/vids/Obama.mp4"] = (
        content := synthetic.video.read_bytes()
    )
    (programs / "talker").write_text(WRAPPER.format(python=sys.executable, blob="0" * 40))
    (programs / "talker").chmod(0o755)
    assert "git checksum" in run()
    assert not (tmp_path / "data/obama/obama.mp4").exists()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    (programs / "talker").write_text(WRAPPER.format(python=sys.executable, blob=blob))
    output = run()
    assert (tmp_path / "data/obama/obama.mp4").read_bytes() == content, output
    assert (tmp_path / "data/obama/clip.json").exists(), output
    server.files.clear()
    assert "Nothing to be done" in run()
