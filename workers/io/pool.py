"""Pools as a worker runs them: who may be chosen, the choice, and the bounded queue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from workers.contract import errors
from workers.contract.cells import NANOSECONDS, PoolCell, StateCell, StickyResult
from workers.contract.errors import ProxyError
from workers.contract.snapshot import PoolSpec, ServerSpec
from workers.core.balance import Policy, StickyRing, build, hash_key
from workers.core.heads import RequestHead, field_values
from workers.core.health import NEVER, ServerState, Usable, combine
from workers.core.sticky import StickyCookie, cookie_value, query_value
from workers.io.chores import Steps
from workers.io.server import Server

if TYPE_CHECKING:
    from workers.io.admission import Admission
    from workers.io.exchange import Exchange
    from workers.io.worker import Worker

# Plain ints: an enum member costs a look-up per use.
_QUEUED = int(PoolCell.QUEUED)
_STICKY = int(PoolCell.STICKY)
_HIT, _NEW, _INVALID = int(StickyResult.HIT), int(StickyResult.NEW), int(StickyResult.INVALID)
_ROW = slice(0, int(StateCell.EJECTED_UNTIL) + 1)
# How many queued requests are looked at when a place becomes free.
_LOOKED_AT = 32
# Policies that compare the servers' load; the others need no scores.
_SCORED = frozenset(("least-conn", "p2c", "hash"))


class Pool:
    """One pool, as this worker runs it."""

    __slots__ = (
        "_called", "_needle", "_ring", "_seen", "_tickets", "admission", "adopted", "base", "capped",
        "cookie", "idle_time", "keyed", "max_idle", "policy", "reachable", "response_head", "scored",
        "scores", "servers", "spec", "until", "usable", "waiting", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, spec: PoolSpec, former: dict[ServerSpec, Server]) -> None:
        """`former` are servers of the same pool before a reload, with the same TLS and timeouts: those
        that are still named stay, with their connections."""
        self.worker = worker
        self.spec = spec
        self.servers: list[Server] = []
        # What is asked for with each request, at hand.
        self.response_head = spec.timeouts.response_head
        self.max_idle = spec.keep_alive.max_idle
        self.idle_time = spec.keep_alive.idle
        self.scored = spec.balance in _SCORED
        self.scores = [1.0] * len(spec.servers)
        # Whether some server has a limit, so that it may be full.
        self.capped = any(server.max_connections is not None for server in spec.servers)
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
        self.admission: Admission | None = None  # once the pool is served
        self._called = False  # whether the next turn serves who waits
        self._tickets = worker.slot * 7919  # workers do not start at the same server all at once
        self.adopted = False  # whether the servers know their pool
        self.policy = _Unadopted(self, self.policy)

    def adopt(self) -> None:
        """Takes over the servers that stay; at commit, since until then their old pool serves, and at the
        latest when the first of them is to be chosen."""
        if self.adopted:
            return
        self.adopted = True
        if isinstance(self.policy, _Unadopted):
            self.policy = self.policy.policy
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
        """Whether this pool has a share in what all workers may have together."""
        return self.capped or self.spec.admission is not None

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
        if not self.capped:
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

    def index_of(self, name: str) -> int:
        """The index of the server called `name`, or -1."""
        return next((index for index, server in enumerate(self.servers) if server.spec.name == name), -1)

    def knows(self, exchange: Exchange) -> bool:
        """Whether a client was here before, as far as stickiness tells: it has a cookie of ours, whether its
        server still takes it or not, or brings a key of its own. (An address everybody has.)"""
        if exchange.stuck >= 0:
            return True
        if self.cookie is not None:
            cookies = field_values(exchange.head.fields, b"cookie")
            return bool(cookies) and self.cookie.lookup(b"; ".join(cookies)) >= 0
        sticky = self.spec.sticky
        return exchange.ring_key is not None and sticky is not None and sticky.kind != "ip"

    # --- the queue -----------------------------------------------------------------------------------

    def leave(self, exchange: Exchange) -> None:
        """A queued request waits no longer."""
        exchange.queued = None
        self.waiting.remove(exchange)
        self.count_queue()

    def expire(self, exchange: Exchange) -> None:
        """The wait for a server took too long."""
        self.leave(exchange)
        exchange.refuse(ProxyError(errors.QUEUE_TIMEOUT, side="upstream"))

    def stop(self, exchange: Exchange) -> None:
        """The worker is stopping: a queued request is in flight, and has its time like the others."""

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
        if self.admission is not None:
            self.admission.refresh()
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

    def retire(self, kept: Mapping[tuple[int, int], Server]) -> Steps:
        """A reload replaced this pool: servers that are not `kept` (by row and owner) go, one a step."""
        for server in self.servers:
            now = kept.get((server.spec.slot, server.spec.owner))
            if now is not server:
                server.retire(now)
                yield
        if self.admission is not None and self.admission.pool is self:
            self.admission.open(self)  # the pool is gone
        self.place_is_free()


class _Unadopted:
    """Stands in for the policy of a pool that has not adopted its servers yet: their loads count there from
    then on."""

    __slots__ = ("_pool", "policy")

    def __init__(self, pool: Pool, policy: Policy) -> None:
        self._pool = pool
        self.policy = policy

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """Adopts the servers first."""
        self._pool.adopt()
        return self._pool.policy.pick(ticket, scores, excluded)


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
