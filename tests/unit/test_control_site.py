"""The control process's HTTP servers are bounded in connections and in time."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from lb.control import peers
from lb.control.connections import Limits
from lb.control.site import Site
from workers.contract.errorlog import ErrorLog

BIG = 32 * 1024 * 1024  # bytes: more than the kernel holds for a client that does not read


async def answer(_request: web.Request) -> web.Response:
    return web.Response(text="here")


async def big(_request: web.Request) -> web.Response:
    return web.Response(body=bytes(BIG))


class Held:
    """A handler that answers when the test says so."""

    def __init__(self) -> None:
        self.running = 0
        self.release = asyncio.Event()

    async def answer(self, _request: web.Request) -> web.Response:
        self.running += 1
        await self.release.wait()
        return web.Response(text="here")

    async def hold(self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Has a request of `connection` under way."""
        before = self.running
        connection[1].write(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(10):
            while self.running == before:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def served(
    listening: socket.socket, held: Held | None = None, log: ErrorLog | None = None, **limits: float
) -> AsyncIterator[Site]:
    app = web.Application()
    app.router.add_get("/", answer)
    app.router.add_get("/big", big)
    app.router.add_get("/held", held.answer if held else answer)
    site = Site(app, listening, log or ErrorLog("control"), Limits(**{"kept": 0, **limits}))  # type: ignore[arg-type]
    await site.start()
    try:
        yield site
    finally:
        await site.close()


@pytest.fixture
def log_fd() -> Iterator[int]:
    fd = os.memfd_create("log")
    yield fd
    os.close(fd)


def tcp() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return await reply(reader)


async def reply(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        return head.partition(b"\r\n")[0] + b" " + await reader.readexactly(4)


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes without a word."""
    async with asyncio.timeout(10):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


async def close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            continue


def test_the_connection_that_waits_longest_makes_room(log_fd: int) -> None:
    async def scenario() -> None:
        listening, held = tcp(), Held()
        async with served(listening, held, ErrorLog("control", log_fd), most=3):
            address = listening.getsockname()
            busy, idle, fresh = [await asyncio.open_connection(*address) for _ in range(3)]
            await held.hold(busy)
            assert await ask(*idle) == await ask(*fresh) == b"HTTP/1.1 200 OK here"
            newest = await asyncio.open_connection(*address)
            assert await ended(idle[0])
            assert await ask(*newest) == await ask(*fresh) == b"HTTP/1.1 200 OK here"
            held.release.set()
            assert await reply(busy[0]) == b"HTTP/1.1 200 OK here"
            await close(busy[1], idle[1], fresh[1], newest[1])

    asyncio.run(scenario())
    assert os.pread(log_fd, 65536, 0).count(b"more connections than the control process serves") == 1


def test_where_all_are_busy_one_more_is_turned_away(log_fd: int) -> None:
    async def scenario() -> None:
        listening, held = tcp(), Held()
        async with served(listening, held, ErrorLog("control", log_fd), most=2):
            address = listening.getsockname()
            first, second = [await asyncio.open_connection(*address) for _ in range(2)]
            await held.hold(first)
            await held.hold(second)
            for _ in range(30):
                third = await asyncio.open_connection(*address)
                assert await ended(third[0])
                await close(third[1])
            held.release.set()
            assert await reply(first[0]) == await reply(second[0]) == b"HTTP/1.1 200 OK here"
            third = await asyncio.open_connection(*address)
            assert await ask(*third) == b"HTTP/1.1 200 OK here"
            await close(first[1], second[1], third[1])

    asyncio.run(scenario())
    assert os.pread(log_fd, 65536, 0).count(b"more connections than the control process serves") == 1


def test_one_address_cannot_take_all_places() -> None:
    async def scenario() -> None:
        listening, held = tcp(), Held()
        async with served(listening, held, most=8, per_peer=2):
            address = listening.getsockname()
            first, second = [await asyncio.open_connection(*address) for _ in range(2)]
            await held.hold(first)
            await held.hold(second)
            third = await asyncio.open_connection(*address)
            assert await ended(third[0])
            other = await asyncio.open_connection(*address, local_addr=("127.0.0.2", 0))
            assert await ask(*other) == b"HTTP/1.1 200 OK here"
            held.release.set()
            await close(first[1], second[1], third[1], other[1])

    asyncio.run(scenario())


def test_some_places_are_kept_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # 127.0.0.1 stands for a machine of its own here: who runs the tests may have no other address.
    monkeypatch.setattr(peers, "is_loopback", lambda address: address != "127.0.0.1")

    async def scenario() -> None:
        listening, held = tcp(), Held()
        async with served(listening, held, most=3, kept=1):
            address = listening.getsockname()
            first, second = [await asyncio.open_connection(*address) for _ in range(2)]
            await held.hold(first)
            await held.hold(second)
            third = await asyncio.open_connection(*address)
            assert await ended(third[0])
            ours = await asyncio.open_connection(*address, local_addr=("127.0.0.2", 0))
            assert await ask(*ours) == b"HTTP/1.1 200 OK here"
            held.release.set()
            await close(first[1], second[1], third[1], ours[1])

    asyncio.run(scenario())


@pytest.mark.parametrize("requests", [b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3])
def test_a_client_that_does_not_read_is_let_go(requests: bytes) -> None:
    async def scenario() -> None:
        listening = tcp()
        async with served(listening, most=1, progress=0.1):
            with socket.create_connection(listening.getsockname()) as stubborn:
                stubborn.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(stubborn, requests)
                assert await loop.sock_recv(stubborn, 5) == b"HTTP/"  # so it is being answered
                async with asyncio.timeout(10):
                    while True:  # until its place is free
                        reader, writer = await asyncio.open_connection(*listening.getsockname())
                        try:
                            assert await ask(reader, writer) == b"HTTP/1.1 200 OK here"
                            break
                        except (asyncio.IncompleteReadError, ConnectionResetError):
                            continue
                        finally:
                            await close(writer)

    asyncio.run(scenario())


def test_a_client_that_goes_on_reading_gets_all() -> None:
    async def scenario() -> None:
        listening = tcp()
        async with served(listening, progress=0.2):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(20):
                await reader.readuntil(b"\r\n\r\n")
                taken = 0
                while taken < BIG:
                    taken += len(await reader.readexactly(BIG // 16))
                    await asyncio.sleep(0.03)  # slowly: it takes longer than one span in all
            await close(writer)

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo"])
def test_a_head_that_does_not_come_ends_the_connection(sent: bytes) -> None:
    async def scenario() -> None:
        listening = tcp()
        async with served(listening, first_request=0.05):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(sent)
            assert await ended(reader)
            await close(writer)

    asyncio.run(scenario())


def test_a_connection_that_asked_in_time_stays() -> None:
    async def scenario() -> None:
        listening = tcp()
        async with served(listening, first_request=0.2):
            slow, quick = [await asyncio.open_connection(*listening.getsockname()) for _ in range(2)]
            assert await ask(*quick) == b"HTTP/1.1 200 OK here"
            assert await ended(slow[0])  # so the time is over
            assert await ask(*quick) == b"HTTP/1.1 200 OK here"
            await close(slow[1], quick[1])

    asyncio.run(scenario())


def test_a_unix_socket_is_served_too(socket_folder: str) -> None:
    async def scenario() -> None:
        path = f"{socket_folder}/a.sock"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen()
        async with served(listening):
            connection = await asyncio.open_unix_connection(path)
            assert await ask(*connection) == b"HTTP/1.1 200 OK here"
            await close(connection[1])
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_unix_connection(path)

    asyncio.run(scenario())
