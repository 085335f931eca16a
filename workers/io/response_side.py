"""The server's half of an exchange: the response's head and body, and the turn into a tunnel."""

from __future__ import annotations

from typing import Final

from workers.contract import errors
from workers.contract.errors import ProxyError
from workers.core import upgrade
from workers.core.framing import ChunkedBody
from workers.core.heads import (
    CHUNKED,
    UNTIL_CLOSE,
    Buffer,
    ResponseHead,
    field_values,
    parse_response,
)
from workers.core.rewrite import client_head, is_bare_upgrade, unchunked
from workers.io import tunnel
from workers.io.request_side import RequestSide

# A response head is kept in memory while it is incomplete.
MAX_HEAD: Final = 64 * 1024
# So much of a head tells whether it is one at all.
_SEEN_ENOUGH: Final = 64
_LAST_CHUNK: Final = b"0\r\n\r\n"


class ResponseSide(RequestSide):
    """The work on the response."""

    __slots__ = ()

    def receive(self, size: int) -> None:
        """Takes `size` bytes of the response from the worker's buffer."""
        upstream = self.upstream
        assert upstream is not None
        buffer: Buffer = self.worker.buffer
        view = self.worker.view
        if upstream.held:
            before = len(upstream.held)
            buffer = upstream.held + bytes(view[:size])
            view = memoryview(buffer)
            size = len(buffer)
            upstream.held = b""
            # The empty line may lie across the pieces, nowhere else: a head that drips is not parsed anew for
            # each drop.
            dripping = self.response is None and before >= _SEEN_ENOUGH and size <= MAX_HEAD
            if dripping and buffer.find(b"\r\n\r\n", before - 3) < 0:
                upstream.held = buffer
                return
        try:
            start = self._head(buffer, view, size) if self.response is None else 0
            if start >= 0:
                self._body(buffer, view, start, size)
        except ProxyError as error:
            self.upstream_failed(error)

    # --- the head ------------------------------------------------------------------------------------

    def _head(self, buffer: Buffer, view: memoryview, size: int) -> int:
        """Finds the head and sends it on, with as much of the body as needs no work. Returns where the
        rest of the body starts, or -1 when there is nothing more to do with this piece."""
        start = 0
        while True:
            head = parse_response(buffer, start, size)
            if head is None:
                self._hold_head(view[start:size])
                return -1
            if head.size > MAX_HEAD:
                raise ProxyError(errors.BAD_RESPONSE, side="upstream", detail="head is too large")
            if head.status >= 200:
                break
            if head.status == 101:
                self._switch(head, view[start + head.size : size])
                return -1
            # RFC 9110 section 15.2: interim responses are forwarded, though not to HTTP/1.0.
            if self.head.minor == 1:
                self._write(client_head(head, b"", None))
                if self.client.fd < 0:
                    return -1
            start += head.size
        if (server := self.server) is not None:
            status = head.status
            place = server.counts.get(status)
            self.worker.slab.cells[server.count_place(status) if place is None else place] += 1
            if status >= 500 and server.watch is not None:
                server.answered(status)
        if head.status == 503 and self.try_next():
            return -1
        self.response = head
        return self._begin_response(head, view, start, size)

    def _hold_head(self, rest: memoryview) -> None:
        upstream = self.upstream
        assert upstream is not None
        if len(rest) > MAX_HEAD:
            raise ProxyError(errors.BAD_RESPONSE, side="upstream", detail="head is too large")
        upstream.held = bytes(rest)

    def _begin_response(self, head: ResponseHead, view: memoryview, start: int, size: int) -> int:
        self._find_length(head)
        extra = self._extra_lines(head)
        rules = self.route.response_rules
        self.first = b""
        body_start = start + head.size
        if head.plain and rules is None and not extra:
            # The head goes on as it came, in one piece with what is there of the body.
            if head.length >= 0:
                end = min(size, body_start + self.response_left)
                self.response_left -= end - body_start
                self._write(view[start:end])
                self._settle(size - end)
                return -1
            self._write(view[start:body_start])
            return body_start
        top = client_head(head, extra, rules)
        if head.length >= 0:
            end = min(size, body_start + self.response_left)
            self.response_left -= end - body_start
            self._write(top + view[body_start:end] if end > body_start else top)
            self._settle(size - end)
            return -1
        self._write(top)
        return body_start

    def _find_length(self, head: ResponseHead) -> None:
        """RFC 9112 section 6.3, and what the client can read of it."""
        status = head.status
        if self.head.method == b"HEAD" or status in (204, 304):
            if head.length in (CHUNKED, UNTIL_CLOSE):
                head.length = 0
            self.response_left = 0
            if head.length > 0:
                head.length = 0
        elif head.length == CHUNKED:
            old_client = self.head.minor == 0
            self.response_body = ChunkedBody(side="upstream", payload_only=old_client)
            if old_client:
                unchunked(head)
                head.plain = False
                self.closing = True
        elif head.length == UNTIL_CLOSE:
            self.chunking = self.head.minor == 1
            if not self.chunking:
                self.closing = True
        else:
            self.response_left = head.length
        if not self.request_done and self._waits_for_continue():
            # RFC 9110 section 10.1.1: such a client may keep its body to itself now, and nobody could tell
            # its next request from it.
            head.keep_alive = False
        if not self.request_done and not head.keep_alive:
            self.closing = True  # the server will not read the rest of the request, so nobody will

    def _waits_for_continue(self) -> bool:
        expects = any(name == b"expect" for name, _ in self.head.known)
        return expects and not self.sent and self.received == self.head.size

    def _extra_lines(self, head: ResponseHead) -> bytes:
        extra = b""
        if self.closing or self.worker.stopping:
            self.closing = True
            extra = b"\r\nConnection: close"
        elif self.head.minor == 0:
            extra = b"\r\nConnection: keep-alive"
        if self.chunking:
            extra += b"\r\nTransfer-Encoding: chunked"
        if self.set_cookie:
            extra += b"\r\nSet-Cookie: " + self.set_cookie
        return extra

    # --- the body ------------------------------------------------------------------------------------

    def _body(self, buffer: Buffer, view: memoryview, start: int, size: int) -> None:
        response = self.response
        assert response is not None
        if response.length >= 0:
            end = min(size, start + self.response_left)
            self.response_left -= end - start
            self._write(view[start:end])
            self._settle(size - end)
        elif self.response_body is not None:
            self._chunked(self.response_body, buffer, view, start, size)
        elif start < size:
            if self.chunking:
                self._write(b"%x\r\n%b\r\n" % (size - start, bytes(view[start:size])))
            else:
                self._write(view[start:size])
            self._wait_for_more()

    def _chunked(self, body: ChunkedBody, buffer: Buffer, view: memoryview, start: int, size: int) -> None:
        end = body.feed(buffer, start, size)
        if body.spans:
            self._write(body.passed(view))
        if body.done:
            self._complete(size - end)
            return
        upstream = self.upstream
        if upstream is not None:
            upstream.held = bytes(view[end:size])
            self._wait_for_more()

    def _write(self, data: bytes | memoryview) -> None:
        self.sent += len(data)
        client = self.client
        if client.fd >= 0:
            client.write(data)

    def _settle(self, extra: int) -> None:
        """After a piece of a counted body: complete, or waiting for more."""
        if self.response_left == 0:
            self._complete(extra)
        else:
            self._wait_for_more()

    def _wait_for_more(self) -> None:
        upstream = self.upstream
        if upstream is not None and not upstream.out:
            self.wait_for_server(upstream)

    def _complete(self, extra: int) -> None:
        if self.client.exchange is not self:
            return
        response = self.response
        upstream = self.upstream
        assert response is not None and upstream is not None
        if not self.request_done and response.keep_alive and not upstream.broken and not extra:
            # An early response: the server goes on reading, so the client may go on sending.
            self.response_done = True
            return
        # Bytes behind the response answer no question: such a connection is not used again.
        self.finish(reusable=extra == 0)

    def response_ended(self, error: OSError | None) -> None:
        """The server's connection ended during the body: the end of it, or a truncation."""
        response = self.response
        assert response is not None
        if self.response_done:
            self.finish(reusable=False)
            return
        if response.length == UNTIL_CLOSE and error is None:
            if self.chunking:
                self._write(_LAST_CHUNK)
            response.keep_alive = False
            self._complete(0)
            return
        detail = "closed in the middle of the body" if error is None else str(error)
        self.truncated(ProxyError(errors.UPSTREAM_RESET, side="upstream", detail=detail))

    # --- the tunnel ----------------------------------------------------------------------------------

    def _switch(self, head: ResponseHead, rest: memoryview) -> None:
        """101: a tunnel, if it was asked for and the answer is right (design, invariant 6)."""
        if not self.websocket_key:
            raise ProxyError(errors.BAD_RESPONSE, side="upstream", detail="101 that nobody asked for")
        fields = {name: value for name, value in head.known}
        accepts = field_values(head.fields, b"sec-websocket-accept")
        upgrade.check_response(
            self.websocket_key,
            fields.get(b"upgrade", b""),
            fields.get(b"connection", b""),
            accepts[0] if len(accepts) == 1 else b"",
        )
        head.plain = is_bare_upgrade(head.known)
        extra = b"" if head.plain else b"\r\nConnection: Upgrade\r\nUpgrade: websocket"
        if self.set_cookie:
            extra += b"\r\nSet-Cookie: " + self.set_cookie
        if (server := self.server) is not None:
            self.worker.slab.cells[server.counts.get(101) or server.count_place(101)] += 1
            server.answered(101)
        self.response = head
        tunnel.open_tunnel(self, client_head(head, extra, self.route.response_rules), bytes(rest))
