"""An HTTP server of the control process on a socket that the master made, with bounds for what its clients
may take."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lb.control import httplog
from lb.control.connections import Connection, Connections, Limits
from workers.contract.errorlog import ErrorLog

KEEP_ALIVE: Final = 30.0
_SHUTDOWN: Final = 0.3
_BACKLOG: Final = 128


class Site:
    """Serves `app` on `listening` from `start` to `close`."""

    def __init__(
        self, app: web.Application, listening: socket.socket, log: ErrorLog, limits: Limits | None = None
    ) -> None:
        self._connections = Connections(limits or Limits(), log)
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

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        return Connection(server(), self._connections)

    def _middleware(self) -> Middleware:
        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = self._connections.of(request.protocol)
            if connection is None:  # closed for another one, before its request came through
                return await handler(request)
            connection.begins()
            try:
                return await handler(request)
            finally:
                connection.ends()

        return note
