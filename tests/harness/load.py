"""Steady traffic that notices every loss: numbered HTTP requests and numbered WebSocket messages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from types import TracebackType

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(_cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, coroutine: Awaitable[object], timeout: float = 60.0) -> object:
        """Runs `coroutine` there and waits for its result."""

        async def shell() -> object:
            return await coroutine

        return asyncio.run_coroutine_threadsafe(shell(), self.loop).result(timeout)


async def _cancel_others() -> None:
    """Ends every other task, and lets the transports that they close finish."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)


class Backend:
    """An HTTP and WebSocket echo server on an event loop: answers each line of traffic in kind."""

    def __init__(self) -> None:
        self.port = 0
        self.websocket_port = 0
        self.requests = 0

    @property
    def address(self) -> str:
        """The HTTP server's address."""
        return f"127.0.0.1:{self.port}"

    @property
    def websocket_address(self) -> str:
        """The WebSocket server's address."""
        return f"127.0.0.1:{self.websocket_port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Backend]:
        """Serves on two free ports."""
        http = await asyncio.start_server(self._http, "127.0.0.1", 0, backlog=512)
        async with http, serve(_echo, "127.0.0.1", 0, compression=None, ping_interval=None) as websocket:
            self.port = http.sockets[0].getsockname()[1]
            self.websocket_port = next(iter(websocket.sockets)).getsockname()[1]
            yield self

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ", 2)[1]
                self.requests += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # the end of it
            pass
        finally:
            await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


class HttpLoad:
    """Keep-alive connections that send numbered requests until told to stop; `failures` says what was
    lost. A connection that ends between two requests is opened anew, and counted in `reopened`."""

    def __init__(self, port: int, connections: int, pause: float) -> None:
        self._port = port
        self._connections = connections
        self._pause = pause
        self._stopping = asyncio.Event()
        self.done = 0
        self.reopened = 0
        self.failures: list[str] = []

    async def run(self) -> None:
        """Sends until `stop`."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._connections):
                group.create_task(self._one(number))

    def stop(self) -> None:
        """Ends every connection after its current request."""
        self._stopping.set()

    async def _one(self, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        sequence = 0
        while not self._stopping.is_set():
            sequence += 1
            target = f"/{number}/{sequence}".encode()
            if reader.at_eof():
                await _close(writer)
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self.reopened += 1
            try:
                body = await asyncio.wait_for(_exchange(reader, writer, target), 30)
                if body != target:
                    self.failures.append(f"{target!r} was answered with {body!r}")
                self.done += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.failures.append(f"{target!r}: {error!r}")
                reader.feed_eof()
            await asyncio.sleep(self._pause)
        await _close(writer)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: bytes) -> bytes:
    writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: test.example\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        return head
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    if b"\r\nconnection: close\r\n" in head.lower():
        await reader.read()  # its end: no other request may be sent (RFC 9112 section 9.6)
    return body


class WebSocketLoad:
    """WebSockets that echo numbered messages until told to stop; `failures` says what was lost, repeated
    or out of order, and which connection broke."""

    def __init__(self, url: str, connections: int, pause: float) -> None:
        self._url = url
        self._connections = connections
        self._pause = pause
        self._stopping = asyncio.Event()
        self._opened = 0
        self.all_open = threading.Event()
        self.done = 0
        self.failures: list[str] = []

    async def run(self) -> None:
        """Opens all connections, then sends until `stop`."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._connections):
                group.create_task(self._one(number))

    def stop(self) -> None:
        """Ends every connection after its current message."""
        self._stopping.set()

    async def _one(self, number: int) -> None:
        try:
            async with connect(
                self._url, compression=None, ping_interval=None, open_timeout=30
            ) as connection:
                self._opened += 1
                if self._opened == self._connections:
                    self.all_open.set()
                await self._echo(connection, number)
        except Exception as error:
            self.failures.append(f"connection {number}: {error!r}")

    async def _echo(self, connection: ClientConnection, number: int) -> None:
        sequence = 0
        while not self._stopping.is_set():
            sequence += 1
            message = f"{number}:{sequence}"
            await connection.send(message)
            answer = await asyncio.wait_for(connection.recv(), 30)
            if answer != message:
                self.failures.append(f"{message} came back as {answer!r}")
                return
            self.done += 1
            await asyncio.sleep(self._pause)
