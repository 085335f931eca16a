"""The server behind the proxies: `python -m tests.bench.server LISTENERS`. Prints its ports, ends with stdin.

Answers as `tests.bench.wire` says, echoes WebSocket frames (the payload as it comes, still masked: each byte
is compared and none is computed), and sends one frame to every open WebSocket when asked for `/fan/SIZE`.
"""

from __future__ import annotations

import gc
import json
import re
import select
import socket
import sys
from _socket import socket as RawSocket
from typing import Final

from tests.bench import wire
from tests.bench.limits import raise_file_limit
from tests.harness.websocket import accept_token

_CHUNK: Final = 65_536
_FIRST: Final = 2048  # the same, of a connection of which no more came at a time
_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_KEY: Final = re.compile(rb"\r\nsec-websocket-key: *([^\r ]+)", re.IGNORECASE)


def _head(size: int) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Mon, 05 Jan 2026 10:00:00 GMT\r\n"
        b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % size
    )


# The heads of short frames, by length.
_SHORT: Final = [wire.frame_head(length, masked=False) for length in range(126)]
_SMALL: Final = _head(wire.TAIL)
_ANSWERS: Final = {
    letter: _head(wire.SIZES[kind]) + b"x" * (wire.SIZES[kind] - wire.TAIL)
    for letter, kind in ((b"s", "small"), (b"k", "10k"), (b"m", "1m"), (b"p", "post"))
}


class Connection:
    """One connection of a proxy: HTTP until it is upgraded, then frames."""

    __slots__ = (
        "after",
        "buffer",
        "chunk",
        "is_websocket",
        "left",
        "pending",
        "receive",
        "send",
        "server",
        "socket",
        "tail",
    )

    def __init__(self, server: Server, accepted: RawSocket) -> None:
        self.server = server
        self.socket = accepted
        self.receive = accepted.recv
        self.send = accepted.send
        self.chunk = _FIRST  # bytes that are read at a time
        self.is_websocket = False
        self.pending: bytes | memoryview = b""  # not yet taken by the socket; nothing is read meanwhile
        self.after = b""  # what comes after `pending`
        self.buffer = b""  # of a head that is not complete
        self.left = 0  # bytes of the body or frame that are still to come
        self.tail = b""  # of the answer to the request whose body is coming

    def ready(self) -> None:
        """Something has come, or there is room again."""
        if self.pending:
            self.writable()
            return
        data = self.receive(self.chunk)
        if len(data) == self.chunk:
            self.chunk = _CHUNK
        if self.is_websocket:
            self.frames(data)
        else:
            self.requests(data)

    def write(self, data: bytes | memoryview) -> None:
        """Sends `data`, now or when there is room."""
        if self.pending:
            self.after += data
            return
        try:
            sent = self.send(data)
        except BlockingIOError:
            sent = 0
        if sent != len(data):
            self.pending = memoryview(data)[sent:]
            self.server.watch(self, select.EPOLLOUT)

    def writable(self) -> None:
        """There is room again."""
        data, self.pending = self.pending, b""
        self.server.watch(self, select.EPOLLIN)
        self.write(data)
        if self.after and not self.pending:
            after, self.after = self.after, b""
            self.write(after)

    def requests(self, data: bytes) -> None:
        """Requests, or parts of them, have come."""
        if data.startswith(b"GET /s/") and data.endswith(_END) and not self.buffer:
            self.write(_SMALL + data[4 : 4 + wire.PATH] + b" ok\n")
            return
        if not data:
            self.server.close(self)
            return
        self.buffer += data
        if self.left:
            self._body()
            return
        head, end, rest = self.buffer.partition(_END)
        if end:
            self.buffer = rest
            self._answer(head + end)

    def _answer(self, head: bytes) -> None:
        method, target = head.split(b" ", 2)[:2]
        if target.startswith(b"/fan/"):
            self._fan(int(target[5:]))
        elif key := _KEY.search(head):
            self._upgrade(key[1])
        elif method == b"POST":
            length = _LENGTH.search(head)
            self.left = int(length[1]) if length else 0
            self.tail = target[: wire.PATH] + b" ok\n"
            self._body()
        else:
            self._static(_ANSWERS[target[1:2]], target[: wire.PATH] + b" ok\n")

    def _static(self, most: bytes, tail: bytes) -> None:
        """Sends `most`, which is large, and `tail`, without a copy of it where the socket takes both."""
        sent = self.socket.sendmsg((most, tail))
        if sent < len(most):
            self.write(memoryview(most)[sent:])
            self.write(tail)
        elif rest := tail[sent - len(most) :]:
            self.write(rest)

    def _body(self) -> None:
        taken = len(self.buffer)
        self.left -= taken
        self.buffer = b""
        if not self.left:
            self.write(_ANSWERS[b"p"] + self.tail)

    def _upgrade(self, key: bytes) -> None:
        server = self.server
        server.websockets[self] = None
        self.is_websocket = True
        token = server.tokens.get(key)
        if token is None:
            token = server.tokens[key] = accept_token(key.decode()).encode()
        self.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % token
        )

    def _fan(self, size: int) -> None:
        frame = wire.frame_head(size, masked=False) + b"f" * size
        for websocket in self.server.websockets:
            websocket.write(frame)
        self.write(_SMALL + b"f" * wire.TAIL)

    def frames(self, data: bytes) -> None:
        """Frames, or parts of them, have come."""
        if not data:
            self.server.close(self)
            return
        length = len(data) - 6
        if (
            0 <= length < 126
            and data[0] == 0x82
            and data[1] == 0x80 | length
            and not self.left
            and not self.buffer
        ):
            self.write(_SHORT[length] + data[6:])
            return
        self._echo(data)

    def _echo(self, data: bytes) -> None:
        out = []
        while data:
            if self.left:
                piece = data[: self.left]
                out.append(piece)
                self.left -= len(piece)
                data = data[len(piece) :]
                continue
            data, self.buffer = self.buffer + data, b""
            length = data[1] & 127 if len(data) > 1 else 0
            size = 6 + {126: 2, 127: 8}.get(length, 0)
            if len(data) < size:
                self.buffer = data
                break
            self.left = int.from_bytes(data[2 : size - 4], "big") if size > 6 else length
            if data[0] & 15 == 8:
                self.server.close(self)
                return
            out.append(wire.frame_head(self.left, masked=False))
            data = data[size:]
        if out:
            self.write(b"".join(out))


