"""Puts together what the sources found."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping

from lb.control.spec import ControlSpec, DiscoverSpec, Discovery, FoundServer


def merged(parts: Iterable[tuple[FoundServer, ...]]) -> tuple[FoundServer, ...]:
    """The servers of all parts in their order; of those with the same name the first counts."""
    servers: dict[str, FoundServer] = {}
    for part in parts:
        for server in part:
            servers.setdefault(server.name, server)
    return tuple(servers.values())


def host_to_resolve(server: FoundServer) -> str | None:
    """The host name in the server's address; `None` for an IP address or a Unix socket."""
    if server.address.startswith("unix:"):
        return None
    return name_to_resolve(server.address.rpartition(":")[0])


@functools.lru_cache(maxsize=8192)
def name_to_resolve(host: str) -> str | None:
    """`host` where it is a name, `None` where it is an IP address."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host
    return None


def is_news(told: Discovery, now: Discovery) -> bool:
    """Whether `now` has something that is not in `told`. What only went away is none: nobody asked for it
    any more."""
    return _differs(told.servers, now.servers) or _differs(told.addresses, now.addresses)


def _differs(told: Mapping[str, object], now: Mapping[str, object]) -> bool:
    return any(told.get(key) != value for key, value in now.items())


def sources_of(spec: DiscoverSpec) -> list[tuple[str, str, float]]:
    """Kind, name and refresh time of what `spec` asks for, in the order in which answers are merged."""
    files = [("file", spec.file, spec.refresh)] if spec.file is not None else []
    return [*files, *(("srv", name, 0.0) for name in spec.srv)]


def hosts_of(spec: ControlSpec, found: Iterable[tuple[FoundServer, ...]]) -> set[str]:
    """All names to resolve: of the configuration, and of what was found."""
    names = {name for host in spec.names if (name := name_to_resolve(host)) is not None}
    for servers in found:
        names.update(name for server in servers if (name := host_to_resolve(server)) is not None)
    return names
