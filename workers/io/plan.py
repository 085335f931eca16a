"""One configuration as a worker serves it: built whole at prepare, put in place at commit.

What a reload leaves as it is stays: a pool whose table did not change keeps its object, a server its idle
connections, a listener its accepting sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from workers.contract import errors
from workers.contract.cells import ListenerCell, RouteCell, ServerCell
from workers.contract.errors import ProxyError
from workers.contract.messages import AccessLogFd, CertificateFd, ListenerFd
from workers.contract.series import INITIATORS, Key, Kind, close_label, status_label
from workers.contract.snapshot import ListenerSpec, PoolSpec, RouteSpec, ServerSpec, Snapshot
from workers.core import rewrite
from workers.core.routing import Router, strip_prefix
from workers.io import admission
from workers.io.listening import Acceptor, Listener
from workers.io.pool import Pool
from workers.io.server import Server
from workers.io.tls_context import ServerContexts

if TYPE_CHECKING:
    from workers.io.adoption import Homes
    from workers.io.worker import Worker


_OTHER_REQUESTS: Final = int(RouteCell.OTHER_REQUESTS)
_OTHER_CLOSES: Final = int(RouteCell.OTHER_CLOSES)
_OTHER_TUNNELS: Final = int(RouteCell.OTHER_TUNNELS)
_INITIATORS: Final = {name: index for index, name in enumerate(INITIATORS)}
# The kinds of series by the kind of row that they belong to.
_OF_ROUTES: Final = frozenset((Kind.REQUESTS, Kind.CLOSES, Kind.TUNNELS))
_OF_SERVERS: Final = frozenset((Kind.RESPONSES, Kind.ERRORS))


class PlanError(ValueError):
    """The configuration can't be served by this worker; the text is for the operator."""


