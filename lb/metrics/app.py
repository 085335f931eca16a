"""What monitoring asks over HTTP: /metrics, /healthz and /readyz, and nothing else."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Final

from aiohttp import web

from lb.control.control import Control
from lb.control.figures import Figures
from lb.metrics.collector import ScoreboardCollector
from lb.metrics.exposition import EOF, OPENMETRICS, TEXT, Encoder, wants_gzip, wants_openmetrics
from lb.metrics.overall import SERVING, loop_lag
from lb.metrics.sheet import Sheet

MAX_SCRAPES: Final = 8  # scrapes that may wait for each other; one runs at a time
SLICE: Final = 0.005  # seconds that a scrape keeps the event loop at a time
FRESH: Final = 2.0  # seconds since its last heartbeat after which a worker counts as wedged
_FAST: Final = 1  # zlib's level: a scrape shrinks to a tenth by it, in a fraction of the default's time
_GZIP: Final = 31  # zlib's window bits that stand for gzip


def metrics_app(control: Control) -> web.Application:
    """The application; it needs nothing but `control`, and holds nothing that must be closed."""
    app = web.Application()
    scraper = Scraper(control)
    probes = Probes(control)
    app.router.add_get("/metrics", scraper.metrics)
    app.router.add_get("/healthz", probes.healthz)
    app.router.add_get("/readyz", probes.readyz)
    return app


class Scraper:
    """Answers scrapes, one after the other, in slices between which the control process goes on."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._collector = ScoreboardCollector(control)
        self._encoders = {openmetrics: Encoder(openmetrics=openmetrics) for openmetrics in (False, True)}
        self._generation = control.snapshot.generation
        self._turn = asyncio.Lock()
        self._scrapes = 0

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        if self._scrapes >= MAX_SCRAPES:
            return web.Response(
                status=503, headers={"Retry-After": "1"}, text=f"{MAX_SCRAPES} scrapes wait already\n"
            )
        openmetrics = wants_openmetrics(request.headers.get("Accept", ""))
        gzip = wants_gzip(request.headers.get("Accept-Encoding", ""))
        self._scrapes += 1
        try:
            async with self._turn:
                body = await self._scrape(openmetrics=openmetrics, gzip=gzip)
        finally:
            self._scrapes -= 1
        headers = {
            "Content-Type": OPENMETRICS if openmetrics else TEXT,
            "Vary": "Accept, Accept-Encoding",
            "Cache-Control": "no-store",
        }
        if gzip:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    async def _scrape(self, *, openmetrics: bool, gzip: bool) -> bytes:
        pace = _Pace()
        sheet = Sheet()
        for _ in self._collector.steps(sheet):
            await pace.keep()
        encoder = self._encoder(openmetrics)
        packer = zlib.compressobj(_FAST, zlib.DEFLATED, _GZIP) if gzip else None
        pieces = []
        for page in sheet.pages.values():
            piece = encoder.encode(page).encode()
            pieces.append(piece if packer is None else packer.compress(piece))
            await pace.keep()
        last = EOF.encode() if openmetrics else b""
        pieces.append(last if packer is None else packer.compress(last) + packer.flush())
        return b"".join(pieces)

    def _encoder(self, openmetrics: bool) -> Encoder:
        """What a configuration has named is forgotten with it, or the memory for it would have no bound."""
        if self._generation != self._control.snapshot.generation:
            self._generation = self._control.snapshot.generation
            for encoder in self._encoders.values():
                encoder.forget()
        return self._encoders[openmetrics]


class _Pace:
    """Lets the event loop turn every `SLICE` seconds."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = time.monotonic() + SLICE

    async def keep(self) -> None:
        """To be called between two pieces of work."""
        if time.monotonic() >= self._until:
            await asyncio.sleep(0)
            self._until = time.monotonic() + SLICE


class Probes:
    """Answers who asks whether we live, and whether we serve."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def healthz(self, request: web.Request) -> web.Response:
        """GET /healthz: 200 while the control process lives."""
        return _answer(200, "ok")

    async def readyz(self, request: web.Request) -> web.Response:
        """GET /readyz: 200 while new connections are served, by all workers; else 503 and why not."""
        problems = unready(self._control)
        return _answer(503, "not ready: " + "; ".join(problems)) if problems else _answer(200, "ready")


def unready(control: Control) -> list[str]:
    """Why the load balancer is not ready; empty while it is."""
    status = control.status
    if status.state not in (SERVING, "reloading"):
        return [f"the load balancer is {status.state}"]
    problems = []
    if not any(worker.state == SERVING for worker in status.workers):
        problems.append("no worker serves")
    now = time.monotonic()
    figures = {figure.slot: figure for figure in Figures(control.board, control.snapshot).workers()}
    for worker in status.workers:
        lag = loop_lag(worker, figures.get(worker.slot), now)
        if lag >= FRESH:
            problems.append(f"worker {worker.slot} (pid {worker.pid}) is wedged: no heartbeat for {lag:.1f}s")
    return problems


def _answer(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers={"Cache-Control": "no-store"})
