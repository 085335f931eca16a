"""One server of a pool, as a worker runs it: its load, its idle connections, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from workers.contract import errors
from workers.contract.cells import CONNECT_SECONDS, NANOSECONDS, PoolCell, ServerCell
from workers.contract.errors import Refusal
from workers.contract.native import observe
from workers.contract.series import Kind, status_label
from workers.contract.snapshot import EjectSpec, ServerSpec
from workers.contract.trust import client_context
from workers.core.health import Watch
from workers.io.resolver import Address, Addresses

if TYPE_CHECKING:
    from workers.io.pool import Pool
    from workers.io.upstream import Upstream
    from workers.io.worker import Worker

# Plain ints: an enum member costs a look-up per use.
_CONNECT_BOUNDS: Final = tuple([int(bound * NANOSECONDS) for bound in CONNECT_SECONDS])
_WAITING: Final = int(ServerCell.WAITING)
_BOUND: Final = int(ServerCell.BOUND)
_IDLE: Final = int(ServerCell.IDLE)
_ERRORS: Final = int(ServerCell.ERRORS)
_RETRIES: Final = int(ServerCell.RETRIES)
_OTHER_REQUESTS: Final = int(ServerCell.OTHER_REQUESTS)
_OTHER_ERRORS: Final = int(ServerCell.OTHER_ERRORS)
_POOL_RETRIES: Final = int(PoolCell.RETRIES)
_CONNECT_SUM: Final = int(PoolCell.CONNECT_SUM)
_CONNECT: Final = int(PoolCell.CONNECT)


class Server:
    """One server of a pool, as this worker sees it.

    Its load, this worker's own exchanges and tunnels, is the ACTIVE cell of its row; `others` is the sum of
    all other workers' as of the last tick. Outlives a reload that leaves it as it is; one that a reload
    removes or changes is `retired`: its exchanges end, and its connections with them. Where it was changed,
    `successor` has the row now, and the load of both is one.
    """

    __slots__ = (
        "addresses", "base", "counts", "grant", "idle", "index", "others", "pool", "retired",
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
        self.worker.slab.cells[self.base + _ERRORS] += 1
        spec = self.spec
        other = self.base + _OTHER_ERRORS
        self.worker.series.count(Kind.ERRORS, spec.slot, errors.REASON_INDEX[refusal], spec.owner, other)
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
        observe(cells, base + _CONNECT_SUM, base + _CONNECT, _CONNECT_BOUNDS, int(seconds * NANOSECONDS))

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
        if self.retired or len(idle) >= self.pool.max_idle:
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
        if successor is None or successor.spec.max_connections is None:
            cells = self.worker.slab.cells
            cells[self.base + _WAITING] = cells[self.base + _BOUND] = 0  # nobody grants it anything now
        for connection in tuple(self.idle):
            connection.close()

    def address(self) -> Address | None:
        """Where to connect to, or `None` while its name is not resolved."""
        return self.addresses.current()
