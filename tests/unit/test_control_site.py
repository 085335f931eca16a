"""The control process's HTTP servers are bounded in connections and in time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from lb.control.site import Site
from workers.contract.errorlog import ErrorLog


async def answer(_request: web.Request) -> web.Response:
    return web.Response(text="here")


@asynccontextmanager
async def served(listening: socket.socket, **limits: float) -> AsyncIterator[Site]:
    app = web.Application()
    app.router.add_get("/", answer)
    site = Site(app, listening, ErrorLog("control"), **limits)  # type: ignore[arg-type]
    await site.start()
    try:
        yield site
    finally:
        await site.close()


def tcp() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
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


def test_one_connection_too_many_is_turned_away() -> None:
    async def scenario() -> None:
        listening = tcp()
        async with served(listening, most=2):
            address = listening.getsockname()
            first, second, third = [await asyncio.open_connection(*address) for _ in range(3)]
            assert await ended(third[0])
            assert await ask(*first) == b"HTTP/1.1 200 OK here"
            assert await ask(*second) == b"HTTP/1.1 200 OK here"
            await close(first[1], third[1])
            async with asyncio.timeout(10):
                while True:  # until the server has seen the end of the first
                    fourth = await asyncio.open_connection(*address)
                    try:
                        assert await ask(*fourth) == b"HTTP/1.1 200 OK here"
                        break
                    except (asyncio.IncompleteReadError, ConnectionResetError):
                        await close(fourth[1])
            await close(second[1], fourth[1])

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
