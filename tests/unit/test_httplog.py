"""A malformed request is a line of the error log at a bounded rate, not a traceback for each."""

from __future__ import annotations

import asyncio
import os
import socket

from aiohttp import web

from lb.control.site import Site
from workers.contract.errorlog import BURST, ErrorLog


async def send_nonsense(listening: socket.socket, log: ErrorLog, times: int) -> None:
    site = Site(web.Application(), listening, log)
    await site.start()
    try:
        async with asyncio.timeout(20):
            for _ in range(times):
                reader, writer = await asyncio.open_connection(*listening.getsockname())
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
                assert b" 400 " in await reader.readline()
                writer.close()
                await writer.wait_closed()
    finally:
        await site.close()


def test_malformed_requests_are_lines_at_a_bounded_rate() -> None:
    fd = os.memfd_create("log")
    asyncio.run(send_nonsense(socket.create_server(("127.0.0.1", 0)), ErrorLog("control", fd), BURST + 10))
    lines = os.pread(fd, 1 << 20, 0).decode().splitlines()
    os.close(fd)
    assert BURST <= len(lines) < BURST + 10
    assert all('event="http request failed"' in line and "Traceback" not in line for line in lines)
    assert "BadHttpMessage" in lines[0] and "from 127.0.0.1" in lines[0]
