"""Many WebSockets at once, clients and servers, on one event loop in a thread of its own.

The clients do nothing but answer a Close in kind, and note what they were told, when, and how their
connection ended then; those that `return` come again, as a browser's page would.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from tests.harness import websocket as ws
from tests.harness.client import Address, parse_head

_Result = TypeVar("_Result")
NOT_CLOSED = 1006  # RFC 6455 section 7.4.1: what a client sees that was told nothing


@dataclass
class Life:
    """One connection of a member. `server` is who answered its handshake; `code` is that of the Close that it
    was sent, and `told` when (monotonic); `ended` is when it was over, `reset` whether by a RST."""

    server: str = ""
    status: int = 0
    code: int = NOT_CLOSED
    told: float = 0.0
    ended: float = 0.0
    reset: bool = False


@dataclass
class Member:
    """One client; `lives` are its connections, the last one may be open."""

    lives: list[Life] = field(default_factory=list)
    cookie: str = ""

    @property
    def life(self) -> Life:
        """The last connection."""
        return self.lives[-1]

    @property
    def open(self) -> bool:
        """Whether it has a WebSocket now."""
        return bool(self.lives) and self.life.status == 101 and not self.life.ended


class Crowd:
    """A context manager; `members` are all that ever joined."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crowd", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self._transports: set[asyncio.BaseTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps no reference
        self._over = False

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        self._over = True
        for server in self._servers:
            server.close()
        for transport in tuple(self._transports):
            if isinstance(transport, asyncio.Transport):
                transport.abort()
        while self._transports:
            await asyncio.sleep(0.01)

    def _wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def serve(self, name: str) -> str:
        """Another server; returns its address."""

        async def listen() -> asyncio.Server:
            return await self._loop.create_server(lambda: _Server(self, name), "127.0.0.1", 0, backlog=2048)

        server = self._wait(listen())
        self._servers.append(server)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def join(
        self, address: Address, count: int, *, returns: bool = False, answers: bool = True, cookie: str = ""
    ) -> list[Member]:
        """So many clients more, whose handshakes were answered when this returns."""
        new = [Member(cookie=cookie) for _ in range(count)]

        async def go() -> None:
            for start in range(0, count, 100):  # a listener's queue is not endless
                some = new[start : start + 100]
                await asyncio.gather(*(self._open(one, address, returns, answers) for one in some))

        self._wait(go())
        self.members += new
        return new

    async def _open(self, member: Member, address: Address, returns: bool, answers: bool) -> None:
        answered = self._loop.create_future()
        assert isinstance(address, tuple)

        async def return_to_it() -> None:
            with contextlib.suppress(ConnectionRefusedError):  # it has stopped
                await self._open(member, address, returns, answers)

        def come_again() -> None:
            if returns and not self._over:
                task = self._loop.create_task(return_to_it())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        await self._loop.create_connection(
            lambda: _Client(self, member, answered, come_again, answers=answers), *address
        )
        await answered

    def ended(self) -> list[Life]:
        """All connections that are over, in the order in which they were told so."""
        lives = [life for member in self.members for life in member.lives if life.ended]
        return sorted(lives, key=lambda life: life.told)

    def codes(self) -> set[int]:
        """The codes of all that are over."""
        return {life.code for life in self.ended()}

    def open(self) -> int:
        """How many have a WebSocket now."""
        return sum(member.open for member in self.members)

    def where(self) -> dict[str, int]:
        """How many open ones each server has."""
        found: dict[str, int] = {}
        for member in self.members:
            if member.open:
                found[member.life.server] = found.get(member.life.server, 0) + 1
        return found


def histogram(times: list[float], start: float, spread: float, parts: int) -> list[int]:
    """How many of `times` are in each part of the time; the last has those behind it, too."""
    counts = [0] * parts
    for one in times:
        counts[max(0, min(parts - 1, int((one - start) / spread * parts)))] += 1
    return counts


class _End(asyncio.Protocol):
    """What both sides share: frames."""

    transport: asyncio.Transport

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.buffer = bytearray()
        self.upgraded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.crowd._transports.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.crowd._transports.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.upgraded:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[: end + 4])
            del self.buffer[: end + 4]
            self.upgraded = True
            self.greeted(head)
        for frame in self._frames():
            self.got(frame)

    def _frames(self) -> Iterator[ws.Frame]:
        """Whole frames; only short ones are sent here."""
        while len(self.buffer) >= 2:
            length = self.buffer[1] & 0x7F
            assert length < 126
            size = 2 + length + (4 if self.buffer[1] & 0x80 else 0)
            if len(self.buffer) < size:
                return
            data = bytes(self.buffer[:size])
            del self.buffer[:size]
            yield ws.read_frame(_Bytes(data))

    def greeted(self, head: bytes) -> None:
        raise NotImplementedError

    def got(self, frame: ws.Frame) -> None:
        raise NotImplementedError


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_exactly(self, count: int) -> bytes:
        data, self._data = self._data[:count], self._data[count:]
        return data


class _Server(_End):
    def __init__(self, crowd: Crowd, name: str) -> None:
        super().__init__(crowd)
        self.name = name

    def greeted(self, head: bytes) -> None:
        token = ws.accept_token(parse_head(head).get("sec-websocket-key") or "")
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: %s\r\nX-Server: %s\r\n\r\n" % (token.encode(), self.name.encode())
        )

    def got(self, frame: ws.Frame) -> None:
        if frame.opcode == ws.CLOSE:
            self.transport.write(ws.frame(frame.payload, ws.CLOSE))
            self.transport.close()
        else:
            self.transport.write(ws.frame(frame.payload, frame.opcode))


class _Client(_End):
    def __init__(
        self, crowd: Crowd, member: Member, answered: asyncio.Future[None], over: Any, *, answers: bool
    ) -> None:
        super().__init__(crowd)
        self.member = member
        self.life = Life()
        self.answered = answered
        self.over = over
        self.answers = answers
        member.lives.append(self.life)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        headers = {"Cookie": self.member.cookie} if self.member.cookie else None
        self.transport.write(ws.handshake_bytes(headers=headers)[0])

    def greeted(self, head: bytes) -> None:
        parsed = parse_head(head)
        self.life.status = int(parsed.first_line.split()[1])
        self.life.server = parsed.get("x-server") or ""
        cookie = parsed.get("set-cookie")
        if cookie is not None:
            self.member.cookie = cookie.partition(";")[0]
        self.answered.set_result(None)
        if self.life.status != 101:
            self.transport.close()

    def got(self, frame: ws.Frame) -> None:
        if frame.opcode == ws.CLOSE:
            self.life.code = frame.close_code or 1005
            self.life.told = time.monotonic()
            if self.answers:
                self.transport.write(ws.frame(frame.payload, ws.CLOSE, masked=True))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.life.ended = time.monotonic()
        self.life.told = self.life.told or self.life.ended
        self.life.reset = error is not None
        if not self.answered.done():
            self.answered.set_result(None)
        self.over()
