"""What is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.bench.engine import Options


@dataclass(frozen=True)
class Workload:
    """A load, and what an operation of it is."""

    name: str
    operation: str
    mode: str
    connections: int = 64
    kind: str = "small"
    size: int = 64
    rate: float = 0.0
    tls: bool = False
    routes: int = 1
    must: float | None = None  # the ratio to the better of nginx and HAProxy that is the goal
    aim: float | None = None

    def options(self, port: int, seconds: float, server_port: int, connections: int) -> Options:
        """What a load generator is told."""
        return Options(
            mode=self.mode,
            port=port,
            connections=connections,
            seconds=seconds,
            tls=self.tls,
            kind=self.kind,
            size=self.size,
            rate=self.rate,
            routes=self.routes,
            server_port=server_port,
        )


_ALL: Final = (
    Workload("http-small", "GET of 60 bytes", "closed", must=1.4, aim=1.0),
    Workload("http-browser", "the same with a browser's head", "closed", kind="browser", must=1.4, aim=1.0),
    Workload("http-10k", "GET of 10 KiB", "closed", kind="10k", must=1.4, aim=1.0),
    Workload("http-post10k", "POST of 10 KiB", "closed", kind="post", must=1.4, aim=1.0),
    Workload("http-1m", "GET of 1 MiB", "closed", connections=16, kind="1m", must=0.9, aim=0.7),
    Workload("http-close", "a connection for each small GET", "connect", must=1.5, aim=1.1),
    Workload("http-rate", "small GET, 2,000 a second", "rate", rate=2000.0),
    Workload("http-rate-500", "small GET, 500 a second", "rate", rate=500.0),
    Workload("http-rate-8k", "small GET, 8,000 a second", "rate", rate=8000.0),
    Workload("https-small", "GET of 60 bytes, TLS", "closed", tls=True, must=1.35, aim=1.0),
    Workload("tls-handshake", "a TLS connection for each small GET", "connect", tls=True),
    Workload("ws-small", "echo of 64 bytes", "echo", must=1.25, aim=1.0),
    Workload("ws-4k", "echo of 4 KiB", "echo", size=4096, must=1.05, aim=0.9),
    Workload("ws-64k", "echo of 64 KiB", "echo", size=65536, must=0.9, aim=0.7),
    Workload("wss-small", "echo of 64 bytes, TLS", "echo", tls=True, must=1.35, aim=1.0),
    Workload("ws-handshake", "connect, upgrade, close", "handshake", must=1.5, aim=1.1),
    Workload("ws-fanout", "64 bytes to each of 2,000", "fan", connections=2000, must=1.25, aim=1.0),
)
WORKLOADS: Final = {workload.name: workload for workload in _ALL}
