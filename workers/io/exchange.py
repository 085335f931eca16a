"""One request and its response: where it goes, what is tried again, and what is told about it at the end.

The life of an exchange::

    begin -> dispatch -> (queued) -> connecting -> sent -> response -> finished
                 ^                       |           |
                 '------ another server -'-----------'      (design, invariant 2)

The request's body and the response flow independently: `RequestSide` and `ResponseSide` in the files beside
this one hold those halves, this file holds what binds them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from workers.contract import errors
from workers.contract.cells import (
    HANDSHAKE_SECONDS,
    HTTP_SECONDS,
    NANOSECONDS,
    HandshakeResult,
    RouteCell,
    StickyResult,
    WorkerCell,
)
from workers.contract.errors import ProxyError, Retry
from workers.contract.native import add, observe
from workers.contract.series import METHODS, OTHER_METHOD
from workers.core import upgrade
from workers.core.heads import RequestHead, field_values
from workers.core.rewrite import upstream_head
from workers.core.wheel import NEVER
from workers.io.response_side import ResponseSide
from workers.io.upstream import Upstream, connect

if TYPE_CHECKING:
    from workers.core.heads import Buffer
    from workers.io.downstream import Client
    from workers.io.pool import Pool
    from workers.io.server import Server

_add: Final = add  # bound here, they are found at once
_observe: Final = observe
_SECONDS_SUM: Final = int(RouteCell.SECONDS_SUM)
_SECONDS: Final = int(RouteCell.SECONDS)
_HANDSHAKES: Final = int(RouteCell.HANDSHAKES)
_HANDSHAKE_SUM: Final = int(RouteCell.HANDSHAKE_SUM)
_HANDSHAKE: Final = int(RouteCell.HANDSHAKE)
_REQUESTS: Final = int(WorkerCell.REQUESTS)
_HIT: Final = int(StickyResult.HIT)
_MOVED: Final = int(StickyResult.MOVED)
_HTTP_BOUNDS: Final = tuple(int(bound * NANOSECONDS) for bound in HTTP_SECONDS)
_HANDSHAKE_BOUNDS: Final = tuple(int(bound * NANOSECONDS) for bound in HANDSHAKE_SECONDS)
_METHODS: Final = {name.encode("ascii"): index << 10 for index, name in enumerate(METHODS)}
_OTHER: Final = OTHER_METHOD << 10
_BY_WORD: Final = {refusal.reason: refusal for refusal in errors.REASONS}
# How a handshake that was refused ended, where it was not the server's doing.
_REFUSED: Final = frozenset(
    refusal.reason
    for refusal in errors.REASONS
    if refusal.status < 500
    or refusal
    in (
        errors.NO_SERVER,
        errors.QUEUE_FULL,
        errors.QUEUE_TIMEOUT,
        errors.SHUTTING_DOWN,
        errors.ADMISSION_FULL,
        errors.ADMISSION_TIMEOUT,
    )
)

# RFC 9110 section 9.2.2.
_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))
CLIENT_CLOSED: Final = 499  # nginx's number for a client that left; never sent


class Exchange(ResponseSide):
    """See the module. `first` is the head for the server with as much of the body as came with it: as long
    as nothing more was sent, the request can be sent again from it."""

    __slots__ = ()

    def __init__(self, client: Client, head: RequestHead) -> None:
        self.client = client
        self.worker = client.worker
        self.head = head
        self.upstream: Upstream | None = None
        self.server: Server | None = None
        self.counted = False
        self.routed = False
        self.first = b""
        self.streamed = False
        self.fresh = False
        self.attempts = 0
        self.excluded: tuple[int, ...] = ()
        self.stuck = -1
        self.index = -1
        self.key = None
        self.ring_key = None
        self.last_server = ""
        self.websocket_key = b""
        self.set_cookie = b""
        self.queued = None
        self.failure: ProxyError | None = None
        self.body = None
        self.body_left = 0
        self.request_done = head.length == 0
        self.response = None
        self.response_body = None
        self.response_left = 0
        self.response_done = False
        self.chunking = False
        self.closing = not head.keep_alive
        self.received = head.size
        self.sent = 0
        self.request_id = b""
        self.started = time.monotonic_ns()
        self.sent_at = 0.0

    # --- the beginning -------------------------------------------------------------------------------

    def begin(self, buffer: Buffer, start: int, end: int) -> int:
        """Starts with what came behind the head in `buffer[start:end]`; returns how much of it belongs to
        this request (the rest is the caller's). Raises `ProxyError` for what is refused at once."""
        head = self.head
        client = self.client
        plan = self.worker.plan
        if head.method in _REFUSED_METHODS:
            raise ProxyError(errors.METHOD_REFUSED, detail=head.method.decode("ascii"))
        self.route = route = plan.find(head.host, head.path)
        self.routed = True
        self.pool = pool = route.pool
        if client.secure:
            client.check_name(head.host)
        if head.upgrade:
            self._begin_upgrade()
        target = head.target if route.prefix is None else route.strip(head.target)
        forwarded, self.request_id = client.forwarded(head)
        consumed = start
        top = upstream_head(head, target, forwarded, route.request_rules)
        if head.length == 0:
            self.first = top
        else:
            consumed, data = self.begin_body(buffer, start, end)
            self.first = b"".join((top, data))
        if pool.keyed:
            self.key, self.ring_key, self.stuck = pool.find_keys(head, client.address_for(head))
            if self.stuck >= 0 and head.upgrade:
                self._lead_elsewhere()
        slab = self.worker.slab.cells
        slab[route.base] += 1
        self.counted = True
        if head.upgrade and pool.admission is not None:
            pool.admission.enter(self)
        else:
            self.dispatch()
        return consumed

    def _lead_elsewhere(self) -> None:
        """A client that was asked to move does not come back to where it was."""
        pool = self.pool
        index = self.worker.returns.lead(pool, self.stuck, self.key)
        if index == self.stuck:
            return
        self.stuck = index
        pool.count_sticky(_MOVED)
        if index >= 0 and pool.cookie is not None:
            self.set_cookie = pool.cookie.set_cookie(index, self.client.secure)

    def _begin_upgrade(self) -> None:
        head = self.head
        if upgrade.is_upgrade(head.minor, head.upgrade, b"upgrade"):
            self.websocket_key = upgrade.check_request(head.method, head.minor, upgrade_fields(head))
        else:
            head.upgrade = b""  # some other protocol: the request goes on without the field

    # --- choosing and connecting ---------------------------------------------------------------------

    def dispatch(self) -> None:
        """Picks a server and sends the request there; refuses where there is none."""
        pool = self.pool
        excluded = self.excluded
        stuck = self.stuck
        if stuck >= 0 and not pool.reachable[stuck]:
            self.stuck = stuck = -1
            pool.count_sticky(_MOVED)
        if stuck >= 0 and stuck not in self.excluded:
            if pool.servers[stuck].full:
                self._join_queue()
                return
            index = stuck
            if not (self.attempts or self.fresh or self.set_cookie):
                pool.count_sticky(_HIT)
        else:
            index = pool.choose(self.key, self.ring_key, excluded)
            if pool.capped and index >= 0 and pool.servers[index].full:
                excluded = pool.with_full(excluded)  # which looks at all of them
                index = pool.choose(self.key, self.ring_key, excluded)
            if index < 0:
                self._none_left(full=len(excluded) > len(self.excluded))
                return
            if pool.cookie is not None:
                self.set_cookie = pool.cookie.set_cookie(index, self.client.secure)
        self.index = index
        self.server = server = pool.servers[index]
        server.begin()
        self.attempts += 1
        upstream = None if self.fresh else server.take()
        if upstream is None:
            connect(self, server)
        else:
            self.upstream = upstream
            upstream.attach(self)
            self._send_first(upstream)

    def _none_left(self, *, full: bool) -> None:
        if self.failure is not None and not full:
            self.refuse(self.failure)
        elif full:
            self._join_queue()
        else:
            self.refuse(ProxyError(errors.NO_SERVER, side="upstream"))

    def _join_queue(self) -> None:
        pool = self.pool
        if len(pool.waiting) >= pool.spec.queue.length:
            self.refuse(ProxyError(errors.QUEUE_FULL, side="upstream"))
            return
        self.queued = pool
        pool.waiting.append(self)
        pool.count_queue()
        self.client.expect(pool.spec.queue.timeout)

    def leave_queue(self) -> bool:
        """Tries again to find a server; `False` when there is still none, and it goes on waiting."""
        pool = self.pool
        stuck = self.stuck
        if stuck >= 0 and stuck not in self.excluded and pool.reachable[stuck]:
            if pool.servers[stuck].full:
                return False
        elif pool.has_other(self.excluded) and not pool.has_room(self.excluded):
            return False
        self.queued = None
        self.client.settle()
        self.dispatch()
        return True

    def admitted(self, pool: Pool) -> None:
        """Goes on after the wait for admission, to `pool` as it is now: a reload may have changed it."""
        self.queued = None
        self.client.settle()
        if pool is not self.pool:
            if self.stuck >= 0:
                self.stuck = pool.index_of(self.pool.servers[self.stuck].spec.name)
            self.pool = pool
        self.dispatch()

    def resolved(self) -> None:
        """The server's name was looked up, with or without an answer."""
        server = self.server
        if server is None or self.upstream is not None or self.client.exchange is not self:
            return  # the client left meanwhile
        if server.address() is None:
            detail = server.addresses.error or "no address"
            self.upstream_failed(
                ProxyError(errors.RESOLVE_FAILED, side="upstream", retry=Retry.SAFE, detail=detail)
            )
        else:
            connect(self, server)

    def connected(self) -> None:
        """The connection to the server stands."""
        upstream = self.upstream
        if upstream is not None:
            self._send_first(upstream)

    def _send_first(self, upstream: Upstream) -> None:
        self.sent_at = time.monotonic()
        upstream.send(self.first)
        if self.upstream is not upstream:
            return  # it failed at once, and another one was tried
        if not self.request_done:
            self.client.resume_body()
            if not upstream.out:
                upstream.deadline = NEVER  # it waits for the client, whose own clock runs
        elif not upstream.out:
            deadline = self.worker.now + self.pool.response_head
            upstream.deadline = deadline  # `Endpoint.expect`, written out
            if deadline < upstream.due:
                self.worker.wheel.move(upstream)

    # --- failures ------------------------------------------------------------------------------------

    def upstream_failed(self, error: ProxyError) -> None:
        """The server, or the way to it, failed before a response began: try another, or say so."""
        server = self.server
        upstream = self.upstream
        stale = upstream is not None and upstream.reused and not upstream.held
        if self.response is not None:
            self.truncated(error)
            return
        self._detach()
        self.failure = error
        if server is not None and not self._retry(server, error, stale=stale):
            if error.side == "upstream":
                server.failed(error.refusal)
            self.refuse(error)

    def _retry(self, server: Server, error: ProxyError, *, stale: bool) -> bool:
        """Sends the request again where that is safe (design, invariant 2); whether it did."""
        reset = error.refusal is errors.UPSTREAM_RESET
        idempotent = self.head.method in _IDEMPOTENT
        if self.streamed or not (error.retry is Retry.SAFE or (reset and idempotent)):
            return False
        if reset and stale and not self.fresh:
            # The server closed an idle connection just as it was used: no failure of anybody's.
            self.fresh = True
            self.attempts -= 1
        else:
            retry = self.route.spec.retry
            if ("reset" if reset else "connect") not in retry.on or self.attempts >= retry.attempts:
                return False
            excluded = (*self.excluded, self.index)
            if not self.pool.has_other(excluded):
                return False
            server.failed(error.refusal)
            server.retried()
            self.excluded = excluded
            self.set_cookie = b""
        self.dispatch()
        return True

    def upstream_lost(self, error: OSError | None) -> None:
        """The server closed (`None`) or reset the connection."""
        if self.response is not None:
            self.response_ended(error)
            return
        detail = "closed before a response" if error is None else str(error)
        upstream = self.upstream
        # The end that a server sends acknowledges what it got; a reset does not, and proves nothing.
        unseen = error is None and upstream is not None and upstream.nothing_received()
        retry = Retry.SAFE if unseen else Retry.IF_IDEMPOTENT
        self.upstream_failed(ProxyError(errors.UPSTREAM_RESET, side="upstream", retry=retry, detail=detail))

    def upstream_timeout(self) -> None:
        """The server took too long: for its head, for the next piece of its body, or to read ours."""
        if self.response_done:
            self.finish(reusable=False)
            return
        self.upstream_failed(ProxyError(errors.RESPONSE_TIMEOUT, side="upstream"))

    def client_gone(self) -> None:
        """The client left: the server connection is freed at once."""
        if self.queued is not None:
            self.queued.leave(self)
        self._was_well()
        self._detach()
        self.conclude(self.response.status if self.response else CLIENT_CLOSED, "client_closed")

    def refuse(self, error: ProxyError) -> None:
        """Answers the client with a refusal; what is unread of its body ends the connection."""
        self._detach()
        refusal = error.refusal
        unread = not self.request_done
        self.sent += self.client.refuse(
            refusal,
            close=unread or self.closing,
            without_body=self.head.method == b"HEAD",
            unread=unread or refusal.close,
            retry_after=error.retry_after,
        )
        self.conclude(refusal.status, refusal.reason)
        if error.side != "client":
            self.worker.log.warning(
                "request failed", reason=refusal.reason, pool=self.pool.spec.name, server=self.last_server,
                detail=error.detail,
            )  # fmt: skip
        self.client.next()

    def truncated(self, error: ProxyError) -> None:
        """The response can't be completed: the client must not take it for the whole."""
        if self.server is not None and error.side == "upstream":
            self.server.failed(error.refusal)
        else:
            self._was_well()
        self._detach()
        status = self.response.status if self.response is not None else 0
        client = self.client
        self.conclude(status, error.refusal.reason)
        self.worker.log.warning(
            "response truncated", reason=error.refusal.reason, route=self.route.name, detail=error.detail
        )
        client.abort()

    def try_next(self) -> bool:
        """After a 503: whether the request was sent to another server instead of passing that on."""
        retry = self.route.spec.retry
        server = self.server
        if (
            server is None
            or "503" not in retry.on
            or self.attempts >= retry.attempts
            or self.streamed
            or self.head.method not in _IDEMPOTENT
        ):
            return False
        if not self.pool.has_room((*self.excluded, self.index)):
            return False
        self._detach()
        server.retried()
        self.excluded = (*self.excluded, self.index)
        self.set_cookie = b""
        self.dispatch()
        return True

    def _detach(self) -> None:
        """Lets go of the server: a connection in the middle of an exchange can't be used again."""
        upstream = self.upstream
        if upstream is not None:
            self.upstream = None
            upstream.exchange = None
            upstream.close()
        server = self.server
        if server is not None:
            self.server = None
            self.last_server = server.spec.name
            server.end()

    # --- the end -------------------------------------------------------------------------------------

    def finish(self, reusable: bool) -> None:
        """The response was handed to the client in full."""
        upstream = self.upstream
        server = self.server
        response = self.response
        assert upstream is not None and server is not None and response is not None
        self.upstream = None
        if reusable and response.keep_alive and self.request_done and not upstream.out:
            upstream.park()
        else:
            upstream.exchange = None
            upstream.close()
        self._was_well()
        self.server = None
        self.last_server = server.spec.name
        server.end()
        self.conclude(response.status, "")
        self.client.next()

    def _was_well(self) -> None:
        """The server did nothing wrong to the end; only now, since it might have failed in the middle. (An
        answer of 500 and above is taken in with its head.)"""
        server = self.server
        response = self.response
        if server is not None and server.watch is not None and response is not None and response.status < 500:
            server.answered(response.status)

    def conclude(self, status: int, reason: str) -> bool:
        """Counts and logs the exchange, and takes it off its client; once. Returns whether it was logged."""
        client = self.client
        if client.exchange is not self:
            return False
        client.exchange = None
        cells = self.worker.slab.cells
        if self.routed:
            route = self.route
            base = route.base
            if self.counted:
                cells[base] -= 1
            label = _METHODS.get(self.head.method, _OTHER) | status
            place = route.counts.get(label)
            _add(cells, 1, _REQUESTS, route.count_place(label) if place is None else place)
            nanoseconds = time.monotonic_ns() - self.started
            if self.head.upgrade:
                self._count_handshake(status, reason, nanoseconds)
            else:
                _observe(cells, base + _SECONDS_SUM, base + _SECONDS, _HTTP_BOUNDS, nanoseconds)
        else:
            cells[_REQUESTS] += 1
            client.listener.reject(_BY_WORD.get(reason, errors.REDIRECTED))
        if not self.request_done:
            client.closing = client.unread = True
        elif self.closing:
            client.closing = True
        journal = self.worker.journal
        return journal is not None and journal.exchange(self, status, reason)

    def _count_handshake(self, status: int, reason: str, nanoseconds: int) -> None:
        cells = self.worker.slab.cells
        base = self.route.base
        if reason == "client_closed":
            result = HandshakeResult.CLIENT_CLOSED
        elif status == 101:
            result = HandshakeResult.ACCEPTED
            _observe(cells, base + _HANDSHAKE_SUM, base + _HANDSHAKE, _HANDSHAKE_BOUNDS, nanoseconds)
        elif not reason:
            result = HandshakeResult.REJECTED
        elif reason in _REFUSED:
            result = HandshakeResult.REFUSED
        else:
            result = HandshakeResult.FAILED
        cells[base + _HANDSHAKES + result] += 1

    def tunnel_opened(self) -> bool:
        """The exchange became a tunnel: its connections and its place on the server are the tunnel's now.
        Returns whether its opening was logged."""
        server = self.server
        assert server is not None
        self.server = self.upstream = None
        self.last_server = server.spec.name
        return self.conclude(101, "")


_REFUSED_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))


def upgrade_fields(head: RequestHead) -> dict[bytes, bytes]:
    """The fields that the WebSocket handshake needs, repeated ones joined with commas."""
    fields = {
        b"sec-websocket-key": b",".join(field_values(head.fields, b"sec-websocket-key")),
        b"sec-websocket-version": b",".join(field_values(head.fields, b"sec-websocket-version")),
    }
    if head.length:
        fields[b"content-length"] = b"%d" % head.length  # any body is one too many
    return fields
