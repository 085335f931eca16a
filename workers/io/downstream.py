"""A client's connection: reads heads, hands them to exchanges, keeps what came too early, and ends well.

While a response is pending the client stays watched, so that one who leaves frees the server at once; bytes
that it sends meanwhile (pipelining) are read ahead up to `READ_AHEAD` and no further.
"""

from __future__ import annotations

import enum
import socket
from typing import TYPE_CHECKING, Final

from workers.contract import errors
from workers.contract.errors import ProxyError, Refusal
from workers.core.forwarded import ForwardedPrefix, Received
from workers.core.heads import Buffer, RequestHead, field_values, parse_request
from workers.core.responses import redirect_response, refusal_response
from workers.core.wheel import NEVER
from workers.io.endpoint import Endpoint
from workers.io.exchange import Exchange
from workers.io.tls import Stream, TlsTruncated

if TYPE_CHECKING:
    from workers.io.listening import Listener

READ_AHEAD: Final = 64 * 1024
# How long and how much an ended connection is read on, so that its last response is not lost to a reset
# (RFC 9112 section 9.6).
LINGER: Final = 2.0
# How long an idle connection of a stopping worker waits for a request that is on its way; and where nobody
# waits for the worker's end, since its siblings serve.
LAST_REQUEST: Final = 0.3
LAST_REQUEST_UNHURRIED: Final = 2.0
LINGER_BYTES: Final = 1024 * 1024


class State(enum.Enum):
    """What a client's connection is at."""

    OPEN = 0
    LINGERING = 1  # our end is sent; what still comes is dropped
    HANDSHAKE = 2  # TLS


_LEAST: Final = len("\r\na:")  # bytes of a field line
_NAMES: Final = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"forwarded",
    b"x-request-id",
)


