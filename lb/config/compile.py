"""Turns a configuration into the snapshot that the workers serve.

This is where the files that a configuration names are read: certificates, keys, authorities.
"""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from lb.config.certificates import CertificateError, load_certificates
from lb.config.pool import Pool, PoolTls, Server, Sticky
from lb.config.positions import Path
from lb.config.problems import ConfigErrors, Problem, format_value
from lb.config.route import Route
from lb.config.schema import Config, Listen
from lb.config.state import InUse, Rows, State, assign
from lb.config.stickykeys import KeyFileError, create_key, random_key, read_key
from lb.config.units import format_size
from workers.contract import snapshot as spec

_MAX_CA_BYTES: Final = 1024 * 1024


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration that is ready to be served. `certificates` holds chain and key in PEM by listener
    and certificate name; they travel beside the snapshot, never in it."""

    config: Config
    snapshot: spec.Snapshot
    certificates: Mapping[tuple[str, str], bytes]


def compile(config: Config, state: State, generation: int, in_use: InUse) -> tuple[Compiled, State]:
    """The snapshot of `config` as `generation`, and the next state to keep once it is committed.

    `in_use(kind, row)` says of a freed scoreboard row ("listener", "route" or "server") that its cells
    aren't back to zero. Key files that don't exist are made. Raises `ConfigErrors`.
    """
    return _Compiler(config, state, in_use, make_keys=True).run(generation)


def verify(config: Config) -> None:
    """Reads everything that `compile` would, and makes nothing. Raises `ConfigErrors`."""
    _Compiler(config, State(), lambda _kind, _row: False, make_keys=False).run(0)


def file_problems(config: Config) -> list[Problem]:
    """What is wrong with the files that `config` names, which may itself be incomplete."""
    return _Compiler(config, State(), lambda _kind, _row: False, make_keys=False).read_files()


class _Compiler:
    def __init__(self, config: Config, state: State, in_use: InUse, *, make_keys: bool) -> None:
        self._config = config
        self._state = state
        self._in_use = in_use
        self._make_keys = make_keys
        self._problems: list[Problem] = []
        self._certificates: dict[tuple[str, str], bytes] = {}
        self._sticky_keys: dict[str, bytes] = {}
        self._listener_rows: dict[str, int] = {}
        self._route_rows: dict[str, int] = {}
        self._server_rows: dict[tuple[str, str], int] = {}

    def run(self, generation: int) -> tuple[Compiled, State]:
        config = self._config
        listeners, routes, servers = self._assign_rows()
        snapshot = spec.Snapshot(
            generation=generation,
            listeners=tuple(map(self._listener, config.listen)),
            routes=tuple(map(self._route, config.route)),
            pools=tuple(map(self._pool, config.pool)),
            drain=spec.DrainSpec(hard_stop=config.drain.hard_stop),
            access_log=self._access_log(),
        )
        if self._problems:
            raise ConfigErrors(self._problems)
        compiled = Compiled(
            config=config, snapshot=snapshot, certificates=MappingProxyType(self._certificates)
        )
        state = State(
            capacity=self._state.capacity,
            listeners=listeners,
            routes=routes,
            servers=servers,
            sticky_keys=MappingProxyType(self._sticky_keys),
        )
        return compiled, state

    def read_files(self) -> list[Problem]:
        for listener in self._config.listen:
            self._listen_tls(listener)
        for pool in self._config.pool:
            if pool.sticky is not None:
                self._sticky(pool, pool.sticky)
            if pool.tls is not None:
                self._pool_tls(pool, pool.tls)
        return self._problems

    def _add(self, at: Path, message: str, *, value: str = "", hint: str = "") -> None:
        self._problems.append(self._config.source.problem(at, message, value=value, hint=hint))

    # --- scoreboard rows ---------------------------------------------------------------------------

    def _assign_rows(self) -> tuple[Rows, Rows, Rows]:
        config, state, in_use = self._config, self._state, self._in_use
        self._listener_rows, listeners, homeless = assign(
            state.listeners,
            [listener.name for listener in config.listen],
            state.capacity.listeners,
            lambda row: in_use("listener", row),
        )
        self._refuse("listeners", state.capacity.listeners, [("listen", name) for name in homeless])
        self._route_rows, routes, homeless = assign(
            state.routes,
            [route.name for route in config.route],
            state.capacity.routes,
            lambda row: in_use("route", row),
        )
        places = {route.name: index for index, route in enumerate(config.route)}
        self._refuse("routes", state.capacity.routes, [("route", places[name]) for name in homeless])
        self._server_rows, servers, without = assign(
            state.servers,
            [(pool.name, server.label) for pool in config.pool for server in pool.every_server],
            state.capacity.servers,
            lambda row: in_use("server", row),
        )
        self._refuse(
            "servers",
            state.capacity.servers,
            [("pool", pool, "servers") for pool, _ in without],
            [name for _, name in without],
        )
        return listeners, routes, servers

    def _refuse(self, what: str, capacity: int, places: Sequence[Path], names: Sequence[str] = ()) -> None:
        for place, name in itertools.zip_longest(places, names):
            message = f"is beyond the capacity of {capacity} {what} (those just removed still count)"
            self._add(place, message, value=format_value(name) if name else "")

    # --- listeners ---------------------------------------------------------------------------------

    def _listener(self, listener: Listen) -> spec.ListenerSpec:
        return spec.ListenerSpec(
            slot=self._listener_rows.get(listener.name, 0),
            name=listener.name,
            bind=listener.bind,
            trusted_proxies=listener.trusted_proxies,
            tls=self._listen_tls(listener),
            redirect_https=listener.redirect_https,
            redirect_port=_tls_port(self._config),
            timeouts=spec.ListenTimeouts(**msgspec.structs.asdict(listener.timeouts)),
            limits=spec.ListenLimits(**msgspec.structs.asdict(listener.limits)),
        )

    def _listen_tls(self, listener: Listen) -> spec.ListenTls | None:
        # Without certs the file was refused already.
        if listener.tls is None or not listener.tls.certs:
            return None
        try:
            loaded = load_certificates(listener.tls.certs, self._config.source.base)
        except CertificateError as error:
            self._add(("listen", listener.name, "tls", "certs"), f"{error.file}: {error.message}")
            return None
        for certificate in loaded:
            self._certificates[listener.name, certificate.name] = certificate.pem
        specs = [
            spec.CertificateSpec(name=one.name, hosts=tuple(one.hosts), not_after=one.not_after)
            for one in loaded
        ]
        return spec.ListenTls(certificates=tuple(specs))

    # --- routes ------------------------------------------------------------------------------------

    def _route(self, route: Route) -> spec.RouteSpec:
        websocket = route.websocket
        return spec.RouteSpec(
            slot=self._route_rows.get(route.name, 0),
            name=route.name,
            host=route.host,
            path=route.path,
            pool=route.pool,
            strip_prefix=route.strip_prefix,
            headers=spec.HeaderRules(**msgspec.structs.asdict(route.headers)),
            websocket=spec.WebSocketSpec(
                idle=websocket.idle, max_age=websocket.max_age, inspect=websocket.inspect
            ),
            retry=spec.RetrySpec(**msgspec.structs.asdict(route.retry)),
        )

    # --- pools -------------------------------------------------------------------------------------

    def _pool(self, pool: Pool) -> spec.PoolSpec:
        kind, _, name = pool.hash_on.partition(":")
        return spec.PoolSpec(
            name=pool.name,
            servers=tuple(self._server(pool, server) for server in pool.every_server),
            balance=pool.balance,
            hash_on=msgspec.convert({"kind": kind, "name": name}, spec.HashSpec),
            sticky=None if pool.sticky is None else self._sticky(pool, pool.sticky),
            queue=spec.QueueSpec(**msgspec.structs.asdict(pool.queue)),
            timeouts=spec.UpstreamTimeouts(**msgspec.structs.asdict(pool.timeouts)),
            keep_alive=spec.KeepAliveSpec(**msgspec.structs.asdict(pool.keep_alive)),
            tls=None if pool.tls is None else self._pool_tls(pool, pool.tls),
        )

    def _server(self, pool: Pool, server: Server) -> spec.ServerSpec:
        host: str | None = None
        port, path = 0, None
        if server.address.startswith("unix:"):
            path = server.address.removeprefix("unix:")
        else:
            host, _, digits = server.address.rpartition(":")
            host, port = host.strip("[]"), int(digits)
        return spec.ServerSpec(
            slot=self._server_rows.get((pool.name, server.label), 0),
            name=server.label,
            host=host,
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
            self._sticky_keys[pool.name] = key
            return key
        path = self._config.resolve(sticky.key_file)
        try:
            key_in_file = read_key(path)
            if key_in_file is None and self._make_keys:
                key_in_file = create_key(path)
        except KeyFileError as error:
            self._add(("pool", pool.name, "sticky", "key_file"), f"{path}: {error}")
            return b""
        return key_in_file or b""

    def _pool_tls(self, pool: Pool, tls: PoolTls) -> spec.UpstreamTls:
        authorities = "" if tls.ca is None else self._authorities(pool, tls.ca)
        return spec.UpstreamTls(verify=tls.verify, sni=tls.sni or "", ca=authorities)

    def _authorities(self, pool: Pool, ca: str) -> str:
        path = self._config.resolve(ca)
        at = ("pool", pool.name, "tls", "ca")
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_CA_BYTES + 1)
            if len(content) > _MAX_CA_BYTES:
                raise ValueError(f"is larger than {format_size(_MAX_CA_BYTES)}")
            text = content.decode("ascii")
            ssl.create_default_context(cadata=text)
        except ssl.SSLError as error:
            self._add(at, f"{path}: holds no PEM certificates: {error.reason or error}")
        except OSError as error:
            self._add(at, f"{path}: can't be read: {error.strerror}")
        except UnicodeDecodeError:
            self._add(at, f"{path}: is not PEM", hint="convert DER with openssl x509 -inform der")
        except ValueError as error:
            self._add(at, f"{path}: {error}")
        else:
            return text
        return ""

    def _access_log(self) -> spec.AccessLogSpec:
        log = self._config.access_log
        path = log.path if log.path in ("-", "off") else str(self._config.resolve(log.path))
        return spec.AccessLogSpec(path=path, format=log.format, sample=log.sample)


def _tls_port(config: Config) -> int:
    """The port that https:// redirects go to: the first TCP port of a listener with TLS."""
    for listener in config.listen:
        if listener.tls is not None:
            for address in listener.bind:
                if not address.startswith("unix:"):
                    return int(address.rpartition(":")[2])
    return 443
