"""Host names to IP addresses: A and AAAA records, and /etc/hosts."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final, NamedTuple

from lb.control.discovery.resolver import Empty, Resolver
from lb.control.discovery.source import LONGEST_BACK_OFF, MOST_TTL, NO_TTL, Answer, Failed, clamp
from lb.control.spec import MAX_ADDRESSES

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class Half(NamedTuple):
    """What one of the two questions brought: addresses, or why there are none."""

    addresses: tuple[str, ...] = ()
    ttl: float = MOST_TTL
    failed: Failed | None = None


def in_order(addresses: set[str]) -> tuple[str, ...]:
    """IPv4 before IPv6, each by number: name servers rotate their answers, and that is no change."""
    return tuple(
        str(address)
        for address in sorted(map(ipaddress.ip_address, addresses), key=lambda one: (one.version, int(one)))
    )


def combine(four: Half, six: Half, last: tuple[str, ...]) -> Answer[tuple[str, ...]]:
    """The addresses of a name. Where one question failed and the other did not, the addresses of that family
    that were known are kept, and asked for again soon. Raises `Failed` where there are none at all."""
    found = {*four.addresses, *six.addresses}
    if not found:
        raise next(
            (half.failed for half in (four, six) if half.failed and not isinstance(half.failed, Empty)),
            four.failed or six.failed or Empty("no addresses"),
        )
    again = clamp(min(four.ttl, six.ttl))
    for half, version in ((four, 4), (six, 6)):
        if half.failed is not None and not isinstance(half.failed, Empty):
            kept = {address for address in last if ipaddress.ip_address(address).version == version}
            again = min(again, LONGEST_BACK_OFF) if kept else again
            found |= kept
    return _bounded(in_order(found), again)


def _bounded(addresses: tuple[str, ...], again: float) -> Answer[tuple[str, ...]]:
    if len(addresses) <= MAX_ADDRESSES:
        return Answer(addresses, again)
    warning = f"has more than {MAX_ADDRESSES} addresses, the others are not used"
    return Answer(addresses[:MAX_ADDRESSES], again, warning)


class HostName:
    """Asks for the addresses of one name."""

    def __init__(self, resolver: Resolver, name: str, last: tuple[str, ...] = ()) -> None:
        self._resolver = resolver
        self._name = name
        self._last = last

    async def ask(self) -> Answer[tuple[str, ...]]:
        """Its addresses. Raises `Failed`."""
        if addresses := await self._resolver.in_hosts_file(self._name):
            answer = _bounded(in_order(set(addresses)), NO_TTL)
        else:
            four, six = await asyncio.gather(*(self._half(family) for family in _FAMILIES))
            answer = combine(four, six, self._last)
        self._last = answer.value
        return answer

    async def _half(self, family: socket.AddressFamily) -> Half:
        try:
            return Half(*await self._resolver.addresses(self._name, family))
        except Failed as failed:
            return Half(failed=failed)
