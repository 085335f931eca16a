"""One configuration as a worker serves it: built whole at prepare, put in place at commit.

What a reload leaves as it is stays: a pool whose table did not change keeps its object, a server its idle
connections, a listener its accepting sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from workers.io.chores import Steps
from workers.io.listening import Acceptor, Listener
from workers.io.pool import Pool
from workers.io.server import Server
from workers.io.states import Loads, States
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
    """The routing tables of one generation. To be built, then put in place: all that takes long in it is done
    in steps."""

    __slots__ = (
        "_loads", "_pools_by_row", "_router", "_routes", "_servers_by_row", "_states", "homes", "listeners",
        "pools", "snapshot", "watched",
    )  # fmt: skip

    def __init__(self, worker: Worker, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.pools: dict[str, Pool] = {}
        self._routes: dict[str, Route] = {}
        self._router = Router(())
        self.watched: list[Pool] = []
        self.listeners: dict[str, ListenerSpec] = {spec.name: spec for spec in snapshot.listeners}
        self.homes: Homes | None = None  # where adopted tunnels are counted
        self._pools_by_row: dict[int, Pool] = {}
        self._states = States(worker.board, 0)
        self._loads = Loads(worker, 0)
        self._servers_by_row: dict[int, Server] = {}  # those whose load is compared

    def build(self, worker: Worker, former: Plan | None) -> Steps:
        """Makes the tables; nothing that is served changes by it. Pools of `former` that stay are taken
        over."""
        snapshot = self.snapshot
        # Read first: what changes from here on is looked at again.
        rows = [server.slot for spec in snapshot.pools for server in spec.servers]
        self._states = States(worker.board, max(rows, default=-1) + 1)
        self._loads = Loads(worker, max(rows, default=-1) + 1)
        yield
        for spec in snapshot.pools:
            pool = self.pools[spec.name] = _pool(worker, spec, former)
            for server in pool.servers:
                self._pools_by_row[server.spec.slot] = pool
                if pool.scored:
                    self._servers_by_row[server.spec.slot] = server
            if pool.watched:
                self.watched.append(pool)
            yield
        for route in snapshot.routes:
            self._routes[route.name] = Route(worker, route, self.pools[route.pool])
            yield
        self._router = Router(snapshot.routes)
        yield

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

    def look(self) -> Steps:
        """Takes in the states of the servers whose state has changed, a pool a step."""
        pools = self._pools_by_row
        for pool in {pools[row] for row in self._states.changed() if row in pools}:
            pool.look()
            yield

    def refresh(self) -> None:
        """Takes in what the other workers have on the servers; once a tick, off the request path."""
        servers, loads = self._servers_by_row, self._loads
        for row in loads.changed():
            server = servers.get(row)
            if server is not None:
                server.others = loads.totals[row]
                server.rescore()
        for pool in self.watched:
            pool.refresh()

    def carry_over(self, former: Plan | None) -> None:
        """Those who wait keep their configuration, and their turn. To be done before anybody comes by this
        plan, all at once."""
        for name, pool in self.pools.items():
            before = former.pools.get(name) if former is not None else None
            if before is not None:
                pool.waiting = before.waiting
            admission.carry_over(before, pool)

    def adopt(self, former: Plan | None) -> Steps:
        """The pools take over what stays, and what is left of `former` is let go. Requests may come
        meanwhile: a server that is still under its former pool counts there."""
        kept: dict[tuple[int, int], Server] = {}
        for pool in self.pools.values():
            pool.adopt()
            for server in pool.servers:
                kept[server.spec.slot, server.spec.owner] = server
            yield
        if former is not None:
            for pool in former.pools.values():
                if self.pools.get(pool.spec.name) is not pool:
                    yield from pool.retire(kept)
            if former.homes is not None:
                former.homes.end(kept)
        yield from self.look()

    def replaced_by(self, plan: Plan) -> list[Pool]:
        """The pools of this configuration that `plan`, which has its place, has not."""
        return [pool for name, pool in self.pools.items() if plan.pools.get(name) is not pool]

    def own_rows(self, worker: Worker) -> Steps:
        """Takes the rows of this configuration: those that belonged to somebody else start from zero. (What
        is served now has none of these: rows that a reload frees are not given away by that reload.)"""
        slab = worker.slab
        for listener in self.snapshot.listeners:
            slab.own_listener(listener.slot, listener.owner)
        for route in self.snapshot.routes:
            slab.own_route(route.slot, route.owner)
            yield
        for pool in self.snapshot.pools:
            slab.own_pool(pool.slot, pool.owner)
            for server in pool.servers:
                slab.own_server(server.slot, server.owner)
                yield
        yield from worker.series.sweep(self._is_live(worker))

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
    """A plan with the sockets, certificates and files that came with it, until it is committed or dropped.
    The descriptors are the caller's until `build` has come to its end, and this object's then."""

    def __init__(self, worker: Worker, snapshot: Snapshot) -> None:
        self.worker = worker
        self.snapshot = snapshot
        self.sockets: list[tuple[ListenerFd, int]] = []
        self.log_fd = -1
        self.tls: dict[str, ServerContexts | None] = {}
        self.plan = Plan(worker, snapshot)

    def build(self, roles: list[tuple[object, int]]) -> Steps:
        """Makes everything; `roles` are the descriptors that came. Raises `PlanError`, `TlsSetupError` or
        `OSError` where the configuration can't be served."""
        certificates: dict[str, dict[str, int]] = {}
        for role, fd in roles:
            if isinstance(role, ListenerFd):
                self.sockets.append((role, fd))
            elif isinstance(role, CertificateFd):
                certificates.setdefault(role.listener, {})[role.certificate] = fd
            elif isinstance(role, AccessLogFd):
                self.log_fd = fd
        for spec in self.snapshot.listeners:
            contexts = None
            if spec.tls is not None:
                contexts = yield from ServerContexts.in_steps(spec.tls, certificates.get(spec.name, {}))
            self.tls[spec.name] = contexts
        unknown = [role.listener for role, _ in self.sockets if role.listener not in self.tls]
        if unknown:
            raise PlanError(f"sockets came for listeners that are not configured: {', '.join(unknown)}")
        yield from self.plan.build(self.worker, self.worker.current)

    def commit(self, listeners: dict[str, Listener], acceptors: list[Acceptor]) -> list[Acceptor]:
        """Puts the plan in place. `listeners` are those of the worker, brought up to date here; returns the
        accepting sockets from now on. The former ones of addresses that stay are the same sockets under
        other numbers, and go; those of addresses that went are served empty first."""
        worker = self.worker
        for spec in self.snapshot.listeners:
            listener = listeners.get(spec.name)
            if listener is None:
                listeners[spec.name] = Listener(worker, spec, self.tls[spec.name])
            else:
                listener.configure(spec, self.tls[spec.name])
        self.plan.carry_over(worker.current)
        accepting = [Acceptor(listeners[role.listener], fd) for role, fd in self.sockets]
        for acceptor in acceptors:
            acceptor.close()
        for acceptor in accepting:
            acceptor.start()
        for name in [name for name in listeners if name not in self.tls]:
            del listeners[name]  # its connections hold it as long as they live
        return accepting
