"""What the admin API asks a worker about its tunnels: which there are, and to close some."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from workers.contract.messages import (
    CloseTunnels,
    ListTunnels,
    TunnelFilter,
    TunnelReport,
    Tunnels,
    TunnelsClosed,
)
from workers.io.closing import close_politely
from workers.io.tls import TlsStream

if TYPE_CHECKING:
    from workers.io.tunnel import Pipe, Tunnel
    from workers.io.worker import Worker

# A page must fit into one message of the channel, whatever names there are and whatever clients send.
_MOST: Final = 100
_PAGE_BYTES: Final = 48 * 1024
_TEXT: Final = 120
_MAX_REASON: Final = 123  # bytes: a control frame's payload has 125 (RFC 6455 section 5.5)
# Tunnels that begin to close in one turn of the loop, so that the others are not held up.
_AT_ONCE: Final = 64
_encoder: Final = msgspec.msgpack.Encoder()


def page(tunnels: Mapping[int, Tunnel], question: ListTunnels, now: float) -> Tunnels:
    """The tunnels that match, by number; `now` is monotonic seconds."""
    total = size = 0
    more = False
    reports: list[TunnelReport] = []
    most = max(0, min(question.limit, _MOST))
    for tunnel in _matching(tunnels, question.where, now):
        total += 1
        if tunnel.number > question.after:
            more = more or len(reports) >= most
            if not more:
                report = _report(tunnel, now)
                size += len(_encoder.encode(report))
                more = size > _PAGE_BYTES
                if not more:
                    reports.append(report)
    return Tunnels(request=question.request, tunnels=tuple(reports), total=total, more=more)


def close(worker: Worker, order: CloseTunnels) -> TunnelsClosed:
    """Begins to close the tunnels that match, some in each turn of the loop."""
    if not 1000 <= order.code <= 4999 or len(order.reason.encode()) > _MAX_REASON:
        worker.log.error("tunnels can't be closed with this", code=order.code, reason=order.reason)
        return TunnelsClosed(request=order.request, count=0)
    chosen = [tunnel for tunnel in _matching(worker.tunnels, order.where, worker.now) if not tunnel.closing]
    left = iter(chosen)

    def go_on() -> None:
        some = list(itertools.islice(left, _AT_ONCE))
        for tunnel in some:
            close_politely(tunnel, order.code, order.reason)
        if some:
            worker.loop.call_soon(go_on)

    go_on()
    return TunnelsClosed(request=order.request, count=len(chosen))


def _matching(tunnels: Mapping[int, Tunnel], where: TunnelFilter, now: float) -> Iterator[Tunnel]:
    if where.numbers:
        candidates: Iterator[Tunnel] = (tunnels[number] for number in where.numbers if number in tunnels)
    else:
        candidates = iter(tunnels.values())
    tests = list(_tests(where, now))
    return (tunnel for tunnel in candidates if all(test(tunnel) for test in tests))


def _tests(where: TunnelFilter, now: float) -> Iterator[Callable[[Tunnel], bool]]:
    if where.route:
        yield lambda tunnel: tunnel.route.name == where.route
    if where.pool:
        yield lambda tunnel: tunnel.server.pool.spec.name == where.pool
    if where.server:
        yield lambda tunnel: tunnel.server.spec.name == where.server
    if where.client:
        yield lambda tunnel: tunnel.address.startswith(where.client)
    if where.older:
        yield lambda tunnel: now - tunnel.started >= where.older
    if where.idle:
        yield lambda tunnel: now - tunnel.seen >= where.idle


def _report(tunnel: Tunnel, now: float) -> TunnelReport:
    client, server = tunnel.from_client, tunnel.from_server
    return TunnelReport(
        number=tunnel.number,
        route=tunnel.route.name,
        pool=tunnel.server.pool.spec.name,
        server=tunnel.server.spec.name,
        client=tunnel.address,
        host=_text(tunnel.host),
        path=_text(tunnel.target),
        request_id=_text(tunnel.request_id),
        age=round(now - tunnel.started, 3),
        idle=round(max(0.0, now - tunnel.seen), 3),
        client_bytes=client.bytes,
        server_bytes=server.bytes,
        client_messages=_messages(client),
        server_messages=_messages(server),
        tls=isinstance(tunnel.client, TlsStream),
    )


def _messages(pipe: Pipe) -> int:
    return pipe.tracker.messages if pipe.tracker is not None else -1


def _text(data: bytes) -> str:
    return data[:_TEXT].decode("latin-1")
