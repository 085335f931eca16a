"""What is checked, and where it is."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from typing import Final

from workers.contract.snapshot import HealthSpec, PoolSpec, ServerSpec, UpstreamTls
from workers.contract.trust import client_context, server_name

_DEFAULT_PORTS: Final = {False: 80, True: 443}


class Contexts:
    """TLS contexts by settings: to make one reads the system's store."""

    def __init__(self) -> None:
        self._made: dict[UpstreamTls, ssl.SSLContext] = {}

    def get(self, tls: UpstreamTls) -> ssl.SSLContext:
        """The context for `tls`. Raises `TlsSetupError`."""
        context = self._made.get(tls)
        if context is None:
            context = self._made[tls] = client_context(tls)
        return context

    def keep(self, wanted: set[UpstreamTls]) -> None:
        """Forgets what is not wanted any more."""
        self._made = {tls: context for tls, context in self._made.items() if tls in wanted}


def tls_of(spec: HealthSpec, pool: PoolSpec) -> UpstreamTls | None:
    """How the checks of `pool` speak TLS: as its requests do, unless the check says otherwise."""
    if spec.tls is None:
        return pool.tls
    return (pool.tls or UpstreamTls()) if spec.tls else None


class Target:
    """One server with its check. `stage` says what the running check is at, for the one that runs out of
    time.

    A server with several addresses is checked on one of them at a time, in turn: it is down only where
    `fall` of them in a row fail, as its requests, which take them in turn too, would find it.
    """

    __slots__ = ("_contexts", "_looking_up", "_turn", "server", "spec", "stage", "tls")

    def __init__(
        self, server: ServerSpec, spec: HealthSpec, tls: UpstreamTls | None, contexts: Contexts
    ) -> None:
        self.server = server
        self.spec = spec
        self.tls = tls
        self.stage = ""
        self._contexts = contexts
        self._turn = 0
        self._looking_up: asyncio.Future[list[str]] | None = None

    def same_as(self, other: Target) -> bool:
        """Whether the checks of both ask the same thing at the same place."""
        ours, theirs = self.server, other.server
        return (self.spec, self.tls, ours.host, ours.port, ours.path) == (
            other.spec, other.tls, theirs.host, theirs.port, theirs.path,
        )  # fmt: skip

    @property
    def port(self) -> int:
        """The TCP port to check."""
        return self.spec.port or self.server.port

    @property
    def host_field(self) -> str:
        """What the Host field says."""
        if self.spec.host:
            return self.spec.host
        if self.server.host is None:
            return "localhost"
        host = f"[{self.server.host}]" if ":" in self.server.host else self.server.host
        default = self.port == _DEFAULT_PORTS[self.tls is not None]
        return host if default else f"{host}:{self.port}"

    @property
    def tls_name(self) -> str:
        """The name to ask for, and to verify; empty where there is none."""
        if self.spec.host:
            return _without_port(self.spec.host)
        return (server_name(self.tls, self.server.host) if self.tls else None) or ""

    def context(self) -> ssl.SSLContext:
        """The context for the TLS that is spoken. Raises `TlsSetupError`."""
        assert self.tls is not None
        return self._contexts.get(self.tls)

    async def address(self) -> str:
        """The IP address to check now. Raises `OSError` where the name is not resolved."""
        server = self.server
        assert server.host is not None
        if _is_literal(server.host):
            return server.host
        found = server.addresses or await self._look_up(server.host)
        self._turn += 1
        return found[self._turn % len(found)]

    async def _look_up(self, host: str) -> list[str]:
        """The system's answer. It may take longer than a check, so the next one waits for the same."""
        if self._looking_up is None or self._looking_up.done():
            self._looking_up = asyncio.ensure_future(_resolve(host))
        return await asyncio.shield(self._looking_up)

    def close(self) -> None:
        """Waits for no name any more."""
        if self._looking_up is not None:
            self._looking_up.cancel()


async def _resolve(host: str) -> list[str]:
    answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in answers]


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _without_port(authority: str) -> str:
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    host, colon, port = authority.rpartition(":")
    return host if colon and port.isdigit() and ":" not in host else authority
