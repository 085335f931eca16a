"""A served admin API over a control process without a master, and a client that can send what no good client
sends."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from aiohttp import web

from lb.admin.app import admin_app
from lb.control.events import EventLog
from tests.harness.control import StandInControl

Result = TypeVar("Result")


class Answer(NamedTuple):
    """What came back; `body` is decoded where it is JSON."""

    status: int
    headers: dict[str, str]
    body: Any


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        """Connects; `http.client` calls it before the request."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class AdminServer:
    """The API on a Unix socket in `folder` and on a TCP port of loopback, in a thread of its own."""

    def __init__(self, control: StandInControl, folder: str) -> None:
        self.control = control
        self.path = str(Path(folder, "admin.sock"))
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> AdminServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _start(self) -> None:
        self._runner = web.AppRunner(admin_app(self.control), access_log=None, shutdown_timeout=5)
        await self._runner.setup()
        await web.UnixSite(self._runner, self.path).start()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[1][1]

    def stop(self) -> None:
        """Shuts the application down in order."""
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
            self._runner = None

    def call(self, function: Callable[..., Result], *arguments: object, **named: object) -> Result:
        """Calls what belongs to the event loop, in it."""

        async def call() -> Result:
            return function(*arguments, **named)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(20)

    def event(self, kind: str, text: str = "something happened") -> None:
        """Something happens."""
        self.call(EventLog.add, self.control.events, kind, text)

    # --- asking ------------------------------------------------------------------------------------------

    def connection(self, *, tcp: bool = False) -> http.client.HTTPConnection:
        """A connection, not made yet."""
        if tcp:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        return UnixConnection(self.path)

    def ask(
        self, method: str, path: str, body: object = None, *, tcp: bool = False, **headers: str | None
    ) -> Answer:
        """One request on a connection of its own; `path` begins behind /api/v1 unless it is absolute. `body`
        becomes JSON unless it is bytes. Headers are named as `Content_Type`; `None` leaves one out."""
        connection = self.connection(tcp=tcp)
        given: dict[str, str | None] = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if method not in ("GET", "HEAD"):
            given.setdefault("Content-Type", "application/json")
        given.setdefault("Host", "localhost")
        try:
            connection.putrequest(method, path if path.startswith("/") else f"/api/v1/{path}", skip_host=True)
            for name, value in given.items():
                if value is not None:
                    connection.putheader(name, value)
            if data is not None:
                connection.putheader("Content-Length", str(len(data)))
            elif method not in ("GET", "HEAD"):
                connection.putheader("Content-Length", "0")
            connection.endheaders(data)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = "json" in response.headers.get("Content-Type", "") and content
        fields = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, fields, json.loads(content) if is_json else content)

    def get(self, path: str, **headers: str | None) -> Answer:
        """GET over the Unix socket."""
        return self.ask("GET", path, tcp=False, **headers)
