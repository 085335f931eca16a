"""Pools and their servers as a worker runs them: idle connections, load, choice, and the bounded queue."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from workers.contract import errors
from workers.contract.cells import (
    CONNECT_SECONDS,
    PoolCell,
    ServerCell,
    StateCell,
    StickyResult,
)
from workers.contract.errors import Refusal
from workers.contract.series import Kind, status_label
from workers.contract.snapshot import EjectSpec, PoolSpec, ServerSpec
from workers.core.balance import Policy, StickyRing, build, hash_key
from workers.core.heads import RequestHead, field_values
from workers.core.health import NEVER, ServerState, Usable, Watch, combine
from workers.core.sticky import StickyCookie, cookie_value, query_value
from workers.io.resolver import Address, Addresses
from workers.io.tls_context import client_context

if TYPE_CHECKING:
    from workers.io.exchange import Exchange
    from workers.io.upstream import Upstream
    from workers.io.worker import Worker

NANOSECONDS: Final = 1_000_000_000
# Policies that compare the servers' load; the others need no scores.
# Plain ints: an enum member costs a look-up per use.
_WAITING = int(ServerCell.WAITING)
_BOUND = int(ServerCell.BOUND)
_IDLE = int(ServerCell.IDLE)
_ERRORS = int(ServerCell.ERRORS)
_RETRIES = int(ServerCell.RETRIES)
_OTHER_REQUESTS = int(ServerCell.OTHER_REQUESTS)
_OTHER_ERRORS = int(ServerCell.OTHER_ERRORS)
_POOL_RETRIES = int(PoolCell.RETRIES)
_QUEUED = int(PoolCell.QUEUED)
_STICKY = int(PoolCell.STICKY)
_CONNECT_SUM = int(PoolCell.CONNECT_SUM)
_CONNECT = int(PoolCell.CONNECT)
_HIT, _NEW, _INVALID = int(StickyResult.HIT), int(StickyResult.NEW), int(StickyResult.INVALID)
_ROW = slice(0, int(StateCell.EJECTED_UNTIL) + 1)
# How many queued requests are looked at when a place becomes free.
_LOOKED_AT = 32
_SCORED = frozenset(("least-conn", "p2c", "hash"))


class Server:
    """One server of a pool, as this worker sees it.

    Its load, this worker's own exchanges and tunnels, is the ACTIVE cell of its row; `others` is the sum of
    all other workers' as of the last tick. Outlives a reload that leaves it as it is; one that a reload
    removes or changes is `retired`: its exchanges end, and its connections with them. Where it was changed,
    `successor` has the row now, and the load of both is one.
    """

    __slots__ = (
        "addresses", "base", "counts", "errors", "grant", "idle", "index", "others", "pool", "retired",
        "spec", "successor", "tls", "watch", "weight", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, pool: Pool, index: int, spec: ServerSpec) -> None:
        self.worker = worker
        self.pool = pool
        self.index = index
        self.spec = spec
        self.base = worker.slab.server_base(spec.slot)
        self.idle: list[Upstream] = []
        self.others = 0
        self.grant = 0  # of max_connections, this worker's share as of the last tick
        self.retired = False
        self.successor: Server | None = None
        self.weight = spec.weight  # that counts now: the operator's, or less of it in a slow start
        self.counts: dict[int, int] = {}  # places of the cells that count its answers, by status
        self.errors: dict[Refusal, int] = {}  # and its errors, by reason
        self.watch: Watch | None = None  # counts what goes wrong in a row, where `eject` asks for it
        self.addresses = Addresses(worker, spec)
        self.tls = client_context(pool.spec.tls) if pool.spec.tls else None

    def begin(self) -> None:
        """One exchange or tunnel more."""
        self.worker.slab.cells[self.base] += 1
        if self.pool.scored:
            self.current().rescore()

    def end(self) -> None:
        """One exchange or tunnel less; a queued request may take its place."""
        self.worker.slab.cells[self.base] -= 1
        pool = self.pool
        if self.retired:
            server = self.current()
            pool = server.pool
            if pool.scored:
                server.rescore()
        elif pool.scored:
            self.rescore()
        if pool.waiting:
            pool.place_is_free()

    def current(self) -> Server:
        """Who has the row now: this one, or what a reload has made of it."""
        server = self
        while server.successor is not None:
            server = server.successor
        return server

    def rescore(self) -> None:
        """Puts the load by weight, with the request that would be placed, where the policies compare it."""
        active: int = self.worker.slab.cells[self.base]
        self.pool.scores[self.index] = (active + self.others + 1) / self.weight

    # --- what is told of it --------------------------------------------------------------------------

    def count_place(self, status: int) -> int:
        """The place of the cell that counts answers with `status`; see `counts`."""
        spec = self.spec
        other = self.base + _OTHER_REQUESTS
        detail = status_label(status)
        place = self.worker.series.place(Kind.RESPONSES, spec.slot, detail, spec.owner, other)
        self.counts[status] = place
        return place

    def failed(self, refusal: Refusal) -> None:
        """Counts an error of this server."""
        cells = self.worker.slab.cells
        cells[self.base + _ERRORS] += 1
        place = self.errors.get(refusal)
        if place is None:
            spec = self.spec
            index = errors.REASON_INDEX[refusal]
            other = self.base + _OTHER_ERRORS
            place = self.worker.series.place(Kind.ERRORS, spec.slot, index, spec.owner, other)
            self.errors[refusal] = place
        cells[place] += 1
        if self.watch is not None:
            self._judge(self.watch.failed(refusal))

    def answered(self, status: int) -> None:
        """Takes in an answer, the final one of an exchange. (It is counted where it is read.)"""
        if self.watch is not None:
            self._judge(self.watch.answered(status))

    def observe(self, spec: EjectSpec | None) -> None:
        """Counts what goes wrong in a row by `spec` from now on; what was counted by the same stays."""
        if spec is None:
            self.watch = None
        elif self.watch is None or self.watch.spec != spec:
            self.watch = Watch(spec)

    def _judge(self, reached: Sequence[int]) -> None:
        """Tells the control process which thresholds of `eject` were reached; it decides."""
        if reached:
            cells = self.worker.slab.cells
            for cell in reached:
                cells[self.base + cell] += 1
            self.worker.bells.ring_control()

    def retried(self) -> None:
        """Counts that another server is tried after this one."""
        cells = self.worker.slab.cells
        cells[self.base + _RETRIES] += 1
        cells[self.pool.base + _POOL_RETRIES] += 1

    def connected(self, seconds: float) -> None:
        """Counts a connection that was made within `seconds`."""
        cells = self.worker.slab.cells
        base = self.pool.base
        cells[base + _CONNECT_SUM] += int(seconds * NANOSECONDS)
        cells[base + _CONNECT + bisect_left(CONNECT_SECONDS, seconds)] += 1

    @property
    def full(self) -> bool:
        """Whether this worker's share of `max_connections` is used up. (Those who still wait for a server
        that was removed have the last share that there was, and one place at the least.)"""
        server = self.current()
        if server.spec.max_connections is None:
            return False
        grant = max(1, server.grant) if server.retired else server.grant
        return bool(self.worker.slab.cells[self.base] >= grant)

    def take_grant(self, waiting: int) -> None:
        """Takes in the share that the master grants, and answers what it is bound to."""
        board = self.worker.board
        self.grant = board.grants[board.grant_index(self.worker.slot, self.spec.slot)]
        cells = self.worker.slab.cells
        cells[self.base + _WAITING] = waiting
        cells[self.base + _BOUND] = max(self.grant, cells[self.base])

    def park(self, connection: Upstream) -> bool:
        """Keeps an idle connection for later; `False` when it is not wanted any more."""
        idle = self.idle
        if self.retired or len(idle) >= self.pool.spec.keep_alive.max_idle:
            return False
        idle.append(connection)
        self.worker.slab.cells[self.base + _IDLE] = len(idle)
        return True

    def unpark(self, connection: Upstream) -> None:
        """Forgets an idle connection that is closing."""
        self.idle.remove(connection)
        self.worker.slab.cells[self.base + _IDLE] = len(self.idle)

    def take(self) -> Upstream | None:
        """The idle connection that was used last, if there is one."""
        idle = self.idle
        if not idle:
            return None
        connection = idle.pop()
        self.worker.slab.cells[self.base + _IDLE] = len(idle)
        return connection

    def retire(self, successor: Server | None) -> None:
        """A reload took this server away, or changed it into `successor`: its idle connections close."""
        self.retired = True
        self.successor = successor
        if self.spec.max_connections is not None and successor is None:
            cells = self.worker.slab.cells
            cells[self.base + _WAITING] = cells[self.base + _BOUND] = 0  # nobody grants it anything now
        for connection in tuple(self.idle):
            connection.close()

    def address(self) -> Address | None:
        """Where to connect to, or `None` while its name is not resolved."""
        return self.addresses.current()


class Pool:
    """One pool, as this worker runs it."""

    __slots__ = (
        "_called", "_capped", "_needle", "_ring", "_seen", "_tickets", "base", "cookie", "keyed", "policy",
        "reachable", "scored", "scores", "servers", "spec", "until", "usable", "waiting", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, spec: PoolSpec, former: dict[ServerSpec, Server]) -> None:
        """`former` are servers of the same pool before a reload, with the same TLS and timeouts: those
        that are still named stay, with their connections."""
        self.worker = worker
        self.spec = spec
        self.servers: list[Server] = []
        self.scored = spec.balance in _SCORED
        self.scores = [1.0] * len(spec.servers)
        self._capped = any(server.max_connections is not None for server in spec.servers)
        for index, server_spec in enumerate(spec.servers):
            server = former.pop(server_spec, None)
            if server is None:
                server = Server(worker, self, index, server_spec)
            self.servers.append(server)
        self.base = worker.slab.pool_base(spec.slot)
        self._seen: Usable | None = None
        self.until = NEVER  # when time alone may change who is usable
        self.usable: tuple[int, ...] = ()
        self.reachable: tuple[bool, ...] = ()
        self.policy: Policy
        self._ring: StickyRing | None = None
        self.look()
        self._needle = b"" if spec.sticky is None else spec.sticky.name.encode("latin-1")
        self.cookie = (
            StickyCookie(spec.sticky.name, spec.sticky.key, spec.name, spec.servers)
            if spec.sticky and spec.sticky.kind == "cookie"
            else None
        )
        self.keyed = spec.sticky is not None or spec.balance == "hash"
        self.waiting: deque[Exchange] = deque()
        self._called = False  # whether the next turn serves who waits
        self._tickets = worker.slot * 7919  # workers do not start at the same server all at once

    def adopt(self) -> None:
        """Takes over the servers that stay; at commit, since until then their old pool serves."""
        for index, server in enumerate(self.servers):
            server.pool = self
            server.index = index
            server.observe(self.spec.eject)
        self.look()
        if self._seen is not None:
            self._apply_weights(self._seen)
        self.refresh()

    def look(self) -> None:
        """Takes in the servers' states: at commit, when the control process says that one changed, and when
        the clock says so (`until`)."""
        now = time.monotonic()
        states = [self._state(server.spec) for server in self.servers]
        usable = combine(self.spec, states, now)
        self.until = usable.until
        for server, state in zip(self.servers, states, strict=True):
            if state.ejected_until > now and server.watch is not None:
                server.watch.forget()
        former, self._seen = self._seen, usable
        if former is not None and usable[:-1] == former[:-1]:
            return
        self.usable = usable.usable
        self.reachable = usable.reachable
        self._build(usable)
        if former is not None:
            self._apply_weights(usable)
            if usable.panic and not former.panic:
                self.worker.log.warning("too few servers are well, all are used", pool=self.spec.name)
            self.place_is_free()

    def _state(self, spec: ServerSpec) -> ServerState:
        board = self.worker.board
        base = board.state_base(spec.slot)
        owner, health, admin, weight, returned, ejected = board.control[
            base + _ROW.start : base + _ROW.stop
        ].tolist()
        if owner != spec.owner:
            return ServerState()
        return ServerState(
            health,
            admin,
            weight - 1 if weight else None,
            returned / NANOSECONDS,
            ejected / NANOSECONDS,
        )

    def _build(self, usable: Usable) -> None:
        spec = self.spec
        if any(weight != server.weight for weight, server in zip(usable.weights, spec.servers, strict=True)):
            servers = [
                msgspec.structs.replace(server, weight=weight)
                for weight, server in zip(usable.weights, spec.servers, strict=True)
            ]
            self.policy = build(msgspec.structs.replace(spec, servers=tuple(servers)), usable.usable)
        else:
            self.policy = build(spec, usable.usable)
        if spec.sticky and spec.sticky.kind != "cookie":
            self._ring = StickyRing(spec, usable.usable)

    def _apply_weights(self, usable: Usable) -> None:
        for server, weight in zip(self.servers, usable.weights, strict=True):
            server.weight = weight or 1  # 0 is never chosen; its score is not looked at
            if self.scored:
                server.rescore()

    @property
    def watched(self) -> bool:
        """Whether the other workers' figures matter to this pool."""
        return self.scored or self._capped

    def find_keys(self, head: RequestHead, address: str) -> tuple[int | None, int | None, int]:
        """What a request is balanced and stuck by: (hash for the policy, hash for the sticky ring, server
        that its cookie names or -1). `address` is the client's, as far as it is believed."""
        spec = self.spec
        key = ring_key = None
        stuck = -1
        if spec.balance == "hash":
            value = _value(head, spec.hash_on.kind, spec.hash_on.name.encode("latin-1"), address)
            key = None if value is None else hash_key(value)
        if self.cookie is not None:
            cookies = field_values(head.fields, b"cookie")
            line = b"; ".join(cookies) if cookies else b""
            if cookies:
                stuck = self.cookie.lookup(line)
            if stuck < 0:
                self.count_sticky(_INVALID if cookie_value(line, self._needle) else _NEW)
        elif spec.sticky is not None:
            value = _value(head, spec.sticky.kind, self._needle, address)
            ring_key = None if value is None else hash_key(value)
            self.count_sticky(_NEW if value is None else _HIT)
        return key, ring_key, stuck

    def count_sticky(self, result: int) -> None:
        """Counts what became of a request's stickiness."""
        self.worker.slab.cells[self.base + _STICKY + result] += 1

    def choose(self, key: int | None, ring_key: int | None, excluded: Collection[int]) -> int:
        """The index of the server for a request, or -1 where all are excluded; the keys are those of
        `find_keys`. (An exchange counts by its own pool's indexes: a reload may put a server elsewhere.)"""
        if ring_key is not None and self._ring is not None:
            return self._ring.pick(ring_key, excluded)
        if key is None:
            self._tickets = key = self._tickets + 1
            if self.spec.balance != "round-robin":
                key = self.worker.random_bits(32)
        return self.policy.pick(key, self.scores, excluded)

    def with_full(self, excluded: tuple[int, ...]) -> tuple[int, ...]:
        """`excluded`, and with it the servers that are at `max_connections`."""
        if not self._capped:
            return excluded
        servers = self.servers
        full = [index for index in self.usable if index not in excluded and servers[index].full]
        return (*excluded, *full)

    def has_other(self, excluded: tuple[int, ...]) -> bool:
        """Whether a server is left that is usable and not in `excluded`, though it may be full."""
        return any(index not in excluded for index in self.usable)

    def has_room(self, excluded: tuple[int, ...]) -> bool:
        """Whether a server is left that is usable, not in `excluded`, and not full."""
        servers = self.servers
        return any(index not in excluded and not servers[index].full for index in self.usable)

    def count_queue(self) -> None:
        """Puts the length of the queue where it is read."""
        self.worker.slab.cells[self.base + _QUEUED] = len(self.waiting)

    def refresh(self) -> None:
        """Takes in what the other workers have on the servers; once a tick, off the request path."""
        siblings = self.worker.sibling_cells()
        for server in self.servers:
            if server.spec.max_connections is not None:
                server.take_grant(len(self.waiting))
            if self.scored:
                base = server.base
                server.others = sum([cells[base] for cells in siblings])
                server.rescore()
        self.place_is_free()

    def place_is_free(self) -> None:
        """Queued requests may go on: not here, in the middle of whatever ended, but in the next turn."""
        if self.waiting and not self._called:
            self._called = True
            self.worker.loop.call_soon(self._serve_waiting)

    def _serve_waiting(self) -> None:
        """First come first served, as far as there is room."""
        self._called = False
        waiting = self.waiting
        # One that is stuck to a full server, or has tried the one that is free, must not hold up the others,
        # nor may they all be asked.
        passed = 0
        for _ in range(min(len(waiting), _LOOKED_AT)):
            exchange = waiting.popleft()
            if not exchange.leave_queue():
                waiting.append(exchange)
                passed += 1
                if not (self.keyed or exchange.excluded):
                    waiting.rotate(passed)  # nobody loses his turn
                    break
        self.count_queue()

    def retire(self, kept: Mapping[tuple[int, int], Server]) -> None:
        """A reload replaced this pool: servers that are not `kept` (by row and owner) go."""
        for server in self.servers:
            now = kept.get((server.spec.slot, server.spec.owner))
            if now is not server:
                server.retire(now)
        self.place_is_free()


def _value(head: RequestHead, kind: str, name: bytes, address: str) -> bytes | None:
    """What of a request `hash_on` or `sticky` names; `None` where the request has it not."""
    if kind == "ip":
        return address.encode("ascii")
    if kind == "path":
        return head.path
    if kind == "query":
        return query_value(head.target, name)
    values = field_values(head.fields, b"cookie" if kind == "cookie" else name.lower())
    if kind == "cookie":
        return cookie_value(b"; ".join(values), name) if values else None
    return values[0] if values else None
