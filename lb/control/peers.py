"""Who is at the other end, as far as limits are concerned."""

from __future__ import annotations

import ipaddress


def network(address: str) -> str:
    """What `address` counts as: IPv6 by the /64, which one machine has for itself, and mapped IPv4 as
    IPv4."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def is_loopback(address: str) -> bool:
    """Whether `address` is of this machine alone."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = None if parsed.version == 4 else parsed.ipv4_mapped
    return (mapped or parsed).is_loopback
