"""An aiohttp server: HTTP, and WebSocket echo with compression. Arguments: port, name."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import WSMsgType, web


async def echo(request: web.Request) -> web.StreamResponse:
    """Echoes WebSocket messages; other requests get their body back."""
    socket = web.WebSocketResponse(protocols=("chat",))
    if not socket.can_prepare(request):
        return web.Response(body=await request.read(), headers={"X-Path": request.path_qs})
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def stream(request: web.Request) -> web.StreamResponse:
    """A chunked response of a hundred pieces."""
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(100):
        await response.write(f"{number}\n".encode())
    await response.write_eof()
    return response


async def main() -> None:
    """Serves until it is terminated."""
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_get("/stream", stream)
    application.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1])).start()
    print("listening", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
