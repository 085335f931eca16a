"""DNS as the system does it (/etc/hosts, resolv.conf), by c-ares, with TTLs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import aiodns
import pycares

from lb.control.discovery.source import Failed

_TRY: Final = 1.0  # seconds for the first try; the second has twice as long
_TRIES: Final = 2
_NO_SORT: Final = 1 << 7  # ARES_AI_NOSORT: the answers are sorted here, without asking the routing table
_EMPTY: Final = frozenset({aiodns.error.ARES_ENODATA, aiodns.error.ARES_ENOTFOUND})


class Empty(Failed):
    """The name server answered that there is no such name or no such record."""


class Resolver:
    """Asks the system's name servers, or `nameservers` ("host:port") instead. Search domains are those of
    resolv.conf in either case. Changes of that file are noticed by c-ares."""

    def __init__(self, nameservers: tuple[str, ...]) -> None:
        self._nameservers = nameservers
        self._open: dict[str, aiodns.DNSResolver] = {}

    async def in_hosts_file(self, name: str) -> tuple[str, ...]:
        """Addresses that /etc/hosts has for `name`; none where it has none. Asked before DNS and for both
        families at once, as the system does: an IPv4 entry there also hides IPv6 records."""
        try:
            found = await self._channel("files").getaddrinfo(name, type=socket.SOCK_STREAM, flags=_NO_SORT)
        except aiodns.error.DNSError:
            return ()  # "could not contact": this channel has no servers
        return _addresses(found)

    async def addresses(self, name: str, family: socket.AddressFamily) -> tuple[tuple[str, ...], int]:
        """The addresses of `name` and their TTL in seconds. Raises `Failed`."""
        with _explained():
            found = await self._channel("dns").getaddrinfo(
                name, family=family, type=socket.SOCK_STREAM, flags=_NO_SORT
            )
        # The whole chain of aliases has to be true: its shortest TTL counts.
        ttl = min([node.ttl for node in found.nodes] + [cname.ttl for cname in found.cnames], default=0)
        return _addresses(found), ttl

    async def services(self, name: str) -> tuple[list[pycares.SRVRecordData], int]:
        """The SRV records of `name` (absolute: no search domain is tried) and their TTL. Raises `Failed`."""
        with _explained():
            found = await self._channel("dns").query_dns(name, "SRV")
        records = [record for record in found.answer if isinstance(record.data, pycares.SRVRecordData)]
        if not records:
            raise Empty("no SRV record")
        ttl = min(record.ttl for record in found.answer)
        return [record.data for record in records if isinstance(record.data, pycares.SRVRecordData)], ttl

    def _channel(self, lookups: str) -> aiodns.DNSResolver:
        """Opened when first used: c-ares has a thread for each."""
        channel = self._open.get(lookups)
        if channel is None:
            try:
                if lookups == "files":
                    channel = aiodns.DNSResolver(lookups="f")
                else:
                    channel = aiodns.DNSResolver(self._nameservers or None, timeout=_TRY, tries=_TRIES)
            except (pycares.AresError, OSError) as error:
                raise Failed(f"can't ask name servers: {error}") from error
            self._open[lookups] = channel
        return channel

    async def close(self) -> None:
        """Gives up all that is asked for."""
        while self._open:
            await self._open.popitem()[1].close()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except aiodns.error.DNSError as error:
        number, text = error.args
        if number in _EMPTY:
            raise Empty(
                "no such name" if number == aiodns.error.ARES_ENOTFOUND else "no such record"
            ) from error
        raise Failed(text) from error


def _addresses(found: pycares.AddrInfoResult) -> tuple[str, ...]:
    return tuple(node.addr[0].decode("ascii") for node in found.nodes)
