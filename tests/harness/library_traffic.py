"""The tunnel ends of `lb.demo.traffic`, spoken by the library `websockets`: `python -m
tests.harness.library_traffic` takes the same commands on its standard input.

The library is strict about frames, compresses with context takeover (so that a lost or repeated byte spoils
all that follows), closes as the standard says, and was written by others.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, WebSocketException

from lb.demo.messages import END, Incoming, Side, Tally, Terms, message

_HANDSHAKES = 16  # at a time


class LibraryEnd:
    """One end, on an open connection."""

    def __init__(self, traffic: LibraryTraffic, side: Side, terms: Terms) -> None:
        self._traffic = traffic
        self._side: Side = side
        self._terms = terms
        self._incoming = Incoming(terms, "c" if side == "s" else "s", traffic.tally)
        self._stopping = asyncio.Event()
        self._ended = False
        self.last = time.monotonic()

    def stop(self) -> None:
        """Sends no more."""
        self._stopping.set()

    def pause(self, now: float) -> float:
        """For how long the next message is overdue."""
        if self._incoming.ended or self._terms.profile == "flood":
            return 0.0
        return max(0.0, now - self.last - 1 / self._terms.rate)

    async def run(self, connection: ClientConnection | ServerConnection) -> None:
        """Sends and receives until both have all."""
        tally = self._traffic.tally
        tally.opened += 1
        self._traffic.ends.add(self)
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send(connection))
                group.create_task(self._receive(connection, sending))
            await (connection.close() if self._side == "c" else connection.wait_closed())
        except* ConnectionClosed:
            pass
        finally:
            self._traffic.ends.discard(self)
        code = connection.close_code
        if self._ended and self._incoming.ended and code == 1000:
            tally.finished += 1
        else:
            tally.closed[str(code)] += 1
            self._traffic.closes.append((time.time(), str(code)))

    async def _send(self, connection: ClientConnection | ServerConnection) -> None:
        number, pause = 0, 0.0 if self._terms.profile == "flood" else 1 / self._terms.rate
        while not self._stopping.is_set():
            payload = message(self._terms, self._side, number)
            number += 1
            self._traffic.tally.sent += 1
            if number % 8 == 0:  # in two frames
                await connection.send([payload[:16], payload[16:]])
            else:
                await connection.send(payload.decode() if number % 2 else payload)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                continue
        await connection.send(message(self._terms, self._side, number, END))
        self._ended = True

    async def _receive(
        self, connection: ClientConnection | ServerConnection, sending: asyncio.Task[None]
    ) -> None:
        while not self._incoming.ended:
            payload = await connection.recv(decode=False)
            self._incoming.take(bytes(payload))
            now = time.monotonic()
            self._traffic.tally.longest = max(self._traffic.tally.longest, self.pause(now))
            self.last = now
        self.stop()
        await sending


class LibraryTraffic:
    """The ends of this process."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.ends: set[LibraryEnd] = set()
        self.closes: list[tuple[float, str]] = []
        self._servers: list[Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes = asyncio.Semaphore(_HANDSHAKES)
        self._stopped = False

    async def run(self) -> None:
        """Obeys until the standard input ends."""
        reader = asyncio.StreamReader()
        pipe = os.fdopen(os.dup(0), "rb", buffering=0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        while line := await reader.readline():
            fields = json.loads(line)
            act: Callable[..., Awaitable[dict[str, Any]]] = getattr(self, f"do_{fields.pop('do')}")
            print(json.dumps(await act(**fields)), flush=True)

    async def do_listen(self, ports: int) -> dict[str, Any]:
        """As there."""
        for _ in range(ports):
            server = await serve(self._handle, "127.0.0.1", 0, compression="deflate", ping_interval=None)
            self._servers.append(server)
        return {"ports": [next(iter(server.sockets)).getsockname()[1] for server in self._servers]}

    async def do_open(
        self, host: str, port: int, first: int, count: int, terms: dict[str, Any]
    ) -> dict[str, Any]:
        """As there."""
        common = msgspec.convert(terms, Terms)
        for number in range(first, first + count):
            opening = self._client(f"ws://{host}:{port}", msgspec.structs.replace(common, tunnel=number))
            task = asyncio.get_running_loop().create_task(opening)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return {}

    async def do_report(self, closes: bool = False) -> dict[str, Any]:
        """As there."""
        now = time.monotonic()
        self.tally.longest = max([self.tally.longest, *(end.pause(now) for end in self.ends)])
        fields = {**self.tally.fields(), "open": len(self.ends)}
        self.tally.longest = 0.0
        return {**fields, "closes": self.closes} if closes else fields

    async def do_stop(self) -> dict[str, Any]:
        """As there."""
        for end in self.ends:
            end.stop()
        return {}

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        await LibraryEnd(self, "s", Terms.parse(connection.request.path)).run(connection)

    async def _client(self, url: str, terms: Terms) -> None:
        async with self._handshakes:
            try:
                connection = await connect(
                    url + terms.target(),
                    compression="deflate" if terms.deflate else None,
                    ping_interval=None,
                    open_timeout=20,
                    proxy=None,
                )
            except (OSError, TimeoutError, WebSocketException):
                self.tally.refused += 1
                return
        await LibraryEnd(self, "c", terms).run(connection)


if __name__ == "__main__":
    asyncio.run(LibraryTraffic().run())
