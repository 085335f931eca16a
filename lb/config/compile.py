"""Turns a configuration into the snapshot that the workers serve, and what control gets beside it.

This is where the files that a configuration names are read: certificates, keys, authorities, servers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from lb.config.controlspec import control_spec, names_of, read_token
from lb.config.found import every_server, with_files
from lb.config.poolspec import PoolCompiler
from lb.config.problems import ConfigErrors, Problem, Report
from lb.config.route import Route
from lb.config.rows import AllRows, assign_rows, row_of
from lb.config.schema import Config, Listen
from lb.config.state import InUse, State, retired
from lb.control.spec import ControlSpec, Discovery
from workers.contract import snapshot as spec


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration that is ready to be served. `config` has the warnings about the files that
    it names as well. `certificates` holds chain and key in PEM by listener and certificate name; they
    travel beside the snapshot, never in it. `control.admin` is None where the file doesn't say: see
    `Config.admin_address`. `discovery` is what the servers come from: what had been found, and what was in
    files that nobody had looked into."""

    config: Config
    snapshot: spec.Snapshot
    control: ControlSpec
    discovery: Discovery
    certificates: Mapping[tuple[str, str], bytes]


def compile(
    config: Config, state: State, generation: int, in_use: InUse, discovery: Discovery | None = None
) -> tuple[Compiled, State]:
    """The snapshot of `config` as `generation`, and the next state to keep once it is committed.

    `in_use(kind, row)` says of a freed scoreboard row ("listener", "route", "pool" or "server") that its
    cells aren't back to zero. `discovery` holds the servers and addresses that were found so far; a file
    with servers is read here only as long as nothing was found in it. Files for keys and
    the token that don't exist are made. Raises `ConfigErrors`.
    """
    return _Compiler(config, state, in_use, discovery or Discovery(), make_files=True).run(generation)


def recompile(
    before: Compiled, state: State, generation: int, in_use: InUse, discovery: Discovery
) -> tuple[Compiled, State]:
    """`before` with the servers and addresses of `discovery`, and the next state. Everything else stays as it
    was compiled, and no file is read: what is found takes nothing along that waits for a reload, and fails
    for nothing that has become wrong since. Raises `ConfigErrors`."""
    return _Compiler(before.config, state, in_use, discovery, make_files=False).again(before, generation)


def verify(config: Config) -> Config:
    """Reads everything that `compile` would, and makes nothing; returns `config` with the warnings about
    what was read. Raises `ConfigErrors`."""
    compiled, _ = _Compiler(config, State(), _never, Discovery(), make_files=False).run(0)
    return compiled.config


def file_problems(config: Config) -> list[Problem]:
    """What is wrong with the files that `config` names, which may itself be incomplete."""
    return _Compiler(config, State(), _never, Discovery(), make_files=False).read_files()


def _never(_kind: str, _row: int) -> bool:
    return False


