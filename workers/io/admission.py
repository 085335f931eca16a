"""Reconnect storms: WebSocket handshakes go to a pool's servers at a bounded rate, the others wait.

Asked before a server is chosen, and of handshakes alone. Those who come back to a server that they know (a
valid sticky key) go before newcomers, both first come first served. What exceeds the queue is refused with a
Retry-After.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from workers.contract import errors
from workers.contract.cells import NANOSECONDS, PoolCell, WorkerCell
from workers.contract.errors import ProxyError, Refusal
from workers.contract.snapshot import AdmissionSpec
from workers.core.admission import Bucket, Share, burst_share, patience, retry_after
from workers.core.wheel import TICK

if TYPE_CHECKING:
    from workers.io.exchange import Exchange
    from workers.io.pool import Pool
    from workers.io.reactor import Timer

_ADMITTED: Final = int(PoolCell.ADMITTED)
_REFUSED: Final = int(PoolCell.ADMISSION_REFUSED)
_QUEUED: Final = int(PoolCell.ADMISSION_QUEUED)
_HEARTBEAT: Final = int(WorkerCell.HEARTBEAT)
_GENERATION: Final = int(WorkerCell.GENERATION)
_LISTENERS: Final = int(WorkerCell.LISTENERS)
# A worker that was not heard of for so long admits nobody.
_SILENCE: Final = int(2.0 * NANOSECONDS)
# Handshakes let through in one turn of the loop, and the shortest time between two such turns: the rest of
# the traffic has its turn between.
_BATCH: Final = 64
_PAUSE: Final = 0.005

Queue = OrderedDict["Exchange", None]  # the first leaves, and any may leave from the middle, at one cost


class Admission:
    """The admission of one pool, as this worker has part in it. Outlives reloads together with its queue; one
    that a reload removed (`spec` is `None`) lets all go who are left."""

    __slots__ = (
        "_bucket", "_looked", "_newcomers", "_returners", "_share", "_timer", "pool",
        "spec", "worker",
    )  # fmt: skip

    def __init__(self, pool: Pool, spec: AdmissionSpec) -> None:
        """To be made when the configuration is put in place: all workers that have part in it are there then,
        though this one may not have looked at them yet."""
        self.worker = pool.worker
        self.pool = pool
        self.spec: AdmissionSpec | None = spec
        self._returners: Queue = OrderedDict()
        self._newcomers: Queue = OrderedDict()
        self._bucket = Bucket(time.monotonic())
        self._share = Share()
        self._looked = self.worker.now
        self._timer: Timer | None = None
        slabs = enumerate(self.worker.board.slabs())
        self._look(spec, [slab.cells for slot, slab in slabs if slot != self.worker.slot])
        self._bucket.fill_up()

    @property
    def waiting(self) -> int:
        """How many wait here."""
        return len(self._returners) + len(self._newcomers)

    # --- coming and going ----------------------------------------------------------------------------

    def enter(self, exchange: Exchange) -> None:
        """A handshake: it goes on at once, waits, or is refused."""
        spec = self.spec
        assert spec is not None  # an exchange begins with the configuration that is served
        if not (self._returners or self._newcomers) and self._bucket.take(time.monotonic()):
            self._count(_ADMITTED)
            exchange.dispatch()
            return
        if not self.worker.admits:
            self.refuse(exchange, errors.SHUTTING_DOWN)
            return
        returns = self.pool.knows(exchange)
        if self.waiting >= self._share.room(spec.queue):
            if not (returns and self._newcomers):
                self.refuse(exchange, errors.ADMISSION_FULL)
                return
            # The last place is the returner's: who came last of the others gives it up.
            last, _ = self._newcomers.popitem()
            self.refuse(last, errors.ADMISSION_FULL)
        (self._returners if returns else self._newcomers)[exchange] = None
        exchange.queued = self
        exchange.client.expect(patience(spec.rate, spec.queue))
        self._arm()

    def leave(self, exchange: Exchange) -> None:
        """The exchange waits no longer: its client left, or it is about to be refused."""
        exchange.queued = None
        self._returners.pop(exchange, None)
        self._newcomers.pop(exchange, None)

    def expire(self, exchange: Exchange) -> None:
        """Its patience is over, for instance since returners came all the time."""
        self.leave(exchange)
        self.refuse(exchange, errors.ADMISSION_TIMEOUT)

    def stop(self, exchange: Exchange) -> None:
        """Its worker's time is over: it is refused, and will find another one."""
        self.leave(exchange)
        self._publish()
        self.refuse(exchange, errors.SHUTTING_DOWN)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Refuses one that does not wait (any more), and says when to come back."""
        exchange.queued = None
        seconds = 1
        if self.spec is not None:
            self._count(_REFUSED)
            waiting = self.waiting + self._share.elsewhere
            seconds = retry_after(waiting, self.spec.rate, self.worker.random_bits(16) / (1 << 16))
        exchange.refuse(ProxyError(refusal, side="upstream", retry_after=seconds))

    # --- time ----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Once a tick: publishes how many wait, takes in what the others published, and goes on."""
        if self.spec is None or self.worker.now <= self._looked:
            return
        self._looked = self.worker.now
        self._look(self.spec, self.worker.sibling_cells())
        self._serve()

    def _look(self, spec: AdmissionSpec, siblings: list[memoryview]) -> None:
        self._publish()
        place = self.pool.base + _QUEUED
        oldest = int(self.worker.now * NANOSECONDS) - _SILENCE
        self._share.look(
            self.waiting,
            [
                int(cells[place])
                for cells in siblings
                # Those that take connections, or will in a moment, or leave when their queue is empty.
                if cells[_HEARTBEAT] > oldest
                and (cells[_LISTENERS] or not cells[_GENERATION] or cells[place])
            ],
        )
        self._fit(spec)

    def withdraw(self) -> None:
        """The worker is leaving: who waits goes on as before, at a share that ends with the queue."""
        self._share.leave()
        if self.spec is not None:
            self._fit(self.spec)

    def _publish(self) -> None:
        if self.spec is not None:
            self.worker.slab.cells[self.pool.base + _QUEUED] = self.waiting

    def _fit(self, spec: AdmissionSpec) -> None:
        part = self._share.part
        if part:
            self._bucket.fit(spec.rate * part, burst_share(spec.burst, part), time.monotonic())
        else:
            self._bucket.run_dry(time.monotonic())

    def _arm(self) -> None:
        """Comes back when there is a token; where that is later than the next tick, the tick does."""
        if self._timer is None and (self._returners or self._newcomers):
            wait = self._bucket.wait() if self.spec is not None else 0.0
            if wait < TICK:
                self._timer = self.worker.loop.call_later(max(wait, _PAUSE), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._serve()

    def _serve(self) -> None:
        """Lets those go on who have a token, or all where there is no bound any more."""
        now = time.monotonic()
        for _ in range(_BATCH):
            queue = self._returners or self._newcomers
            if not queue or (self.spec is not None and not self._bucket.take(now)):
                break
            exchange, _ = queue.popitem(last=False)
            if self.spec is not None:
                self._count(_ADMITTED)
            exchange.admitted(self.pool)
        self._arm()

    def _count(self, cell: int) -> None:
        self.worker.slab.cells[self.pool.base + cell] += 1

    # --- reloads -------------------------------------------------------------------------------------

    def configure(self, pool: Pool, spec: AdmissionSpec) -> None:
        """A reload: who waits keeps his turn. Whom a shorter queue has no place for is refused, the last
        ones first."""
        self.pool = pool
        self.spec = spec
        self._fit(spec)
        for _ in range(self.waiting - self._share.keep(self.waiting, spec.queue)):
            exchange, _ = (self._newcomers or self._returners).popitem()
            self.refuse(exchange, errors.ADMISSION_FULL)
        self._arm()

    def open(self, pool: Pool) -> None:
        """A reload removed the bound: all who wait go on to `pool`, a few in each turn. (Where the pool was
        removed its row may soon be somebody else's, so nothing is counted there any more.)"""
        if self.spec is not None:
            self.worker.slab.cells[self.pool.base + _QUEUED] = 0
            self.spec = None
        self.pool = pool
        self._arm()


def carry_over(former: Pool | None, pool: Pool) -> None:
    """Gives `pool` its admission when it is put in place of `former`, with those who wait there."""
    if former is pool:
        return
    spec = pool.spec.admission
    admission = former.admission if former is not None else None
    if admission is not None and spec is not None:
        admission.configure(pool, spec)
        pool.admission = admission
        return
    if admission is not None:
        admission.open(pool)
    if spec is not None:
        pool.admission = Admission(pool, spec)
