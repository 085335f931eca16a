"""What the control process is told, and what it finds, beside the snapshot that the workers serve."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

MAX_ADDRESSES: Final = 256  # of one name; each goes into every snapshot


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of these structs."""


class DiscoverSpec(Spec, frozen=True, kw_only=True):
    """Where the servers of a pool are found: in a file (absolute path, looked at every `refresh` seconds),
    or by SRV records (RFC 2782) of the names `srv` ("_ws._tcp.example.com")."""

    pool: str
    file: str | None = None
    refresh: float = 1.0
    srv: tuple[str, ...] = ()


class ControlSpec(Spec, frozen=True, kw_only=True):
    """The part of a configuration that is the control process's alone. It holds the admin token, so it
    never goes to a worker."""

    generation: int
    config_path: str
    config_text: str  # the file as it was read
    metrics: str | None = None  # address that /metrics is served on
    admin: str | None = None  # address of the admin API, "unix:/path" or "host:port"
    admin_token: str = ""  # what callers over TCP must show
    nameservers: tuple[str, ...] = ()  # "host:port" to ask instead of the system's
    names: tuple[str, ...] = ()  # host names of servers to resolve
    discover: tuple[DiscoverSpec, ...] = ()


class FoundServer(Spec, frozen=True, kw_only=True):
    """A server that was found. `address` is "host:port"; where it is a name, `Discovery.addresses` has what
    it stands for."""

    name: str
    address: str
    weight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    backup: bool = False


_NO_SERVERS: Final[Mapping[str, tuple[FoundServer, ...]]] = types.MappingProxyType({})
_NO_ADDRESSES: Final[Mapping[str, tuple[str, ...]]] = types.MappingProxyType({})


class Discovery(Spec, frozen=True, kw_only=True):
    """All that was found so far: servers by pool, and IP addresses (sorted) by host name. What fails keeps
    its last answer, so an entry never goes away by itself."""

    servers: Mapping[str, tuple[FoundServer, ...]] = _NO_SERVERS
    addresses: Mapping[str, tuple[str, ...]] = _NO_ADDRESSES