class Server:
    """All listeners and connections, in one loop over epoll(7)."""

    def __init__(self, listeners: int) -> None:
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}  # by descriptor
        self.websockets: dict[Connection, None] = {}
        self.tokens: dict[bytes, bytes] = {}  # Sec-WebSocket-Accept, by key: the load has few
        self.listening: dict[int, RawSocket] = {}
        self.ports: list[int] = []  # where it listens
        for _ in range(listeners):
            listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
            listener.setblocking(False)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # which is inherited
            self.ports.append(int(listener.getsockname()[1]))
            self.listening[listener.fileno()] = listener
            self.poll.register(listener.fileno(), select.EPOLLIN)

    def _accept(self, listener: RawSocket) -> None:
        for _ in range(64):
            try:
                fd, _ = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            accepted = RawSocket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
            accepted.setblocking(False)
            self.connections[fd] = Connection(self, accepted)
            self.poll.register(fd, select.EPOLLIN)

    def watch(self, connection: Connection, events: int) -> None:
        """Waits for `events` on a connection from now on."""
        self.poll.modify(connection.socket.fileno(), events)

    def close(self, connection: Connection) -> None:
        """Closes a connection."""
        del self.connections[connection.socket.fileno()]
        if connection.is_websocket:
            del self.websockets[connection]
        connection.socket.close()

    def run(self, until: int) -> None:
        """Serves until the descriptor `until` is readable."""
        self.poll.register(until, select.EPOLLIN)
        connections, poll = self.connections, self.poll.poll
        while True:
            for fd, _ in poll(-1, 512):
                connection = connections.get(fd)
                if connection is not None:
                    self._serve(connection)
                elif fd == until:
                    return
                elif listener := self.listening.get(fd):
                    self._accept(listener)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.ready()
        except BlockingIOError:
            return
        except OSError:
            self.close(connection)  # the peer reset it; who sees that is the client, and counts it


def main() -> None:
    """See the module."""
    raise_file_limit()
    server = Server(int(sys.argv[1]))
    gc.disable()
    print(json.dumps(server.ports), flush=True)
    server.run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