class Route:
    """A route with all that a request on it needs."""

    __slots__ = (
        "base", "counts", "name", "pool", "prefix", "request_rules", "response_rules", "spec",
        "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, spec: RouteSpec, pool: Pool) -> None:
        self.worker = worker
        self.spec = spec
        self.name = spec.name
        self.pool = pool
        # Places of the cells that count this route's requests, by method and status.
        self.counts: dict[int, int] = {}
        self.base = worker.slab.route_base(spec.slot)
        self.request_rules = rewrite.request_rules(spec.headers)
        self.response_rules = rewrite.response_rules(spec.headers)
        self.prefix = spec.path if spec.strip_prefix and spec.path else None

    def count_place(self, label: int) -> int:
        """The place of the cell that counts requests of `label` (method << 10 | status), not used yet."""
        spec = self.spec
        other = self.base + _OTHER_REQUESTS
        detail = label & ~0x3FF | status_label(label & 0x3FF)
        place = self.worker.series.place(Kind.REQUESTS, spec.slot, detail, spec.owner, other)
        self.counts[label] = place
        return place

    def count_close(self, initiator: str, code: int | None) -> None:
        """Counts the end of a tunnel."""
        spec = self.spec
        detail = _INITIATORS[initiator] << 13 | close_label(code)
        self.worker.series.count(Kind.CLOSES, spec.slot, detail, spec.owner, self.base + _OTHER_CLOSES)

    def tunnels_place(self, server: Server) -> int:
        """The place of the gauge of this route's tunnels on `server`."""
        spec = self.spec
        other = self.base + _OTHER_TUNNELS
        return self.worker.series.place(Kind.TUNNELS, spec.slot, server.spec.slot, spec.owner, other)

    def strip(self, target: bytes) -> bytes:
        """`target` without the route's prefix."""
        if self.prefix is None:
            return target
        path, mark, query = target.partition(b"?")
        return strip_prefix(self.prefix, path) + mark + query


class Plan:
    """The routing tables of one generation."""

    __slots__ = ("_router", "_routes", "homes", "listeners", "pools", "snapshot", "watched")

    def __init__(self, worker: Worker, snapshot: Snapshot, former: Plan | None) -> None:
        self.snapshot = snapshot
        self.pools: dict[str, Pool] = {}
        for spec in snapshot.pools:
            self.pools[spec.name] = _pool(worker, spec, former)
        self._routes = {spec.name: Route(worker, spec, self.pools[spec.pool]) for spec in snapshot.routes}
        self._router = Router(snapshot.routes)
        self.watched = [pool for pool in self.pools.values() if pool.watched]
        self.listeners: dict[str, ListenerSpec] = {spec.name: spec for spec in snapshot.listeners}
        self.homes: Homes | None = None  # where adopted tunnels are counted

    @property
    def routes(self) -> Iterable[Route]:
        """All routes."""
        return self._routes.values()

    def find(self, host: bytes, path: bytes) -> Route:
        """The route of a request. Raises `ProxyError` where there is none."""
        spec = self._router.find(host, path)
        if spec is None:
            raise ProxyError(errors.NO_ROUTE)
        return self._routes[spec.name]

    def adopt(self, former: Plan | None) -> None:
        """Commits: the pools take over what stays, and the former plan's rest is let go."""
        kept: dict[tuple[int, int], Server] = {}
        for name, pool in self.pools.items():
            pool.adopt()
            for server in pool.servers:
                kept[server.spec.slot, server.spec.owner] = server
            if former is not None and name in former.pools:
                # Those who wait keep their configuration, and their turn.
                pool.waiting = former.pools[name].waiting
            admission.carry_over(former.pools.get(name) if former is not None else None, pool)
        if former is not None:
            for pool in former.pools.values():
                if self.pools.get(pool.spec.name) is not pool:
                    pool.retire(kept)
            if former.homes is not None:
                former.homes.end(kept)

    def own_rows(self, worker: Worker) -> None:
        """Takes the rows of this configuration: those that belonged to somebody else start from zero."""
        slab = worker.slab
        for listener in self.snapshot.listeners:
            slab.own_listener(listener.slot, listener.owner)
        for route in self.snapshot.routes:
            slab.own_route(route.slot, route.owner)
        for pool in self.snapshot.pools:
            slab.own_pool(pool.slot, pool.owner)
            for server in pool.servers:
                slab.own_server(server.slot, server.owner)
        worker.series.sweep(self._is_live(worker))

    @staticmethod
    def _is_live(worker: Worker) -> Callable[[Key], bool]:
        slab = worker.slab

        def is_live(key: Key) -> bool:
            if key.kind in _OF_ROUTES:
                place = slab.route_base(key.row) + RouteCell.OWNER
            elif key.kind in _OF_SERVERS:
                place = slab.server_base(key.row) + ServerCell.OWNER
            else:
                place = slab.listener_base(key.row) + ListenerCell.OWNER
            return bool(slab.cells[place] == key.owner)

        return is_live


def _pool(worker: Worker, spec: PoolSpec, former: Plan | None) -> Pool:
    old = former.pools.get(spec.name) if former is not None else None
    if old is None:
        return Pool(worker, spec, {})
    if old.spec == spec:
        return old
    stays: dict[ServerSpec, Server] = {}
    if old.spec.tls == spec.tls:
        stays = {server.spec: server for server in old.servers}
    return Pool(worker, spec, stays)


class Prepared:
    """A plan with the sockets, certificates and files that came with it, until it is committed or dropped."""

    def __init__(self, worker: Worker, snapshot: Snapshot, roles: list[tuple[object, int]]) -> None:
        """`roles` are the descriptors that came; they are this object's from now on. Raises `PlanError`,
        `TlsSetupError` or `OSError` where the configuration can't be served."""
        self.worker = worker
        self.snapshot = snapshot
        self.sockets: list[tuple[ListenerFd, int]] = []
        self.log_fd = -1
        certificates: dict[str, dict[str, int]] = {}
        for role, fd in roles:
            if isinstance(role, ListenerFd):
                self.sockets.append((role, fd))
            elif isinstance(role, CertificateFd):
                certificates.setdefault(role.listener, {})[role.certificate] = fd
            elif isinstance(role, AccessLogFd):
                self.log_fd = fd
        self.tls = {
            spec.name: self._contexts(spec, certificates.get(spec.name, {})) for spec in snapshot.listeners
        }
        names = set(self.tls)
        unknown = [role.listener for role, _ in self.sockets if role.listener not in names]
        if unknown:
            raise PlanError(f"sockets came for listeners that are not configured: {', '.join(unknown)}")
        self.plan = Plan(worker, snapshot, worker.current)

    @staticmethod
    def _contexts(spec: ListenerSpec, fds: Mapping[str, int]) -> ServerContexts | None:
        return None if spec.tls is None else ServerContexts(spec.tls, fds)

    def commit(self, listeners: dict[str, Listener], acceptors: list[Acceptor]) -> list[Acceptor]:
        """Puts the plan in place. `listeners` are those of the worker, brought up to date here; returns the
        accepting sockets from now on. The former ones of addresses that stay are the same sockets under
        other numbers, and go; those of addresses that went are served empty first."""
        worker = self.worker
        self.plan.own_rows(worker)
        for spec in self.snapshot.listeners:
            listener = listeners.get(spec.name)
            if listener is None:
                listeners[spec.name] = Listener(worker, spec, self.tls[spec.name])
            else:
                listener.configure(spec, self.tls[spec.name])
        self.plan.adopt(worker.current)
        accepting = [Acceptor(listeners[role.listener], fd) for role, fd in self.sockets]
        for acceptor in acceptors:
            acceptor.close()
        for acceptor in accepting:
            acceptor.start()
        for name in [name for name in listeners if name not in self.tls]:
            del listeners[name]  # its connections hold it as long as they live
        return accepting
