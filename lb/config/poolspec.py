"""Compiles the pools: servers, checks, stickiness, TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from lb.config import text
from lb.config.checks import Eject, Health, checks_of
from lb.config.files import read_regular
from lb.config.pool import Admission, Pool, PoolTls, Server, Sticky
from lb.config.problems import Report
from lb.config.rows import AllRows, row_of
from lb.config.schema import Config
from lb.config.state import State
from lb.config.stickykeys import KeyFileError, create_key, random_key, read_key
from lb.config.units import format_size
from lb.control.spec import Discovery
from workers.contract import snapshot as spec

_MAX_CA_BYTES: Final = 1024 * 1024


class PoolCompiler:
    """The pools of one configuration. `sticky_keys` holds, by pool, the keys that are in no file."""

    def __init__(
        self, config: Config, state: State, discovery: Discovery, errors: Report, *, make_keys: bool
    ) -> None:
        self._config = config
        self._state = state
        self._discovery = discovery
        self._errors = errors
        self._make_keys = make_keys
        self.sticky_keys: dict[str, bytes] = {}

    def run(self, servers: Mapping[str, tuple[Server, ...]], rows: AllRows) -> Iterator[spec.PoolSpec]:
        """The specs, in file order. `servers` are those of each pool, found ones too."""
        for pool in self._config.pool:
            yield self._pool(pool, servers[pool.name], rows)

    def again(
        self, before: tuple[spec.PoolSpec, ...], servers: Mapping[str, tuple[Server, ...]], rows: AllRows
    ) -> Iterator[spec.PoolSpec]:
        """The specs `before`, those of the same configuration, with other servers. Reads no file."""
        for pool, compiled in zip(self._config.pool, before, strict=True):
            yield msgspec.structs.replace(
                compiled,
                servers=self._servers(pool, servers[pool.name], rows),
                checks=_checks(pool, servers[pool.name]),
            )

    def read_files(self) -> None:
        """Reports what is wrong with the files that the pools name."""
        for pool in self._config.pool:
            if pool.sticky is not None:
                self._sticky(pool, pool.sticky)
            if pool.tls is not None:
                self._pool_tls(pool, pool.tls)

    def _pool(self, pool: Pool, servers: tuple[Server, ...], rows: AllRows) -> spec.PoolSpec:
        kind, _, name = pool.hash_on.partition(":")
        row = row_of(rows.pools, pool.name)
        return spec.PoolSpec(
            slot=row.slot,
            owner=row.owner,
            name=pool.name,
            servers=self._servers(pool, servers, rows),
            checks=_checks(pool, servers),
            eject=None if pool.eject is None else _eject(pool.eject),
            slow_start=pool.slow_start,
            balance=pool.balance,
            hash_on=msgspec.convert({"kind": kind, "name": name}, spec.HashSpec),
            sticky=None if pool.sticky is None else self._sticky(pool, pool.sticky),
            queue=spec.QueueSpec(**msgspec.structs.asdict(pool.queue)),
            timeouts=spec.UpstreamTimeouts(**msgspec.structs.asdict(pool.timeouts)),
            keep_alive=spec.KeepAliveSpec(**msgspec.structs.asdict(pool.keep_alive)),
            tls=None if pool.tls is None else self._pool_tls(pool, pool.tls),
            admission=None if pool.admission is None else _admission(pool.admission),
            on_removed=pool.on_removed,
        )

    def _servers(self, pool: Pool, servers: tuple[Server, ...], rows: AllRows) -> tuple[spec.ServerSpec, ...]:
        return tuple(self._server(pool, server, rows) for server in servers)

    def _server(self, pool: Pool, server: Server, rows: AllRows) -> spec.ServerSpec:
        host: str | None = None
        port, path = 0, None
        if server.address.startswith("unix:"):
            path = server.address.removeprefix("unix:")
        else:
            host, _, digits = server.address.rpartition(":")
            host, port = host.strip("[]"), int(digits)
        row = row_of(rows.servers, (pool.name, server.label))
        return spec.ServerSpec(
            slot=row.slot,
            owner=row.owner,
            name=server.label,
            host=host,
            addresses=() if host is None else self._discovery.addresses.get(host, ()),
            port=port,
            path=path,
            weight=server.weight,
            backup=server.backup,
            max_connections=server.max_connections,
        )

    def _sticky(self, pool: Pool, sticky: Sticky) -> spec.StickySpec:
        if sticky.cookie is not None:
            return spec.StickySpec(kind="cookie", name=sticky.cookie, key=self._sticky_key(pool, sticky))
        if sticky.header is not None:
            return spec.StickySpec(kind="header", name=sticky.header)
        if sticky.query is not None:
            return spec.StickySpec(kind="query", name=sticky.query)
        return spec.StickySpec(kind="ip")

    def _sticky_key(self, pool: Pool, sticky: Sticky) -> bytes:
        if sticky.key_file is None:
            key = self._state.sticky_keys.get(pool.name) or random_key()
            self.sticky_keys[pool.name] = key
            return key
        path = self._config.resolve(sticky.key_file)
        try:
            key_in_file = read_key(path)
            if key_in_file is None and self._make_keys:
                key_in_file = create_key(path)
        except KeyFileError as error:
            self._errors.add(("pool", pool.name, "sticky", "key_file"), f"{path}: {error}")
            return b""
        return key_in_file or b""

    def _pool_tls(self, pool: Pool, tls: PoolTls) -> spec.UpstreamTls:
        authorities = "" if tls.ca is None else self._authorities(pool, tls.ca)
        return spec.UpstreamTls(verify=tls.verify, sni=tls.sni or "", ca=authorities)

    def _authorities(self, pool: Pool, ca: str) -> str:
        path = self._config.resolve(ca)
        at = ("pool", pool.name, "tls", "ca")
        try:
            content, _ = read_regular(path, _MAX_CA_BYTES + 1)
            if len(content) > _MAX_CA_BYTES:
                raise ValueError(f"is larger than {format_size(_MAX_CA_BYTES)}")
            pem = content.decode("ascii")
            ssl.create_default_context(cadata=pem)
        except ssl.SSLError as error:
            self._errors.add(at, f"{path}: holds no PEM certificates: {error.reason or error}")
        except OSError as error:
            self._errors.add(at, f"{path}: can't be read: {error.strerror}")
        except UnicodeDecodeError:
            self._errors.add(at, f"{path}: is not PEM", hint="convert DER with openssl x509 -inform der")
        except ValueError as error:
            self._errors.add(at, f"{path}: {error}")
        else:
            return pem
        return ""


def _checks(pool: Pool, servers: tuple[Server, ...]) -> tuple[spec.HealthSpec | None, ...]:
    checks = tuple(_health(checks_of(pool.health, server.health)) for server in servers)
    return checks if any(checks) else ()


def _health(checks: Health | None) -> spec.HealthSpec | None:
    if checks is None:
        return None
    return spec.HealthSpec(
        type=checks.type,
        path=checks.path,
        every=checks.every,
        timeout=checks.timeout,
        fall=checks.fall,
        rise=checks.rise,
        port=checks.port,
        host=checks.host,
        status=tuple(text.status_ranges(checks.status)),
        body=checks.body,
        tls=checks.tls,
    )


def _admission(admission: Admission) -> spec.AdmissionSpec:
    return spec.AdmissionSpec(**msgspec.structs.asdict(admission))


def _eject(eject: Eject) -> spec.EjectSpec:
    return spec.EjectSpec(
        consecutive_errors=eject.consecutive_errors,
        gateway_failures=eject.gateway_failures,
        connect_failures=eject.connect_failures,
        duration=eject.for_,
        max_duration=eject.max_for,
        max_percent=eject.max_percent,
        panic_percent=eject.panic_percent,
    )
