"""The connections of an HTTP server of the control process: how many there may be, who goes first where there
are too many, and how long each may take for its first request and for what it was answered."""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from aiohttp import web

from lb.control import peers
from workers.contract.errorlog import ErrorLog

MAX_CONNECTIONS: Final = 256
PER_PEER: Final = 32
KEPT: Final = 16  # places that only loopback addresses and Unix sockets get
FIRST_REQUEST: Final = 10.0
PROGRESS: Final = 10.0
LEAST: Final = 64 * 1024  # bytes that a client must take of an answer in each span of `PROGRESS` seconds
_TOLD_EVERY: Final = 60.0


class Limits(NamedTuple):
    """`most` connections at the same time, `per_peer` of them from one address (an IPv6 /64) over TCP, and
    `kept` of them for those that come from this machine. `first_request`: seconds for a whole head;
    `progress`: seconds in which a client has to take another `LEAST` bytes of its answer."""

    most: int = MAX_CONNECTIONS
    per_peer: int = PER_PEER
    kept: int = KEPT
    first_request: float = FIRST_REQUEST
    progress: float = PROGRESS


class Connections:
    """Who has a place. Where there is none left, the connection that waits longest for its next request is
    closed for the new one; where all have something to do, the new one is turned away."""

    def __init__(self, limits: Limits, log: ErrorLog) -> None:
        self.limits = limits
        self._log = log
        self._places: dict[web.RequestHandler, Connection] = {}  # by what serves it
        self._told = float("-inf")
        self._untold = 0

    def of(self, handler: web.RequestHandler) -> Connection | None:
        """The connection that `handler` serves; `None` where it lost its place."""
        return self._places.get(handler)

    def enter(self, connection: Connection) -> bool:
        """Whether there is a place for `connection`, which has it then until `leave`."""
        limits = self.limits
        peer = connection.peer
        if peer:
            same = [other for other in self._places.values() if other.peer == peer]
            if len(same) >= limits.per_peer and not self._make_room(same, connection):
                return False
        most = limits.most if connection.local else limits.most - limits.kept
        if len(self._places) >= most and not self._make_room(list(self._places.values()), connection):
            return False
        self._places[connection.handler] = connection
        return True

    def leave(self, connection: Connection) -> None:
        """The place of `connection`, if it has one, is free."""
        self._places.pop(connection.handler, None)

    def _make_room(self, among: list[Connection], wanted_by: Connection) -> bool:
        idle = [other for other in among if other.is_idle]
        self._tell(wanted_by)
        if not idle:
            return False
        oldest = min(idle, key=lambda other: other.idle_since)
        self.leave(oldest)
        oldest.end()
        return True

    def _tell(self, wanted_by: Connection) -> None:
        self._untold += 1
        now = time.monotonic()
        if now - self._told < _TOLD_EVERY:
            return
        self._log.warning(
            "more connections than the control process serves",
            peer=wanted_by.peer or "local", open=len(self._places), too_many=self._untold,
        )  # fmt: skip
        self._told = now
        self._untold = 0


class Connection(asyncio.Protocol):
    """One connection, in front of the protocol that serves it.

    Whatever the transport can't pass on at once is reported by it at once (its limit is 0), so a client that
    does not read can hold neither an answer nor a place for longer than `Limits.progress`.
    """

    __slots__ = (
        "_busy", "_connections", "_first", "_left", "_loop", "_transport", "_writing",
        "handler", "idle_since", "local", "peer",
    )  # fmt: skip

    def __init__(self, handler: web.RequestHandler, connections: Connections) -> None:
        self.peer = ""  # what its address counts as; empty on a Unix socket
        self.local = True
        self.idle_since = time.monotonic()
        self.handler = handler
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self._first: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._left = 0  # bytes that waited for the client when it was last looked

    @property
    def is_idle(self) -> bool:
        """Whether neither a request nor an answer is under way."""
        return not self._busy and self._writing is None

    def begins(self) -> None:
        """A request is being handled."""
        self._busy = True
        if self._first is not None:
            self._first.cancel()
            self._first = None

    def ends(self) -> None:
        """It was handled."""
        self._busy = False
        self.idle_since = time.monotonic()

    def end(self) -> None:
        """Closes the connection."""
        self.handler.force_close()

    # --- what the transport says -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to serve it, where there is a place."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self.peer = peers.network(address[0])
            self.local = peers.is_loopback(address[0])
        if not self._connections.enter(self):
            transport.abort()
            return
        transport.set_write_buffer_limits(high=0)
        self.handler.connection_made(transport)
        limit = self._connections.limits.first_request
        self._first = self._loop.call_later(limit, self.end)

    def connection_lost(self, exc: Exception | None) -> None:
        """Frees the place."""
        self._connections.leave(self)
        for timer in (self._first, self._writing):
            if timer is not None:
                timer.cancel()
        self.handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Passes it on."""
        self.handler.data_received(data)

    def eof_received(self) -> None:
        """Passes it on."""
        self.handler.eof_received()

    def pause_writing(self) -> None:
        """Something waits for the client."""
        self.handler.pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has taken all."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        self.idle_since = time.monotonic()
        self.handler.resume_writing()

    def _watch(self) -> None:
        assert self._transport is not None
        self._left = self._transport.get_write_buffer_size()
        self._writing = self._loop.call_later(self._connections.limits.progress, self._look)

    def _look(self) -> None:
        assert self._transport is not None
        if self._left - self._transport.get_write_buffer_size() < LEAST:
            self._transport.abort()
        else:
            self._watch()
