"""Serve a web page on which people make avatars from videos and talk with these avatars.

    talker serve
    talker serve --out studio --port 8000

The page uploads or records a video, shows the progress of its run and the report, and lets the
avatar speak what is typed or said. The same is available as an HTTP interface, which
/api/openapi.json describes.
"""

import asyncio
import ctypes
import importlib.util
import ipaddress
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

import uvicorn
from fastapi import APIRouter, Body, FastAPI, HTTPException, Request, WebSocket
from fastapi import Path as PathValue
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
)
from pydantic import Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talker.core.config import AtLeast1, validated
from talker.errors import UserError
from talker.tools.live import BusyError, Live
from talker.tools.speak import Config as StreamConfig
from talker.tools.studio import NAME, ExistsError, MissingError, Studio

if TYPE_CHECKING:
    from talker.tools.calls import Calls

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("studio.html")
COOKIE = "talker_token"
M_ARENA_MAX = -8
"""Parameter of mallopt in glibc's malloc.h: the number of memory pools."""
MAX_MESSAGE = 4 * 2**20
"""Size in bytes of the largest message of a live session, which is two minutes of audio."""
FREE_DISK = 2 * 10**9
"""Number of bytes that must remain free on the disk after an upload."""
POLICY = (
    "default-src 'self' 'unsafe-inline' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Content security policy of all pages: browsers send no request to any other server."""
STATUS = {ExistsError: 409, MissingError: 404, BusyError: 503}
"""HTTP status of errors; any other `UserError` has the status 422."""
Sdp = Annotated[
    str, Body(embed=True, max_length=100_000, description="Offer of a call over WebRTC.")
]
Name = Annotated[str, PathValue(pattern=NAME, description="Name of a subject or an avatar.")]


@validated
class Config:
    """Options of `talker serve`."""

    out: Path = Path()
    """Folder with the uploads and results; by default, the current folder. The page also offers the
    avatars that are stored as *.avatar files in this folder."""
    host: str = "127.0.0.1"
    """Address to listen on. The default accepts connections from this machine only. Any other
    address requires a token."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the page."""
    token: str = ""
    """Secret that every request must contain. By default, requests need no secret if `host` is this
    machine. Otherwise, a random secret is generated and printed at the start."""
    max_upload_mb: AtLeast1 = 2000
    """Maximum size of an uploaded video in megabytes."""
    max_sessions: AtLeast1 = 4
    """Maximum number of simultaneous live sessions."""
    webrtc: bool = True
    """Let live sessions use WebRTC, which needs the package aiortc and UDP between the page and the
    server. If WebRTC is switched off, not installed or cannot connect, a WebSocket is used."""
    preset: Literal["auto", "draft", "full", "full_2_layers"] = "auto"
    """Preset of the runs, as in `talker run`."""
    configfile: Path | None = None
    """YAML file with settings of the workflow, as in `talker run`."""
    voice: str = "en-us"
    """Voice of espeak-ng that reads typed text."""
    live: StreamConfig = field(default_factory=StreamConfig)
    """Options of live speech, as in `talker speak`."""


@dataclass(frozen=True)
class Guard:
    """Middleware that refuses foreign requests, and forbids pages to contact other servers.

    Requests must contain the token, if there is one. Without a token, they must be addressed to
    this machine by its own name, which prevents DNS rebinding. Requests from pages of other sites
    are refused.
    """

    app: ASGIApp
    token: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if (problem := self.problem(headers, query)) is not None:
            status, text = problem
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": text})
            else:
                await PlainTextResponse(text + "\n", status)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["Content-Security-Policy"] = POLICY
                added["X-Content-Type-Options"] = "nosniff"
                added["Referrer-Policy"] = "no-referrer"
            await send(message)

        if scope["path"] == "/" and "token" in query:  # from now on, the cookie has the token
            response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send_with_policy)

    def problem(self, headers: Headers, query: Mapping[str, list[str]]) -> tuple[int, str] | None:
        """Return why a request is refused: the status and a text; None if it is accepted."""
        host = headers.get("host", "")
        if not self.token and not is_this_machine(urlsplit(f"//{host}").hostname or ""):
            return 400, "The host of the request is not this machine."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "The request comes from a page of another site."
        if self.token:
            given = [
                headers.get("authorization", "").removeprefix("Bearer "),
                cookie_parser(headers.get("cookie", "")).get(COOKIE, ""),
                *query.get("token", []),
            ]
            if not any(secrets.compare_digest(one.encode(), self.token.encode()) for one in given):
                return 401, "The request has no valid token."
        return None


