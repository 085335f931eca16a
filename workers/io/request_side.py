"""The client's half of an exchange: its body, framed and passed on in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.contract import errors
from workers.contract.errors import ProxyError
from workers.core.framing import ChunkedBody
from workers.core.heads import CHUNKED, Buffer
from workers.core.wheel import NEVER

if TYPE_CHECKING:
    from workers.core.heads import RequestHead, ResponseHead
    from workers.io.admission import Admission
    from workers.io.downstream import Client
    from workers.io.plan import Route
    from workers.io.pool import Pool
    from workers.io.server import Server
    from workers.io.upstream import Upstream
    from workers.io.worker import Worker


class RequestSide:
    """All that an exchange holds, and the work on the request's body."""

    __slots__ = (
        "attempts", "body", "body_left", "chunking", "client", "closing", "counted", "excluded", "failure",
        "first", "fresh", "head", "index", "key", "last_server", "pool", "queued", "received", "request_done",
        "request_id", "response", "response_body", "response_done", "response_left", "ring_key", "route",
        "routed", "sent", "sent_at", "server", "set_cookie", "started", "streamed", "stuck", "upstream",
        "websocket_key", "worker",
    )  # fmt: skip

    client: Client
    worker: Worker
    head: RequestHead
    route: Route  # once `routed`
    routed: bool
    pool: Pool
    server: Server | None
    upstream: Upstream | None
    last_server: str  # name of the server that was asked last, for the log
    counted: bool  # whether the route's gauge counts this exchange
    first: bytes  # the upstream head with the first piece of the body
    streamed: bool  # whether more than `first` was passed on: it can't be sent again then
    fresh: bool  # whether only a new connection will do
    attempts: int
    excluded: tuple[int, ...]  # servers that were tried
    index: int  # of `server` in `pool`
    stuck: int  # the server that the sticky cookie names, or -1
    key: int | None  # hash of what the balancing goes by
    ring_key: int | None  # hash of what the request is stuck by
    websocket_key: bytes  # Sec-WebSocket-Key of a handshake
    set_cookie: bytes  # value of the Set-Cookie field to add
    queued: Pool | Admission | None  # where it waits
    failure: ProxyError | None
    body: ChunkedBody | None
    body_left: int  # bytes of a counted body that have not come
    request_done: bool
    response: ResponseHead | None  # the final one
    response_body: ChunkedBody | None
    response_left: int
    response_done: bool  # whether the response is complete, though the request is not
    chunking: bool  # whether the response gets chunked here
    closing: bool  # whether the client's connection ends with this exchange
    received: int  # bytes from the client
    sent: int  # bytes to the client
    request_id: bytes
    started: int  # monotonic nanoseconds
    sent_at: float

    # What binds the two sides (`Exchange`) is called from both.

    def upstream_failed(self, error: ProxyError) -> None:
        """The server, or the way to it, failed."""
        raise NotImplementedError

    def truncated(self, error: ProxyError) -> None:
        """The response can't be completed."""
        raise NotImplementedError

    def try_next(self) -> bool:
        """Whether a 503 was answered by asking another server."""
        raise NotImplementedError

    def finish(self, reusable: bool) -> None:
        """The response is complete."""
        raise NotImplementedError

    def tunnel_opened(self) -> bool:
        """The exchange became a tunnel; whether that was logged."""
        raise NotImplementedError

    def begin_body(self, buffer: Buffer, start: int, end: int) -> tuple[int, bytes | memoryview]:
        """Takes what is there of the body; returns where it ends and what to send of it."""
        view = memoryview(buffer)
        head = self.head
        limit = self.client.listener.spec.limits.body_bytes
        if head.length == CHUNKED:
            self.body = ChunkedBody(side="client")
            consumed = self._scan(buffer, start, end)
            data = self.body.passed(view)
        else:
            if head.length > limit:
                raise ProxyError(errors.BODY_TOO_LARGE, detail=f"{head.length} bytes, the limit is {limit}")
            consumed = min(end, start + head.length)
            self.body_left = head.length - (consumed - start)
            self.request_done = not self.body_left
            data = view[start:consumed]
        self.received += consumed - start
        return consumed, data

    def _scan(self, buffer: Buffer, start: int, end: int) -> int:
        body = self.body
        assert body is not None
        consumed = body.feed(buffer, start, end)
        limit = self.client.listener.spec.limits.body_bytes
        if body.payload > limit:
            raise ProxyError(errors.BODY_TOO_LARGE, detail=f"over the limit of {limit} bytes")
        self.request_done = body.done
        return consumed

    @property
    def blocked(self) -> bool:
        """Whether the client must not be read now: the server is not there yet, or is slow."""
        upstream = self.upstream
        return upstream is None or upstream.connecting or bool(upstream.out)

    def more_body(self, buffer: Buffer, end: int) -> int:
        """Passes on what `buffer[:end]` has of the body; returns where it ends. Raises `ProxyError`."""
        upstream = self.upstream
        assert upstream is not None
        view = memoryview(buffer)
        self.streamed = True
        self.first = b""
        if self.body is not None:
            consumed = self._scan(buffer, 0, end)
            if self.body.spans:
                upstream.send(self.body.passed(view))
        else:
            consumed = min(end, self.body_left)
            self.body_left -= consumed
            self.request_done = not self.body_left
            upstream.send(view[:consumed])
        self.received += consumed
        if self.upstream is not upstream:
            return consumed  # it broke just now, and that has ended the exchange
        if upstream.out:
            return consumed  # its own clock runs
        if self.request_done and self.response_done:
            self.finish(reusable=True)
        else:
            self.wait_for_server(upstream)
        return consumed

    def wait_for_server(self, upstream: Upstream) -> None:
        """Sets the clock of the server's connection to what is waited for from it now."""
        timeouts = self.pool.spec.timeouts
        if not self.request_done:
            upstream.deadline = NEVER  # it waits for the client, whose own clock runs
        elif self.response is None:
            upstream.expect(timeouts.response_head)
        else:
            upstream.expect(timeouts.body_idle)

    def upstream_drained(self) -> None:
        """The server took what was left over."""
        upstream = self.upstream
        if upstream is None:
            return
        if self.request_done and self.response_done:
            self.finish(reusable=True)
            return
        self.wait_for_server(upstream)
        if not self.request_done:
            self.client.resume_body()
