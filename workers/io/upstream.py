"""A connection to a server: connect, send, read, idle, and the proof whether a request ever got there."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, cast

from workers.contract import errors
from workers.contract.cells import ServerCell
from workers.contract.errors import ProxyError, Retry
from workers.core.wheel import NEVER
from workers.io.endpoint import Endpoint
from workers.io.sockets import Socket, opened
from workers.io.tls import Handshake, Stream

if TYPE_CHECKING:
    from workers.io.exchange import Exchange
    from workers.io.server import Server

_CONNECTIONS: Final = int(ServerCell.CONNECTIONS)
_TCP: Final = int(socket.IPPROTO_TCP)
# struct tcp_info of linux/tcp.h: tcpi_bytes_acked.
_BYTES_ACKED: Final = struct.Struct("=120xQ")


class Upstream(Endpoint):
    """One connection to one server; serves one exchange at a time, and waits idle between them."""

    __slots__ = ("began", "broken", "connecting", "exchange", "held", "mark", "reused", "server", "total")

    def __init__(self, server: Server, sock: Socket, exchange: Exchange) -> None:
        super().__init__(server.worker, sock, sock.fileno())
        self.server = server
        self.exchange: Exchange | None = exchange
        self.held = b""  # the beginning of a response head that is not complete
        self.connecting = True
        self.began = time.monotonic()
        self.reused = False  # whether an exchange before this one used it
        self.broken = False  # whether sending failed: what the server said before may still be read
        self.total = 0  # bytes handed to the socket
        self.mark = 0  # `total` before the current exchange
        self.worker.slab.cells[server.base + _CONNECTIONS] += 1

    # --- connecting ----------------------------------------------------------------------------------

    def start(self, sockaddr: object) -> None:
        """Connects without waiting; the exchange hears `connected` or `upstream_failed`.

        The request is offered at once: nearby the connection stands by then, and farther off it waits in
        `out` as it would for a slow server. That saves two rounds through epoll and a getsockopt.
        """
        result = cast(Socket, self.sock).connect_ex(sockaddr)
        if result in (0, errno.EINPROGRESS):
            if result == 0:
                self._is_connected()
            self._established()
        else:  # EAGAIN is a Unix socket whose accept queue is full
            self._connect_failed(os.strerror(result))

    def _is_connected(self) -> None:
        self.connecting = False
        self.server.connected(time.monotonic() - self.began)

    def _established(self) -> None:
        self.resume()
        if self.exchange is not None:
            self.exchange.connected()

    def _connect_failed(self, detail: str) -> None:
        self._fail(ProxyError(errors.CONNECT_FAILED, side="upstream", retry=Retry.SAFE, detail=detail))

    def _fail(self, error: ProxyError) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.upstream_failed(error)
        else:
            self.close()

    # --- an exchange ---------------------------------------------------------------------------------

    def attach(self, exchange: Exchange) -> None:
        """An idle connection serves again."""
        self.exchange = exchange
        self.reused = True
        self.mark = self.total

    def send(self, data: bytes | memoryview) -> None:
        """Sends a piece of the request; what a broken connection can't take is dropped, since its server
        has stopped reading, and the response (or the reset) is still to come."""
        if self.broken:
            return
        self.total += len(data)
        self.write(data)
        if self.connecting and len(self.out) < len(data) and not self.broken and self.fd >= 0:
            self._is_connected()

    def on_readable(self) -> None:
        exchange = self.exchange
        worker = self.worker
        if exchange is None:
            # An idle connection speaks only to close; anything else would answer a question not asked.
            self.close()
            return
        if exchange.client.out:
            self.pause()  # the client is slow; its `send` timeout runs, and it resumes us
            if not self.out:
                self.deadline = NEVER
            return
        try:
            size = self.sock.recv_into(worker.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if self.connecting:
                self._connect_failed(str(error))
            else:
                exchange.upstream_lost(error)
            return
        if size == 0:
            self.pause()
            exchange.upstream_lost(None)
            return
        exchange.receive(size)

    def _on_writable(self) -> None:
        before = len(self.out)
        super()._on_writable()
        if self.connecting and not self.broken and len(self.out) < before:
            self._is_connected()
            if self.exchange is not None:
                self.exchange.upstream_drained()

    def on_drained(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_drained()

    def on_blocked(self) -> None:
        timeouts = self.server.pool.spec.timeouts
        self.expect(timeouts.connect if self.connecting else timeouts.body_idle)

    def on_error(self, error: OSError) -> None:
        if self.connecting:
            self._connect_failed(str(error))
            return
        self.broken = True
        self.out = b""
        self.unwatch_writing()
        if self.exchange is not None:
            self.exchange.upstream_drained()

    def on_deadline(self) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()
        elif self.connecting:
            refusal = errors.CONNECT_TIMEOUT
            exchange.upstream_failed(ProxyError(refusal, side="upstream", retry=Retry.SAFE))
        else:
            exchange.upstream_timeout()

    def nothing_received(self) -> bool:
        """Whether the kernel proves that no byte of the current exchange reached a server that has sent its
        end: none of them was acknowledged by then (one more is counted for SYN). Only for plain TCP, and
        only after an end: a reset acknowledges nothing. `False` when not provable."""
        if self.secure or self.server.spec.path is not None or self.fd < 0:
            return False
        try:
            info = cast(Socket, self.sock).getsockopt(_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        except OSError:
            return False
        if len(info) < _BYTES_ACKED.size:
            return False  # an old kernel
        (acknowledged,) = _BYTES_ACKED.unpack(info)
        return bool(acknowledged <= self.mark + 1)

    def park(self) -> None:
        """The exchange is over and the connection clean: wait for the next, or close."""
        self.exchange = None
        if self.fd < 0:
            return
        self.resume()
        if self.server.park(self):
            self.expect(self.server.pool.idle_time)
        else:
            self.close()

    def abandon(self) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.client.abandon()
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            server = self.server
            self.worker.slab.cells[server.base + _CONNECTIONS] -= 1
            if self.exchange is None and self in server.idle:
                server.unpark(self)
            super().close()

    def release(self) -> Stream:
        self.worker.slab.cells[self.server.base + _CONNECTIONS] -= 1
        return super().release()


class TlsUpstream(Upstream):
    """A connection to a server that speaks TLS."""

    __slots__ = ()

    def start(self, sockaddr: object) -> None:
        self.expect(self.server.pool.spec.timeouts.connect)  # with the handshake
        result = cast(Socket, self.sock).connect_ex(sockaddr)
        if result == 0:
            self._begin_tls()
        elif result == errno.EINPROGRESS:
            self.writing = True
            self.worker.loop.add_writer(self.fd, self._on_connected)
        else:
            self._connect_failed(os.strerror(result))

    def _on_connected(self) -> None:
        result = cast(Socket, self.sock).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result:
            self._connect_failed(os.strerror(result))
        else:
            self._begin_tls()

    def _begin_tls(self) -> None:
        context = self.server.tls
        assert context is not None
        self.unwatch_writing()
        try:
            self.sock = self.worker.client_stream(context, cast(Socket, self.sock), self.server)
        except OSError as error:
            self._tls_failed(error)
            return
        self.secure = True
        self._shake_hands()

    def _shake_hands(self) -> None:
        loop = self.worker.loop
        try:
            wants = self.tls_stream.handshake()
        except OSError as error:
            self._tls_failed(error)
            return
        if wants is Handshake.WANT_WRITE:
            self.writing = True
            loop.add_writer(self.fd, self._shake_hands)
            return
        self.unwatch_writing()
        if wants is Handshake.WANT_READ:
            self.reading = True
            loop.add_reader(self.fd, self._shake_hands)
            return
        self.reading = False  # `resume` puts the real reader in the place of the handshake's
        self._is_connected()
        self._established()

    def _tls_failed(self, error: OSError) -> None:
        self._fail(ProxyError(errors.UPSTREAM_TLS, side="upstream", retry=Retry.SAFE, detail=str(error)))


def connect(exchange: Exchange, server: Server) -> None:
    """Opens a connection to `server` for `exchange`."""
    address = server.address()
    if address is None:
        server.addresses.wait(exchange.resolved)
        return
    family, sockaddr = address
    try:
        sock = opened(family)
    except OSError as error:  # EMFILE, ENFILE, ENOMEM: ours, not the server's
        exchange.upstream_failed(ProxyError(errors.CONNECT_FAILED, side="local", detail=str(error)))
        return
    upstream = (Upstream if server.tls is None else TlsUpstream)(server, sock, exchange)
    exchange.upstream = upstream
    upstream.start(sockaddr)
