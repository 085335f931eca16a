"""SRV records (RFC 2782) to servers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from lb.config.text import Wrong, server_address
from lb.control.discovery.resolver import Resolver
from lb.control.discovery.source import Answer, Failed, clamp
from lb.control.spec import FoundServer

MAX_WEIGHT: Final = 1000  # as in the configuration


class Record(Protocol):
    """The data of an SRV record."""

    priority: int
    weight: int
    port: int
    target: str


class _Place(NamedTuple):
    priority: int
    address: str
    weight: int


def found_servers(records: Iterable[Record]) -> tuple[FoundServer, ...]:
    """The servers that the records name: those with the lowest priority value, then as backups all others.

    Weights keep their proportions; 0 becomes 1, the least there is ("a very small chance"). The target "."
    says that there is decidedly no such service: no servers. Raises `Failed` for what is no address.
    """
    places = sorted(
        _Place(record.priority, _address(record), record.weight)
        for record in records
        if record.target.rstrip(".")
    )
    heaviest = max((place.weight for place in places), default=0)
    servers: dict[str, FoundServer] = {}
    for place in places:
        server = FoundServer(
            name=place.address,
            address=place.address,
            weight=scaled(place.weight, heaviest),
            backup=place.priority > places[0].priority,
        )
        servers.setdefault(server.name, server)
    return tuple(servers.values())


def scaled(weight: int, heaviest: int) -> int:
    """`weight` brought into 1..1000, in proportion to the heaviest."""
    if heaviest > MAX_WEIGHT:
        weight = round(weight * MAX_WEIGHT / heaviest)
    return max(weight, 1)


def _address(record: Record) -> str:
    text = f"{record.target.rstrip('.')}:{record.port}"
    try:
        return server_address(text)
    except Wrong as wrong:
        raise Failed(f'the SRV record names "{text}": {wrong.message}') from wrong


class ServiceName:
    """Asks for the servers of one service, "_ws._tcp.example.com"."""

    def __init__(self, resolver: Resolver, name: str) -> None:
        self._resolver = resolver
        self._name = name

    async def ask(self) -> Answer[tuple[FoundServer, ...]]:
        """Its servers. Raises `Failed`."""
        records, ttl = await self._resolver.services(self._name)
        return Answer(found_servers(records), clamp(ttl))
