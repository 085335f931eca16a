"""A python-socketio server that knows only its own sessions. Arguments: port, name."""

from __future__ import annotations

import asyncio
import sys

import socketio  # type: ignore[import-untyped]
from aiohttp import web

server = socketio.AsyncServer(async_mode="aiohttp")
name = sys.argv[2]


@server.event  # type: ignore[untyped-decorator]
async def where(_session: str) -> str:
    """The name of this server."""
    return name


@server.event  # type: ignore[untyped-decorator]
async def echo(_session: str, text: str) -> str:
    """What was said."""
    return text


async def main() -> None:
    """Serves until it is terminated."""
    application = web.Application()
    server.attach(application)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1])).start()
    print("listening", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
