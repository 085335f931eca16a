"""What the admin API asks a worker about its tunnels: which there are, to close some, and to move some."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from workers.contract.messages import (
    CloseTunnels,
    ListTunnels,
    MoveTunnels,
    TunnelFilter,
    TunnelReport,
    Tunnels,
    TunnelsClosed,
)
from workers.io.tls import TlsStream

if TYPE_CHECKING:
    from workers.io.pipe import Pipe
    from workers.io.tunnel import Tunnel
    from workers.io.worker import Worker

# A page must fit into one message of the channel, whatever names there are and whatever clients send.
_MOST: Final = 100
_PAGE_BYTES: Final = 48 * 1024
_TEXT: Final = 120
_MAX_REASON: Final = 123  # bytes: a control frame's payload has 125 (RFC 6455 section 5.5)
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
    """Begins to close the tunnels that match, or plans it."""
    if not _can_say(worker, order.code, order.reason):
        return TunnelsClosed(request=order.request, count=0)
    chosen = _matching(worker.tunnels, order.where, worker.now)
    count = worker.pacer.order(chosen, order.code, order.reason, order.spread)
    return TunnelsClosed(request=order.request, count=count)


def move(worker: Worker, order: MoveTunnels) -> TunnelsClosed:
    """Plans to close some of the tunnels that match, and what becomes of their clients when they return."""
    if not _can_say(worker, order.code, order.reason):
        return TunnelsClosed(request=order.request, count=0)
    there = [
        tunnel
        for tunnel in _matching(worker.tunnels, order.where, worker.now)
        if tunnel.closing is None and tunnel.number not in worker.pacer
    ]
    chosen = random.sample(there, min(order.count, len(there)))
    worker.returns.expect(order)
    count = worker.pacer.order(chosen, order.code, order.reason, order.spread)
    return TunnelsClosed(request=order.request, count=count)


def _can_say(worker: Worker, code: int, reason: str) -> bool:
    """Whether a Close frame can carry this."""
    if 1000 <= code <= 4999 and len(reason.encode()) <= _MAX_REASON:
        return True
    worker.log.error("tunnels can't be closed with this", code=code, reason=reason)
    return False


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
        client_bytes=client.total,
        server_bytes=server.total,
        client_messages=_messages(client),
        server_messages=_messages(server),
        tls=isinstance(tunnel.client, TlsStream),
        crash_safe=tunnel.crash_safe,
    )


def _messages(pipe: Pipe) -> int:
    return pipe.tracker.messages if pipe.tracker is not None else -1


def _text(data: bytes) -> str:
    return data[:_TEXT].decode("latin-1")
