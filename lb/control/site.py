"""An HTTP server of the control process on a socket that the master made: bounded in connections, and in the
time that a client may take for its first request."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lb.control import httplog
from workers.contract.errorlog import ErrorLog

MAX_CONNECTIONS: Final = 256
FIRST_REQUEST: Final = 10.0
KEEP_ALIVE: Final = 30.0
_SHUTDOWN: Final = 0.3
_BACKLOG: Final = 128


class Site:
    """Serves `app` on `listening` from `start` to `close`."""

    def __init__(
        self,
        app: web.Application,
        listening: socket.socket,
        log: ErrorLog,
        *,
        most: int = MAX_CONNECTIONS,
        first_request: float = FIRST_REQUEST,
    ) -> None:
        """`most` connections at the same time; `first_request` are the seconds for a whole head."""
        self._most = most
        self._first_request = first_request
        self._timers: dict[object, asyncio.TimerHandle] = {}  # of connections without a request so far
        app.middlewares.insert(0, self._middleware())
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=httplog.logger(log),
            handle_signals=False,
            keepalive_timeout=KEEP_ALIVE,
            shutdown_timeout=_SHUTDOWN,
        )
        self._listening = listening
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accepts from now on."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        if self._listening.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._protocol, sock=self._listening)
        else:
            self._server = await loop.create_server(self._protocol, sock=self._listening, backlog=_BACKLOG)

    async def close(self) -> None:
        """Accepts no more, and ends what there is."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        for timer in self._timers.values():
            timer.cancel()

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        if len(server.connections) >= self._most:
            return _TurnedAway()
        handler = server()
        loop = asyncio.get_running_loop()
        self._timers[handler] = loop.call_later(self._first_request, self._give_up, handler)
        return handler

    def _give_up(self, handler: web.RequestHandler) -> None:
        del self._timers[handler]
        handler.force_close()

    def _middleware(self) -> Middleware:
        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            timer = self._timers.pop(request.protocol, None)
            if timer is not None:
                timer.cancel()
            return await handler(request)

        return note


class _TurnedAway(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ends it."""
        transport.close()
