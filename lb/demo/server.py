"""A demo server: a page, a JSON echo, a WebSocket echo and a chat room.

`python -m lb.demo.server NAME ADDRESS` prints "ready" when it listens (or what went wrong) and ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import sys
from functools import partial
from typing import Final

import aiohttp
from aiohttp import web

_HERE: Final = pathlib.Path(__file__).parent
_BODY_SHOWN: Final = 1000  # bytes of a request body that the JSON echo shows
_MEMBERS: Final = 200  # of the chat room
_TEXT: Final = 500  # characters of a chat message
_SEND_TIMEOUT: Final = 2.0  # a chat member that reads slower is left out
_PING: Final = 30.0
_CLOSE_TIMEOUT: Final = 1.0  # for the answer to a Close frame


class DemoServer:
    """The handlers of one server, called `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._members: dict[web.WebSocketResponse, str] = {}
        self._sockets: set[web.WebSocketResponse] = set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=1 << 40)  # bodies are read in pieces and not kept
        application.add_routes(
            [
                web.get("/", self.page),
                web.get("/chat", self.page),
                web.get("/ws/echo", self.echo),
                web.get("/ws/chat", self.chat),
                web.route("*", "/api", self.api),
                web.route("*", "/api/{rest:.*}", self.api),
            ]
        )
        application.on_shutdown.append(self._shut_down)
        return application

    async def page(self, request: web.Request) -> web.Response:
        """The pages, with this server's name in them."""
        page = _HERE / ("chat.html" if request.path == "/chat" else "index.html")
        text = page.read_text(encoding="utf-8").replace("{{name}}", self._name)
        return web.Response(text=text, content_type="text/html")

    async def api(self, request: web.Request) -> web.Response:
        """What this server saw of the request, as JSON."""
        shown, size = b"", 0
        async for piece in request.content.iter_any():
            shown += piece[: _BODY_SHOWN - len(shown)]
            size += len(piece)
        seen = {
            "server": self._name,
            "method": request.method,
            "target": request.raw_path,
            "peer": request.remote,
            "headers": [f"{name}: {value}" for name, value in request.headers.items()],
            "body_bytes": size,
            "body": shown.decode("utf-8", "replace"),
        }
        return web.json_response(seen, dumps=partial(json.dumps, indent=1))

    async def echo(self, request: web.Request) -> web.WebSocketResponse:
        """Sends every message back."""
        socket = await self._accept(request)
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    await socket.send_str(message.data)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    await socket.send_bytes(message.data)
        except ConnectionError:
            pass  # the client left while we answered: the end of an echo like any other
        finally:
            self._sockets.discard(socket)
        return socket

    async def chat(self, request: web.Request) -> web.WebSocketResponse:
        """One room: every text goes to all members."""
        if len(self._members) >= _MEMBERS:
            raise web.HTTPServiceUnavailable(text="The room is full.")
        socket = await self._accept(request)
        name = request.query.get("name", "")[:40] or f"guest {len(self._members) + 1}"
        self._members[socket] = name
        try:
            await self._tell("", f"{name} joined; {len(self._members)} here")
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    await self._tell(name, message.data[:_TEXT])
        finally:
            self._sockets.discard(socket)
            del self._members[socket]
            await self._tell("", f"{name} left; {len(self._members)} here")
        return socket

    async def _accept(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(timeout=_CLOSE_TIMEOUT, heartbeat=_PING, max_msg_size=1 << 20)
        await socket.prepare(request)
        self._sockets.add(socket)
        return socket

    async def _tell(self, sender: str, text: str) -> None:
        message = {"server": self._name, "from": sender, "text": text}
        await asyncio.gather(*(self._send(member, message) for member in list(self._members)))

    @staticmethod
    async def _send(member: web.WebSocketResponse, message: dict[str, str]) -> None:
        # A member that left, or reads too slowly, misses the message; its own handler ends it.
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(member.send_json(message), _SEND_TIMEOUT)

    async def _shut_down(self, _: web.Application) -> None:
        closing = (socket.close(code=1001, message=b"demo ends") for socket in list(self._sockets))
        await asyncio.gather(*closing, return_exceptions=True)


async def _serve(name: str, host: str, port: int) -> int:
    runner = web.AppRunner(DemoServer(name).application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        print(os.strerror(error.errno).lower() if error.errno else str(error), flush=True)
        await runner.cleanup()
        return 1
    print("ready", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, _on_input, ended)
    await ended.wait()
    await runner.cleanup()
    return 0


def _on_input(ended: asyncio.Event) -> None:
    if not os.read(0, 1024):
        asyncio.get_running_loop().remove_reader(0)
        ended.set()


def main(arguments: list[str]) -> int:
    """Runs one server. `arguments` are its name and its address."""
    name, address = arguments
    host, _, port = address.rpartition(":")
    return asyncio.run(_serve(name, host.strip("[]"), int(port)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