def is_this_machine(host: str) -> bool:
    """Return whether a host name or an address is that of the loopback interface."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def make_app(config: Config, token: str = "") -> FastAPI:
    """Return the application of `talker serve`."""
    options = ["--preset", config.preset]
    if config.configfile is not None:
        options += ["--configfile", str(config.configfile.resolve())]
    studio = Studio(config.out, tuple(options))
    live = Live(studio, config.live, config.voice, config.max_sessions)

    calls = make_calls(live) if config.webrtc else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if calls is not None:
            await calls.close()
        await asyncio.to_thread(studio.close)

    # the pages that FastAPI offers for its interface load scripts from other servers
    app = FastAPI(
        title="talker",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    app.add_middleware(Guard, token=token)
    app.include_router(subject_routes(studio, config))
    if calls is not None:
        app.include_router(call_routes(calls))

    @app.exception_handler(UserError)
    def refuse(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, STATUS.get(type(error), 422))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html")

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        """Return the state of all subjects, and the names of all avatars."""
        subjects = [studio.describe(name) for name in studio.names()]
        return {"subjects": subjects, "avatars": studio.avatars()}

    @app.get("/api/avatars/{name}", response_class=FileResponse)
    def avatar(name: Name) -> FileResponse:
        """Return the file of an avatar."""
        return FileResponse(studio.avatar(name), filename=f"{name}.avatar")

    @app.websocket("/api/avatars/{name}/live")
    async def converse(socket: WebSocket, name: str) -> None:
        await live.converse(socket, name)

    return app


def make_calls(live: Live) -> "Calls | None":
    """Return the calls over WebRTC; None if the package aiortc is not installed."""
    if importlib.util.find_spec("aiortc") is None:
        return None
    from talker.tools.calls import Calls

    return Calls(live)


def call_routes(calls: "Calls") -> APIRouter:
    """Return the part of the interface that is about calls over WebRTC."""
    routes = APIRouter(prefix="/api")

    @routes.post("/avatars/{name}/call", status_code=201)
    async def call(name: Name, sdp: Sdp) -> dict[str, Any]:
        """Take the offer of a page as the body of the request, and answer it."""
        return await calls.accept(name, sdp)

    @routes.post("/calls/{key}", status_code=204)
    async def say(key: str, request: Request) -> None:
        """Take audio or a command, as the WebSocket does."""
        if int(request.headers.get("content-length") or MAX_MESSAGE + 1) > MAX_MESSAGE:
            raise HTTPException(413, f"The message is larger than {MAX_MESSAGE} bytes.")
        content = await request.body()
        as_text = request.headers.get("content-type", "").startswith("application/json")
        message = {"text": content.decode(errors="replace")} if as_text else {"bytes": content}
        await calls.apply(key, message)

    return routes


def subject_routes(studio: Studio, config: Config) -> APIRouter:
    """Return the part of the interface that is about subjects."""
    routes = APIRouter(prefix="/api/subjects/{name}")

    @routes.get("")
    def subject(name: Name) -> dict[str, Any]:
        """Return the state of a subject: its run, the gate, the verdict and its files."""
        return studio.describe(studio.require(name))

    @routes.put("", status_code=201)
    async def upload(name: Name, suffix: str, consent: str, request: Request) -> dict[str, Any]:
        """Take a video as the body of the request, and start its run."""
        limit = config.max_upload_mb * 10**6
        too_large = HTTPException(413, f"The video is larger than {config.max_upload_mb} MB.")
        announced = int(request.headers.get("content-length") or 0)
        if announced > limit:
            raise too_large
        if shutil.disk_usage(studio.out).free < announced + FREE_DISK:
            raise HTTPException(507, "The disk of the server is full.")
        try:
            with studio.reserve(name, suffix.lower(), consent) as video:
                size = 0
                with video.open("xb") as file:
                    async for chunk in request.stream():
                        size += len(chunk)
                        if size > limit:
                            raise too_large
                        await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(studio.accept, video, consent)
        except ClientDisconnect as error:
            raise HTTPException(400, "The upload was interrupted.") from error
        studio.start(name)
        return studio.describe(name)

    @routes.post("/start")
    def start(name: Name) -> dict[str, Any]:
        """Start the run of a subject, or continue it; finished stages are kept."""
        studio.start(studio.require(name))
        return studio.describe(name)

    @routes.post("/stop")
    def stop(name: Name) -> dict[str, Any]:
        """Interrupt the run of a subject, or take it out of the queue."""
        studio.stop(studio.require(name))
        return studio.describe(name)

    @routes.get("/report", response_class=HTMLResponse)
    def report(name: Name) -> FileResponse:
        """Return the report of a subject."""
        file = studio.out / "results" / studio.require(name) / "report.html"
        if not file.is_file():
            raise HTTPException(404, f"{name} has no report yet.")
        return FileResponse(file, media_type="text/html")

    return routes


def share_memory_pools() -> None:
    """Let all threads of this process allocate from one memory pool, where this is possible.

    By default, glibc gives each thread a pool of its own. Images that one thread allocates and
    another one releases leave these pools fragmented, so that the memory of a live session would
    grow by 9 kB per second.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def main(*, config: Config = Config()) -> None:
    """Serve a web page on which people make avatars from videos and talk with these avatars.

    The uploaded videos wait in a queue, and `talker run` processes them one after the other.

    Args:
        config: Options.
    """
    share_memory_pools()
    logging.getLogger("aioice").setLevel(logging.WARNING)
    token = config.token
    if not token and not is_this_machine(config.host):
        token = secrets.token_urlsafe(16)
    app = make_app(config, token)
    query = f"/?token={token}" if token else ""
    logger.info("Open http://%s:%d%s", config.host, config.port, query)
    uvicorn.run(
        app, host=config.host, port=config.port, log_level="warning", ws_max_size=MAX_MESSAGE
    )
