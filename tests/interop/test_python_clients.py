"""The libraries websockets and aiohttp, each as a client, over an aiohttp server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.conftest import StartBalancer
from tests.harness.certificates import Authority
from tests.harness.settings import settings
from tests.interop.conftest import StartServer

pytestmark = pytest.mark.interop

MESSAGES: list[str | bytes] = ["text", b"binary", "", "\u00fc" * 1000, b"x" * 300_000]


async def echo_with_websockets(url: str, context: ssl.SSLContext | None = None) -> None:
    """Messages of all kinds, a ping, fragments, and an orderly end."""
    chat = [Subprotocol("chat")]
    name = "a.example" if context else None
    async with connect(url, subprotocols=chat, ssl=context, server_hostname=name) as client:
        assert client.subprotocol == "chat"
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for message in MESSAGES:
            await client.send(message)
            assert await client.recv() == message
        await asyncio.wait_for(await client.ping(), 5)
        await client.send(["in ", "three ", "fragments"])
        assert await client.recv() == "in three fragments"
        await client.close(4000, "enough")
        with pytest.raises(ConnectionClosed):
            await client.recv()


def test_websockets(balancer: StartBalancer, python_server: StartServer) -> None:
    lb = balancer(settings([f"127.0.0.1:{python_server('python_server.py')}"]))
    asyncio.run(echo_with_websockets(f"ws://127.0.0.1:{lb.port}/echo"))
    (closed,) = lb.wait_access(event="websocket_close")
    assert (closed["close_code"], closed["closed_by"]) == (4000, "client")


def test_websockets_over_tls(balancer: StartBalancer, python_server: StartServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    listen = {"tls": {"certs": [str(authority.issue("a.pem", "a.example"))]}}
    lb = balancer(settings([f"127.0.0.1:{python_server('python_server.py')}"], listen=listen))
    asyncio.run(echo_with_websockets(f"wss://127.0.0.1:{lb.port}/echo", authority.client_context()))


async def talk_with_aiohttp(url: str) -> None:
    """Requests side by side, uploads, a stream, and WebSocket messages."""
    async with aiohttp.ClientSession(url) as session:

        async def post(number: int) -> None:
            body = f"{number} ".encode() * 5000
            async with session.post(f"/post?n={number}", data=body) as response:
                assert (response.status, response.headers["X-Path"]) == (200, f"/post?n={number}")
                assert await response.read() == body

        await asyncio.gather(*(post(number) for number in range(50)))

        async def pieces() -> AsyncIterator[bytes]:
            for number in range(100):
                yield b"%d" % number

        async with session.put("/put", data=pieces()) as response:
            assert await response.read() == b"".join(b"%d" % number for number in range(100))
        async with session.get("/stream") as response:
            assert (await response.text()).split() == [str(number) for number in range(100)]
        async with session.ws_connect("/echo", protocols=("chat",), compress=15) as socket:
            assert socket.protocol == "chat"
            for number in range(200):
                await socket.send_str(f"{number}")
            for number in range(200):
                assert await socket.receive_str() == f"{number}"
            assert await socket.close(code=1000)


def test_aiohttp(balancer: StartBalancer, python_server: StartServer) -> None:
    lb = balancer(settings([f"127.0.0.1:{python_server('python_server.py')}"]))
    asyncio.run(talk_with_aiohttp(f"http://127.0.0.1:{lb.port}"))
