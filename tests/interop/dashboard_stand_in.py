"""An admin API with canned answers, for what a running `lb` seldom says: wedged workers, hostile names,
certificates about to end, silence."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
from aiohttp import web

from lb.admin import views
from lb.dashboard import CONTENT_SECURITY_POLICY, dashboard_page

TOKEN = "a-token-of-the-tests"
HOSTILE = "<img src=x onerror=alert(1)>"
DAY = 86_400


def server(name: str, number: int, **changes: Any) -> views.ServerView:
    """A server that is well."""
    view = views.ServerView(
        name=name,
        pool="chat",
        address=f"10.0.0.{number}:9000",
        addresses=(f"10.0.0.{number}:9000",),
        state="up",
        admin="ready",
        health="up",
        why="",
        since=time.time() - 4000,
        ejected_until=0,
        weight=1,
        effective_weight=1,
        backup=False,
        max_connections=None,
        active=14,
        tunnels=12,
        connections=3,
        idle=2,
        requests=0,
        errors=0,
        retries=0,
        checks_ok=100,
        checks_failed=0,
        ejections=0,
        tunnels_by_worker={"0": 5, "1": 7},
        empty_by=0,
        last_check=views.LastCheck(result="ok", detail="", at=time.time() - 1, seconds=0.0021),
    )
    return msgspec.structs.replace(view, **changes)


def servers() -> list[views.ServerView]:
    """One in each state."""
    now = time.time()
    failed = views.LastCheck(result="connect", detail="connection refused", at=now - 2, seconds=0.001)
    return [
        server("a:9000", 1),
        server(
            "b:9000", 2, state="drain", admin="drain", since=now - 75, effective_weight=0, empty_by=now + 900
        ),
        server(
            "c:9000",
            3,
            state="down",
            health="down",
            why="3 checks failed: connection refused",
            effective_weight=0,
            tunnels=0,
            active=0,
            tunnels_by_worker={},
            last_check=failed,
        ),
        server(
            "d:9000",
            4,
            state="ejected",
            why="5 errors in a row, for 30 s more",
            ejected_until=now + 30,
            effective_weight=0,
            errors=5,
        ),
        server("e:9000", 5, state="starting", why="slow start", weight=10, effective_weight=3.4),
        server(
            "f:9000",
            6,
            state="maint",
            admin="maint",
            effective_weight=0,
            tunnels=1,
            tunnels_by_worker={"1": 1},
        ),
        server(
            HOSTILE, 7, state="unchecked", health="unknown", last_check=None, backup=True, max_connections=50
        ),
    ]


class StandIn:
    """The answers, which a test may change while they are given."""

    def __init__(self) -> None:
        self.servers = servers()
        self.problems: tuple[str, ...] = ("chat/c:9000 is down", "worker 1 is wedged")
        self.silent = False
        self.refuse = ""
        self.control_pid = 4711
        self.waiting = 0
        self.closing = 0
        self.migrations: dict[str, dict[str, int]] = {}
        self.started = time.time() - 93_784
        self.events = [("config-reloaded", "generation 3 is served"), ("server-down", "chat/c:9000 is down")]
        self.changes: list[tuple[str, dict[str, Any]]] = []
        self.closes: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/api/v1/events", self._events)
        app.router.add_get("/api/v1/tunnels", self._tunnels)
        app.router.add_post("/api/v1/tunnels/close", self._close)
        app.router.add_get("/api/v1/config", self._config)
        app.router.add_post("/api/v1/reload", self._reload)
        app.router.add_patch("/api/v1/pools/{pool}/servers/{server}", self._change)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.silent and request.transport is not None:
            request.transport.abort()
        if request.path != "/" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _json(views.Problem(title="a token is needed", status=401), 401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _page(self, request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return web.Response(body=dashboard_page(), content_type="text/html", charset="utf-8", headers=headers)

    async def _status(self, request: web.Request) -> web.Response:
        return _json(self.status())

    async def _tunnels(self, request: web.Request) -> web.Response:
        start = int(request.query.get("cursor") or 0)
        limit = int(request.query["limit"])
        found = [number for number in range(120) if request.query.get("client", "") in f"192.0.2.{number}"]
        page = tuple(_tunnel(number) for number in found[start : start + limit])
        cursor = str(start + limit) if start + limit < len(found) else ""
        return _json(views.TunnelPage(tunnels=page, total=len(found), cursor=cursor, missing=()))

    async def _close(self, request: web.Request) -> web.Response:
        self.closes.append(await request.json())
        return _json(views.Closed(count=1, missing=()))

    async def _config(self, request: web.Request) -> web.Response:
        text = '[listen.public]\nbind = [":8080"]\n\n[[route]]\nname = "chat"\npool = "chat"\n'
        return _json(views.ConfigView(path="/etc/lb/lb.toml", generation=3, text=text))

    async def _reload(self, request: web.Request) -> web.Response:
        outcome = views.ReloadView(
            ok=False, generation=3, changes=(), error="line 3: no", seconds=0.1, at=time.time()
        )
        return _json(outcome)

    async def _change(self, request: web.Request) -> web.Response:
        name, change = request.match_info["server"], await request.json()
        if self.refuse:
            return _json(views.Problem(title=self.refuse, status=409), 409)
        self.changes.append((name, change))
        index = next(index for index, view in enumerate(self.servers) if view.name == name)
        state = "up" if change["admin"] == "ready" else change["admin"]
        changed = msgspec.structs.replace(
            self.servers[index], admin=change["admin"], state=state, since=time.time()
        )
        self.servers[index] = changed
        return _json(changed)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        sent = int(request.query.get("after") or 0)
        with contextlib.suppress(ConnectionError):  # the browser has gone
            await self._send_events(stream, sent)
        return stream

    async def _send_events(self, stream: web.StreamResponse, sent: int) -> None:
        while not self.silent:
            for number, (kind, text) in enumerate(self.events[sent:], sent + 1):
                view = views.EventView(
                    id=number, kind=kind, text=text, at=self.started + self.control_pid + number, fields={}
                )
                await stream.write(f"id: {number}\nevent: {kind}\ndata: {_text(view)}\n\n".encode())
            sent = len(self.events)
            await asyncio.sleep(0.05)

    def status(self) -> views.StatusView:
        """All of it, with counters that grow."""
        up = time.time() - self.started
        pool = views.PoolView(
            name="chat",
            balance="least-conn",
            servers=tuple(self._counted(up)),
            usable=3,
            panic=False,
            queued=0,
            retries=2,
            routes=("chat",),
            admission=views.AdmissionView(
                rate=500.0, burst=1000, queue=5000, waiting=self.waiting, admitted=int(up * 50), refused=4
            ),
        )
        return views.StatusView(
            version="0.1.0",
            form="compiled",
            pid=4000,
            config="/etc/lb/lb.toml",
            state="serving",
            ready=True,
            problems=self.problems,
            time=time.time(),
            uptime=up,
            generation=3,
            workers_wanted=2,
            reloads_succeeded=2,
            reloads_failed=0,
            last_reload=None,
            upgrades_succeeded=1,
            upgrades_failed=0,
            last_upgrade=None,
            restarts={"died": 1},
            keeper_restarts={"SIGSEGV": 2},
            migrations=self.migrations,
            workers=_workers(up, self.closing),
            listeners=_listeners(up),
            routes=_routes(up),
            pools=(pool,),
            control_pid=self.control_pid,
        )

    def _counted(self, up: float) -> list[views.ServerView]:
        return [
            msgspec.structs.replace(view, requests=int(up * 40), errors=int(up * 2) if view.errors else 0)
            for view in self.servers
        ]


def _text(view: views.View) -> str:
    return msgspec.json.encode(view).decode()


def _json(view: views.View, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(view), content_type="application/json", status=status)


def _tunnel(number: int) -> views.TunnelView:
    return views.TunnelView(
        id=f"0-100-{number}",
        worker=number % 2,
        route="chat",
        pool="chat",
        server="a:9000",
        client=f"192.0.2.{number}",
        host="chat.example.com",
        path="/ws",
        request_id="r",
        age=90.0 * number,
        idle=3.0,
        client_bytes=1000 * number,
        server_bytes=3_000_000,
        client_messages=number,
        server_messages=-1,
        tls=number % 2 == 1,
        crash_safe=number % 2 == 0,
    )


def _workers(up: float, closing: int) -> tuple[views.WorkerView, ...]:
    return tuple(
        views.WorkerView(
            slot=slot,
            pid=4001 + slot,
            state="serving",
            uptime=up,
            generation=3,
            connections=40,
            tunnels=30 + slot,
            crash_safe=28,
            movable=29,
            closing=0 if slot else closing,
            keeper_pid=4101 + slot,
            accepted=int(up),
            requests=int(up * 100),
            loop_lag=12.5 if slot else 0.0004,
            wedged=bool(slot),
            cpu_seconds=up * 0.3,
            memory_bytes=48_000_000,
            open_files=90,
        )
        for slot in range(2)
    )


def _listeners(up: float) -> tuple[views.ListenerView, ...]:
    certificates = (
        views.CertificateView(name="a.pem", hosts=("chat.example.com",), not_after=time.time() + 60.5 * DAY),
        views.CertificateView(name="b.pem", hosts=("old.example.com",), not_after=time.time() + 3.5 * DAY),
        views.CertificateView(name="c.pem", hosts=("gone.example.com",), not_after=time.time() - DAY),
    )
    public = views.ListenerView(
        name="public",
        bind=(":8443",),
        tls=True,
        connections=80,
        accepted=int(up * 5),
        rejected=3,
        rejected_by_reason={"limit": 3},
        certificates=certificates,
    )
    return (public,)


def _routes(up: float) -> tuple[views.RouteView, ...]:
    chat = views.RouteView(
        name="chat",
        host="chat.example.com",
        path="/ws/*",
        pool="chat",
        in_flight=4,
        requests=int(up * 200),
        tunnels=61,
        client_bytes=int(up * 4000),
        server_bytes=int(up * 90_000),
        client_messages=int(up * 30),
        server_messages=int(up * 300),
        handshakes={"accepted": 61},
        errors=int(up),
        ping_timeouts=0,
    )
    return (chat,)