class _Compiler:
    def __init__(
        self, config: Config, state: State, in_use: InUse, discovery: Discovery, *, make_files: bool
    ) -> None:
        self._config = config
        self._state = state
        self._in_use = in_use
        self._discovery = discovery
        self._errors = Report(config.source)
        self._warnings = Report(config.source)
        self._certificates: dict[tuple[str, str], bytes] = {}
        self._rows = AllRows()
        self._make_files = make_files
        self._pools = PoolCompiler(config, state, discovery, self._errors, make_keys=make_files)

    def again(self, before: Compiled, generation: int) -> tuple[Compiled, State]:
        servers = every_server(self._config, self._discovery, self._warnings)
        rows = assign_rows(self._config, servers, self._state, self._in_use, generation, self._errors)
        if self._errors.problems:
            raise ConfigErrors(self._errors.problems)
        self._rows = rows
        retired_routes, retired_servers = self._retired()
        snapshot = msgspec.structs.replace(
            before.snapshot,
            generation=generation,
            pools=tuple(self._pools.again(before.snapshot.pools, servers, rows)),
            retired_routes=retired_routes,
            retired_servers=retired_servers,
        )
        control = msgspec.structs.replace(before.control, generation=generation, names=names_of(snapshot))
        compiled = msgspec.structs.replace(
            before, snapshot=snapshot, control=control, discovery=self._discovery
        )
        following = msgspec.structs.replace(
            self._state, listeners=rows.listeners, routes=rows.routes, pools=rows.pools, servers=rows.servers
        )
        return compiled, following

    def run(self, generation: int) -> tuple[Compiled, State]:
        config = self._config
        discovery = with_files(config, self._state, self._discovery, self._errors)
        servers = every_server(config, discovery, self._warnings)
        self._rows = assign_rows(config, servers, self._state, self._in_use, generation, self._errors)
        snapshot = self._snapshot(generation, tuple(self._pools.run(servers, self._rows)))
        control = control_spec(config, snapshot, self._errors, self._warnings, make_token=self._make_files)
        if self._errors.problems:
            raise ConfigErrors(self._errors.problems)
        compiled = Compiled(
            config=msgspec.structs.replace(config, file_warnings=tuple(self._warnings.problems)),
            snapshot=snapshot,
            control=control,
            discovery=discovery,
            certificates=MappingProxyType(self._certificates),
        )
        return compiled, self._next_state()

    def read_files(self) -> list[Problem]:
        for listener in self._config.listen:
            self._listen_tls(listener)
        self._pools.read_files()
        with_files(self._config, self._state, self._discovery, self._errors)
        read_token(self._config, self._errors, self._warnings, make=False)
        return self._errors.problems

    def _snapshot(self, generation: int, pools: tuple[spec.PoolSpec, ...]) -> spec.Snapshot:
        retired_routes, retired_servers = self._retired()
        return spec.Snapshot(
            generation=generation,
            listeners=tuple(map(self._listener, self._config.listen)),
            routes=tuple(map(self._route, self._config.route)),
            pools=pools,
            drain=spec.DrainSpec(**msgspec.structs.asdict(self._config.drain)),
            access_log=self._access_log(),
            retired_routes=retired_routes,
            retired_servers=retired_servers,
        )

    def _retired(self) -> tuple[tuple[spec.RetiredRow, ...], tuple[spec.RetiredRow, ...]]:
        state, rows = self._state, self._rows
        routes = retired(state.routes, rows.routes, lambda row: self._in_use("route", row))
        servers = retired(state.servers, rows.servers, lambda row: self._in_use("server", row))
        return (
            tuple(spec.RetiredRow(slot=row.slot, owner=row.owner, name=name) for name, row in routes.items()),
            tuple(
                spec.RetiredRow(slot=row.slot, owner=row.owner, name=name, pool=pool)
                for (pool, name), row in servers.items()
            ),
        )

    def _next_state(self) -> State:
        rows = self._rows
        files = {pool.name: pool.discover.file for pool in self._config.pool if pool.discover is not None}
        return State(
            capacity=self._state.capacity,
            listeners=rows.listeners,
            routes=rows.routes,
            pools=rows.pools,
            servers=rows.servers,
            sticky_keys=MappingProxyType(self._pools.sticky_keys),
            servers_files=MappingProxyType(files),
        )

    # --- listeners ---------------------------------------------------------------------------------

    def _listener(self, listener: Listen) -> spec.ListenerSpec:
        row = row_of(self._rows.listeners, listener.name)
        return spec.ListenerSpec(
            slot=row.slot,
            owner=row.owner,
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
        # Here, since it takes a tenth of the whole start, and many have no certificates.
        from lb.config.certificates import CertificateError, expiry_warning, load_certificates

        try:
            loaded = load_certificates(listener.tls.certs, self._config.source.base)
        except CertificateError as error:
            self._errors.add(("listen", listener.name, "tls", "certs"), f"{error.file}: {error.message}")
            return None
        for certificate in loaded:
            warning = expiry_warning(certificate, time.time())
            if warning is not None:
                self._warnings.add(("listen", listener.name, "tls", "certs"), warning)
            self._certificates[listener.name, certificate.name] = certificate.pem
        specs = [
            spec.CertificateSpec(name=one.name, hosts=tuple(one.hosts), not_after=one.not_after)
            for one in loaded
        ]
        return spec.ListenTls(certificates=tuple(specs))

    # --- routes ------------------------------------------------------------------------------------

    def _route(self, route: Route) -> spec.RouteSpec:
        row = row_of(self._rows.routes, route.name)
        return spec.RouteSpec(
            slot=row.slot,
            owner=row.owner,
            name=route.name,
            host=route.host,
            path=route.path,
            pool=route.pool,
            strip_prefix=route.strip_prefix,
            headers=spec.HeaderRules(**msgspec.structs.asdict(route.headers)),
            websocket=spec.WebSocketSpec(**msgspec.structs.asdict(route.websocket)),
            retry=spec.RetrySpec(**msgspec.structs.asdict(route.retry)),
        )

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
