"""A server in place of the admin API, for the commands that ask it: answers what a test gives it, over a
real socket, and notes what it was asked."""

from __future__ import annotations

import http.server
import socketserver
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from lb.admin.views import (
    EventView,
    ListenerView,
    PoolView,
    ReloadView,
    RouteView,
    ServerView,
    StatusView,
    TunnelView,
    WorkerView,
)


class Asked(NamedTuple):
    """One request. `target` has no prefix of the API."""

    method: str
    target: str
    body: bytes
    authorization: str


class Answer(NamedTuple):
    """One answer: bytes go as they are, the rest as JSON. `status` 0 closes the connection without one."""

    value: object = None
    status: int = 200
    kind: str = "application/json"


class AdminServer:
    """Serves `answers`, by "METHOD target" or by "METHOD path" without a query, while it is entered: on the
    Unix socket `path`, or without one on a port of the loopback. What is not there is a 404."""

    def __init__(self, path: Path | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.release = threading.Event()  # answers with status -1 wait for it
        handler = type("Handler", (_Handler,), {"owner": self})
        if path is not None:
            self._server: socketserver.BaseServer = _UnixServer(str(path), handler)
            self.address = f"unix:{path}"
        else:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            self._server, self.address = server, f"127.0.0.1:{server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> AdminServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def says(self, request: str, value: object, status: int = 200) -> None:
        """From now on `request` is answered with `value` (a problem where `status` says so)."""
        kind = "application/json" if status < 400 else "application/problem+json"
        self.answers[request] = Answer(value, status, kind)

    def bodies(self, request: str) -> list[Any]:
        """What was sent with `request`, decoded."""
        return [
            msgspec.json.decode(one.body) for one in self.asked if f"{one.method} {one.target}" == request
        ]


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: AdminServer

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        target = self.path.removeprefix("/api/v1/")
        assert target != self.path
        self.owner.asked.append(Asked(self.command, target, body, self.headers.get("Authorization", "")))
        answers = self.owner.answers
        bare = f"{self.command} {target.partition('?')[0]}"
        default = Answer({"title": "Not Found", "status": 404}, 404, "application/problem+json")
        answer = answers.get(f"{self.command} {target}", answers.get(bare, default))
        if answer.status == -1:
            self.owner.release.wait(30)
        if answer.status <= 0:
            self.close_connection = True
            return
        data = answer.value if isinstance(answer.value, bytes) else msgspec.json.encode(answer.value)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = _serve


# --- views with values that a test need not name ---------------------------------------------------------


def server_view(name: str = "10.0.0.1:80", **changed: object) -> ServerView:
    """A server of the pool "web" that is up."""
    fields: dict[str, object] = {
        "name": name, "pool": "web", "address": name, "addresses": (name,), "state": "up", "admin": "ready",
        "health": "up", "why": "", "since": 0.0, "ejected_until": 0.0, "weight": 1, "effective_weight": 1.0,
        "backup": False, "max_connections": None, "active": 3, "tunnels": 2, "connections": 4, "idle": 1,
        "requests": 1000, "errors": 7, "retries": 0, "checks_ok": 5, "checks_failed": 0, "ejections": 0,
        "last_check": None, "tunnels_by_worker": {"0": 2}, "empty_by": 0.0,
    }  # fmt: skip
    return msgspec.convert({**fields, **changed}, ServerView)


def pool_view(*servers: ServerView, name: str = "web", queued: int = 0) -> PoolView:
    """A pool of `servers`."""
    return PoolView(
        name=name, balance="round-robin", servers=servers, usable=len(servers), panic=False, queued=queued,
        retries=0, routes=("all",), admission=None,
    )  # fmt: skip


def worker_view(slot: int, **changed: object) -> WorkerView:
    """A worker that serves."""
    fields: dict[str, object] = {
        "slot": slot, "pid": 100 + slot, "state": "serving", "uptime": 90.0, "generation": 1,
        "connections": 5, "tunnels": 2, "crash_safe": 1, "movable": 2, "closing": 0,
        "keeper_pid": 200 + slot, "accepted": 50, "requests": 500, "loop_lag": 0.001,
        "wedged": False, "cpu_seconds": 1.5, "memory_bytes": 40 << 20, "open_files": 20,
    }  # fmt: skip
    return msgspec.convert({**fields, **changed}, WorkerView)


def route_view(name: str = "all", **changed: object) -> RouteView:
    """A route with some traffic."""
    fields: dict[str, object] = {
        "name": name, "host": None, "path": None, "pool": "web", "in_flight": 1, "requests": 1000,
        "tunnels": 4, "client_bytes": 1000, "server_bytes": 2000, "client_messages": 10,
        "server_messages": 20, "handshakes": {"ok": 4}, "errors": 7, "ping_timeouts": 0,
    }  # fmt: skip
    return msgspec.convert({**fields, **changed}, RouteView)


def status_view(**changed: object) -> StatusView:
    """Two workers, a listener, a route, a pool of two servers, all well."""
    listener = ListenerView(
        name="public", bind=("127.0.0.1:80",), tls=False, connections=10, accepted=100, rejected=0,
        rejected_by_reason={}, certificates=(),
    )  # fmt: skip
    fields: dict[str, object] = {
        "version": "1.0", "pid": 99, "config": "/etc/lb/lb.toml", "state": "serving", "ready": True,
        "problems": (), "time": 1000.0, "uptime": 100.0, "generation": 1, "workers_wanted": 2,
        "reloads_succeeded": 0, "reloads_failed": 0, "last_reload": None, "restarts": {},
        "upgrades_succeeded": 0, "upgrades_failed": 0, "last_upgrade": None, "keeper_restarts": {},
        "migrations": {},
        "workers": (worker_view(0), worker_view(1)), "listeners": (listener,), "routes": (route_view(),),
        "pools": (pool_view(server_view(), server_view("10.0.0.2:80")),), "control_pid": 98,
    }  # fmt: skip
    return StatusView(**{**fields, **changed})  # type: ignore[arg-type]


def reload_view(**changed: object) -> ReloadView:
    """A reload that changed nothing."""
    fields: dict[str, object] = {
        "ok": True, "generation": 2, "changes": (), "error": "", "seconds": 0.1, "at": 1000.0,
    }  # fmt: skip
    return msgspec.convert({**fields, **changed}, ReloadView)


def tunnel_view(number: int, **changed: object) -> TunnelView:
    """A tunnel of worker 0."""
    fields: dict[str, object] = {
        "id": f"0-100-{number}", "worker": 0, "route": "all", "pool": "web", "server": "10.0.0.1:80",
        "client": "192.0.2.1", "host": "example.com", "path": "/ws", "request_id": "r", "age": 300.0,
        "idle": 2.0, "client_bytes": 2048, "server_bytes": 100, "client_messages": 4, "server_messages": 5,
        "tls": False, "crash_safe": True,
    }  # fmt: skip
    return msgspec.convert({**fields, **changed}, TunnelView)


def event_view(number: int, text: str, kind: str = "reload") -> EventView:
    """An event."""
    return EventView(id=number, kind=kind, text=text, at=1000.0, fields={})