class Client(Endpoint):
    """One client connection. `held` are bytes that wait for their turn: the beginning of a head, the
    beginning of a chunk line, or the next requests."""

    __slots__ = (
        "address", "closing", "dropped", "exchange", "held", "listener", "prefix", "prefix_version",
        "scheduled", "served", "state", "unread",
    )  # fmt: skip

    def __init__(self, listener: Listener, sock: Stream, fd: int, address: str) -> None:
        super().__init__(listener.worker, sock, fd)
        self.listener = listener
        self.address = address
        self.exchange: Exchange | None = None
        self.held = b""
        self.closing = False  # whether the connection ends with what is being answered
        self.unread = False  # whether the client may have sent what nobody will read
        self.dropped = 0
        self.scheduled = False
        self.served = False  # whether it has asked for anything yet
        self.state = State.OPEN
        self.prefix: ForwardedPrefix | None = None
        self.prefix_version = -1

    # --- reading -------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        exchange = self.exchange
        if exchange is None:
            if self.out:
                self.mute()  # `on_drained` comes back to it
                return
        elif exchange.blocked if not exchange.request_done else len(self.held) >= READ_AHEAD:
            self.mute()
            return
        worker = self.worker
        try:
            size = self.sock.recv_into(worker.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except TlsTruncated:
            size = 0
        except OSError as error:
            self.on_error(error)
            return
        if size == 0:
            self._on_end()
        elif self.state is not State.OPEN:
            self._drop(size)
        elif exchange is None and not self.held:
            self._request(worker.buffer, 0, size)
        else:
            self._more(exchange, size)

    def _more(self, exchange: Exchange | None, size: int) -> None:
        """Bytes that are not a fresh head: of a body, of a head that began before, or of the next one."""
        data = (
            bytes(self.worker.view[:size]) if exchange is None or exchange.request_done or self.held else b""
        )
        if exchange is None:
            before = len(self.held)
            self.held += data
            if not self.scheduled:
                # The empty line may lie across the pieces, nowhere else.
                if self.held.find(b"\r\n\r\n", max(0, before - 3)) >= 0:
                    self._take_held()
                else:
                    self._wait_for_head(self.held, 0, len(self.held))
        elif exchange.request_done:
            self.held += data
        elif self.held:
            held, self.held = self.held + data, b""
            self._body(exchange, held, len(held))
        else:
            self._body(exchange, self.worker.buffer, size)

    def _request(self, buffer: Buffer, start: int, end: int) -> None:
        """Takes a request head from the buffer, if it is whole, and starts its exchange."""
        try:
            head = parse_request(buffer, start, end)
            if head is None:
                self._wait_for_head(buffer, start, end)
                return
            listener = self.listener
            fields = head.fields
            if head.size > listener.head_bytes or (
                len(fields) > _LEAST * listener.headers and fields.count(b"\n") > listener.headers
            ):
                too_long = len(head.target) > listener.head_bytes
                raise ProxyError(errors.TARGET_TOO_LONG if too_long else errors.HEAD_TOO_LARGE)
        except ProxyError as error:
            if buffer.startswith(b"\r\n", start, end):
                self._skip_empty_line(buffer, start + 2, end)
            else:
                self._refuse_head(error)
            return
        exchange = Exchange(self, head)
        self.exchange = exchange
        self.served = True
        self.held = b""
        self.deadline = NEVER
        consumed = start + head.size
        try:
            if listener.redirects and not self.secure:
                self._redirect(exchange)
            else:
                consumed = exchange.begin(buffer, consumed, end)
        except ProxyError as error:
            exchange.refuse(error)
        if consumed < end and self.fd >= 0 and not self.closing:
            self.held = bytes(buffer[consumed:end])
            self.next()
        if not exchange.request_done:
            self._watch_body(exchange)

    def _skip_empty_line(self, buffer: Buffer, start: int, end: int) -> None:
        """RFC 9112 section 2.2: an empty line in front of a request is ignored; a second one is not."""
        self.held = b""
        if buffer.startswith(b"\r\n", start, end):
            self._refuse_head(ProxyError(errors.BAD_REQUEST_LINE, detail="empty lines"))
        elif start < end:
            self._request(buffer, start, end)

    def _wait_for_head(self, buffer: Buffer, start: int, end: int) -> None:
        """An incomplete head: kept within its limit, and with a deadline from its first byte on."""
        limit = self.listener.head_bytes
        if end - start > limit:
            one_line = buffer.find(b"\r\n", start, end) < 0
            self._refuse_head(ProxyError(errors.TARGET_TOO_LONG if one_line else errors.HEAD_TOO_LARGE))
            return
        if not self.held:
            self.expect(self.listener.head_timeout)
        self.held = bytes(buffer[start:end])

    def _take_held(self) -> None:
        self.scheduled = False
        if self.fd >= 0 and self.exchange is None and self.held and self.state is State.OPEN:
            held = self.held
            self._request(held, 0, len(held))

    def _body(self, exchange: Exchange, data: Buffer, size: int) -> None:
        try:
            consumed = exchange.more_body(data, size)
        except ProxyError as error:
            self._body_failed(exchange, error)
            return
        if consumed < size:
            self.held = bytes(data[consumed:size])
        if self.exchange is not exchange:
            self.next()  # the response was complete already
            return
        self._watch_body(exchange)

    def _watch_body(self, exchange: Exchange) -> None:
        """Sets the clock that a request's body runs by: `body_idle` while more of it is waited for, none
        while the server is waited for; and while the client does not read, `send` goes on running."""
        if self.out or exchange.queued is not None or self.exchange is not exchange:
            return
        if exchange.request_done or exchange.blocked:
            self.deadline = NEVER
        else:
            self.expect(self.listener.spec.timeouts.body_idle)

    def _body_failed(self, exchange: Exchange, error: ProxyError) -> None:
        if exchange.response_done:
            exchange.finish(reusable=False)  # it has its answer, whatever became of the rest
        elif exchange.response is None:
            exchange.refuse(error)
        else:
            exchange.truncated(error)

    def resume_body(self) -> None:
        """The server takes more of the body."""
        self.resume()
        if self.exchange is not None:
            self._watch_body(self.exchange)

    def settle(self) -> None:
        """Nothing is waited for from the client, unless that it reads."""
        if not self.out:
            self.deadline = NEVER

    # --- writing and ending --------------------------------------------------------------------------

    def next(self) -> None:
        """After an exchange: the next request, waiting for one, or the end."""
        if self.fd < 0 or self.exchange is not None:
            return
        if self.out:
            return  # `on_drained` comes back here
        if self.closing or self.worker.stopping:
            self._end()
            return
        if not self.reading:
            self.resume()
        if self.held:
            self.expect(self.listener.head_timeout)
            if not self.scheduled:
                self.scheduled = True
                self.worker.loop.call_soon(self._take_held)
        else:
            deadline = self.worker.now + self.listener.keep_alive
            self.deadline = deadline
            if deadline < self.due:
                self.worker.wheel.move(self)

    def _end(self) -> None:
        """Our side is done. Unread bytes would turn the close into a reset that may overtake the response,
        so then the end is sent and the rest is read away for a while."""
        if not (self.unread or self.held):
            self.close()
            return
        self.state = State.LINGERING
        self.held = b""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.resume()
        self.expect(LINGER)

    def _drop(self, size: int) -> None:
        self.dropped += size
        if self.dropped > LINGER_BYTES:
            self.close()

    def on_drained(self) -> None:
        exchange = self.exchange
        if exchange is None:
            self.next()
            return
        self.settle()
        if not exchange.request_done:
            self.resume_body()
        upstream = exchange.upstream
        if upstream is not None and not upstream.reading:
            upstream.resume()
            if not upstream.out:
                exchange.wait_for_server(upstream)

    def on_blocked(self) -> None:
        self.expect(self.listener.spec.timeouts.send)

    def on_error(self, error: OSError) -> None:
        exchange = self.exchange
        self.close()
        if exchange is not None:
            exchange.client_gone()

    def _on_end(self) -> None:
        """The client has sent its end. Half-closed requests are indistinguishable from a client that left,
        and a client that leaves frees the server."""
        exchange = self.exchange
        if exchange is not None and exchange.response is not None:
            self.abort()  # it may still read: what it has of the response must not look like the whole
        else:
            self.close()
        if exchange is not None:
            exchange.client_gone()

    def on_deadline(self) -> None:
        exchange = self.exchange
        if self.state is not State.OPEN:
            self.close()
        elif self.out:
            self.abort()  # it does not read: `send` seconds without a byte taken
            if exchange is not None:
                exchange.client_gone()
        elif exchange is None:
            if self.held:
                self._refuse_head(ProxyError(errors.HEAD_TIMEOUT))
            else:
                self._close_idle()
        elif exchange.queued is not None:
            exchange.queued.expire(exchange)
        elif not exchange.request_done and not exchange.blocked:
            # (While the server does not take what there is, its own clock runs, not the client's.)
            self._body_failed(exchange, ProxyError(errors.BODY_TIMEOUT))

    def close(self) -> None:
        if self.fd >= 0:
            super().close()
            self.listener.closed()
            self.worker.clients.discard(self)

    def abort(self) -> None:
        if self.fd >= 0:
            super().abort()
            self.listener.closed()
            self.worker.clients.discard(self)

    def release(self) -> Stream:
        self.worker.clients.discard(self)
        return super().release()

    def stop(self, hurried: bool = True) -> None:
        """The worker is stopping: an idle connection gets a moment for the request that may be on its way
        (the answer says `Connection: close`), one that was just accepted its usual time for the first."""
        if self._idle and self.served:
            self.expect(LAST_REQUEST if hurried else LAST_REQUEST_UNHURRIED)

    def stop_waiting(self) -> None:
        """Nobody waits for admission any more."""
        exchange = self.exchange
        if exchange is not None and exchange.queued is not None:
            exchange.queued.stop(exchange)

    @property
    def _idle(self) -> bool:
        return self.exchange is None and not self.held and not self.out and self.state is State.OPEN

    def _close_idle(self) -> None:
        """Closes, unless a request has come that the loop has not reported yet: it would be reset."""
        if self.reading:
            self.read_all()
        if self.fd >= 0 and self._idle:
            self.close()

    def abandon(self) -> None:
        """The time is over."""
        exchange = self.exchange
        self.abort()
        if exchange is not None:
            exchange.client_gone()

    # --- refusals ------------------------------------------------------------------------------------

    def refuse(
        self,
        refusal: Refusal,
        *,
        close: bool,
        without_body: bool = False,
        unread: bool = True,
        retry_after: int = 1,
    ) -> int:
        """Writes a refusal, and returns its length; the caller goes on with `next`."""
        close = close or refusal.close or self.worker.stopping
        if close:
            self.closing = True
            self.unread = unread
        answer = refusal_response(
            refusal,
            date=self.worker.date(),
            close=close,
            without_body=without_body,
            retry_after=retry_after,
        )
        self.write(answer)
        return len(answer)

    def _refuse_head(self, error: ProxyError) -> None:
        """Refuses what never became an exchange; nothing behind it can be trusted to be a request."""
        self.held = b""
        self.settle()
        self.listener.reject(error.refusal)
        sent = self.refuse(error.refusal, close=True)
        if self.worker.journal is not None:
            self.worker.journal.refusal(self, error, sent)
        self.next()

    def _redirect(self, exchange: Exchange) -> None:
        head = exchange.head
        if not head.host:
            raise ProxyError(errors.BAD_HOST, detail="a redirect needs a Host")
        port = self.listener.spec.redirect_port
        host = head.host if port == 443 else b"%b:%d" % (head.host, port)
        self.closing = self.closing or not exchange.request_done or exchange.closing
        self.unread = not exchange.request_done
        answer = redirect_response(
            b"https://" + host + head.target, date=self.worker.date(), close=self.closing
        )
        self.write(answer)
        exchange.sent = len(answer)
        exchange.conclude(308, "")
        self.next()

    # --- what exchanges ask about the client ---------------------------------------------------------

    def forwarded(self, head: RequestHead) -> tuple[bytes, bytes]:
        """The forwarding fields for the server, and the request id."""
        listener = self.listener
        prefix = self.prefix
        if prefix is None or self.prefix_version != listener.version:
            prefix = ForwardedPrefix(self.address, b"https" if self.secure else b"http", listener.port)
            self.prefix = prefix
            self.prefix_version = listener.version
        request_id = self.worker.request_ids.following()
        if head.plain or not listener.trusts(self.address):
            return prefix.lines(head.authority, request_id), request_id
        received = Received(*[b", ".join(field_values(head.fields, name)) for name in _NAMES])
        lines = prefix.believed_lines(head.authority, request_id, received)
        value = lines.rfind(b": ") + 2
        return lines, lines[value:-2]

    def address_for(self, head: RequestHead) -> str:
        """The client's address, as far as proxies in front are believed."""
        listener = self.listener
        if head.plain or not listener.trusts(self.address):
            return self.address
        return listener.trusted.client_ip(
            self.address,
            b", ".join(field_values(head.fields, b"x-forwarded-for")),
            b", ".join(field_values(head.fields, b"forwarded")),
        )

    def check_name(self, host: bytes) -> None:
        """Refuses a request for a name that another certificate of this listener is for (RFC 9110 section
        15.5.20): the client has reused a connection that was not made for it."""
