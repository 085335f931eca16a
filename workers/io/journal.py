"""What is told about exchanges and tunnels when they end: access log lines made from their state."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from workers.contract.cells import NANOSECONDS
from workers.contract.errors import ProxyError
from workers.contract.snapshot import AccessLogSpec
from workers.core import logline
from workers.io.accesslog import AccessLog

if TYPE_CHECKING:
    from workers.io.downstream import Client
    from workers.io.exchange import Exchange
    from workers.io.tunnel import Tunnel
    from workers.io.worker import Worker

_PROTOCOLS = ("HTTP/1.0", "HTTP/1.1")


class Journal:
    """The access log of one worker."""

    __slots__ = ("_log",)

    def __init__(self, worker: Worker, fd: int, spec: AccessLogSpec) -> None:
        self._log = AccessLog(fd, worker.log, spec.format, spec.sample)

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        return self._log.dropped

    def reconfigure(self, fd: int, spec: AccessLogSpec) -> None:
        """Writes to `fd` by `spec` from now on."""
        self._log.reconfigure(spec.format, spec.sample)
        self._log.reopen(fd)

    def reopen(self, fd: int) -> None:
        """Writes to `fd` from now on."""
        self._log.reopen(fd)

    def finish(self) -> None:
        """Ends the log without waiting for it."""
        self._log.finish(1.0)

    def close(self) -> None:
        """Ends the log; what is queued has a second to get out."""
        self._log.close()

    def exchange(self, exchange: Exchange, status: int, reason: str) -> bool:
        """One line for an exchange that ended or became a tunnel; whether this one is in the sample."""
        log = self._log
        if not log.wanted():
            return False
        head = exchange.head
        now = time.monotonic()
        agent, referer = logline.agent_and_referer(head.fields)
        route = exchange.route if exchange.routed else None
        log.write(
            log.format.exchange(
                logline.Exchange(
                    time.time(),
                    exchange.client.address_for(head),
                    head.method,
                    head.target,
                    head.host,
                    _PROTOCOLS[head.minor],
                    status,
                    exchange.sent,
                    exchange.received,
                    now - exchange.started / NANOSECONDS,
                    route.name if route is not None else "",
                    route.pool.spec.name if route is not None else "",
                    exchange.last_server,
                    now - exchange.sent_at if exchange.sent_at else None,
                    exchange.attempts,
                    reason,
                    exchange.request_id,
                    agent,
                    referer,
                    "websocket_open" if status == 101 else "request",
                )
            )
        )
        return True

    def refusal(self, client: Client, error: ProxyError, sent: int) -> None:
        """One line for bytes that never became a request."""
        log = self._log
        if log.wanted():
            log.write(
                log.format.exchange(
                    logline.Exchange(
                        time.time(),
                        client.address,
                        b"",
                        b"",
                        b"",
                        "",
                        error.refusal.status,
                        sent,
                        0,
                        0.0,
                        "",
                        "",
                        "",
                        None,
                        0,
                        error.refusal.reason,
                        b"",
                        b"",
                        b"",
                    )
                )
            )

    def tunnel(self, tunnel: Tunnel) -> None:
        """One line for a tunnel that ended; its opening was logged."""
        log = self._log
        client, server = tunnel.from_client, tunnel.from_server
        log.write(
            log.format.tunnel_end(
                logline.TunnelEnd(
                    time.time(),
                    tunnel.address,
                    tunnel.target,
                    tunnel.host,
                    "HTTP/1.1",
                    server.total,
                    client.total,
                    time.monotonic() - tunnel.started,
                    tunnel.route.name,
                    tunnel.server.pool.spec.name,
                    tunnel.server.spec.name,
                    tunnel.request_id,
                    tunnel.close_code,
                    tunnel.closer or "none",
                    server.messages,
                    client.messages,
                )
            )
        )
