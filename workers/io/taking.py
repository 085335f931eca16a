"""The taker's side of a hand-over (see `workers.contract.tunnels`).

What is offered is built, put on this worker's ledger as COMING and shown to its keeper, and stands still
until Go. There is no bound on that wait: who leaves it by himself could miss a Go that is on its way. The
giver ends it in time, with Go or End, or by dying, and a giver that hangs is killed.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from workers.contract.cells import MigrationResult
from workers.contract.entries import State
from workers.contract.messages import Take
from workers.contract.tunnels import Done, End, Go, Handover, Offer, Ready, TunnelRecord
from workers.core.wheel import NEVER
from workers.io.adoption import NotAdopted, adopt, drop, enter
from workers.io.transfer import Transfer, close_all

if TYPE_CHECKING:
    from workers.io.tunnel import Tunnel
    from workers.io.worker import Worker


class Step(enum.Enum):
    """What is waited for: IDLE -> READY -> IDLE and so on."""

    IDLE = 0  # an Offer
    READY = 1  # Go
    OVER = 2


class Coming(NamedTuple):
    """A tunnel that is built; `entry` and `serial` say where it is on the giver's ledger, -1 for nowhere."""

    tunnel: Tunnel
    entry: int
    serial: int


class Taker(Transfer):
    """Takes what comes; `taken` is how many tunnels that were."""

    __slots__ = ("_built", "_order", "_step", "taken")

    def __init__(self, worker: Worker, fd: int, order: Take, over: Callable[[Taker], None]) -> None:
        super().__init__(worker, fd, order.reason, over)
        self._order = order
        self._step = Step.IDLE
        self._built: list[Coming] = []
        self.taken = 0
        self.wait()

    def heard(self, message: Handover, fds: list[int]) -> None:
        match message:
            case Offer() if self._step is Step.IDLE:
                self._offered(message, fds)
                return
            case Go() if self._step is Step.READY:
                self._go()
            case End():
                self._drop()
            case _:
                self.abort(f"{type(message).__name__} was not waited for")
        close_all(fds)

    # --- building ------------------------------------------------------------------------------------

    def _offered(self, offer: Offer, fds: list[int]) -> None:
        expected = sum(3 if _waits(record) else 2 for record in offer.tunnels)
        if len(fds) != expected:
            close_all(fds)
            self.abort(f"an offer came with {len(fds)} descriptors, and not {expected}")
            return
        left = iter(fds)
        tunnels = [self._build(record, left) for record in offer.tunnels]
        self.worker.keeping.tell()
        refused = tuple(index for index, tunnel in enumerate(tunnels) if tunnel is None)
        entries = tuple((-1, 0) if tunnel is None else self._entry(tunnel) for tunnel in tunnels)
        self._step = Step.READY
        self.deadline = NEVER
        # Where the giver is gone, that is what is read next.
        self.send(Ready(refused=refused, entries=entries))

    def _entry(self, tunnel: Tunnel) -> tuple[int, int]:
        """The entry of `tunnel` and its serial, where the keeper has it; without it, it is on no ledger."""
        keeping = self.worker.keeping
        if not keeping.holds(tunnel):
            keeping.release(tunnel)
            return -1, 0
        return tunnel.entry, keeping.area.serial(tunnel.entry)

    def _build(self, record: TunnelRecord, fds: Iterator[int]) -> Tunnel | None:
        """The tunnel on the next of `fds`; `None` where it has to stay where it is."""
        worker = self.worker
        client, server = next(fds), next(fds)
        memfd = next(fds) if _waits(record) else -1
        try:
            if worker.stopping:
                raise NotAdopted("this worker is leaving itself")
            waiting = _read(memfd, record) if memfd >= 0 else (b"", b"")
            tunnel = adopt(worker, record, client, server, waiting)
        except (NotAdopted, OSError) as error:
            worker.log.warning("a tunnel can't be taken over", giver=self._order.giver, error=error)
            close_all((client, server))
            return None
        finally:
            if memfd >= 0:
                os.close(memfd)
        keeping = worker.keeping
        if record.bases is not None and record.entry >= 0 and keeping.channel is not None:
            keeping.enter(tunnel, record.bases, (self._order.giver, record.entry, record.serial))
        self._built.append(Coming(tunnel, record.entry, record.serial))
        return tunnel

    # --- whose they are ------------------------------------------------------------------------------

    def _go(self) -> None:
        built, self._built = self._built, []
        for coming in built:
            self._enter(coming.tunnel)
        self._step = Step.IDLE
        self.wait()
        self.send(Done())

    def _enter(self, tunnel: Tunnel) -> None:
        keeping = self.worker.keeping
        if tunnel.entry >= 0:
            keeping.confirm(tunnel)
        enter(tunnel)
        if tunnel.entry < 0:
            keeping.opened(tunnel)
        self.taken += 1
        self.count(MigrationResult.OK)

    def ended(self, why: str) -> None:
        """The giver is dead. What it had marked as GONE is this worker's, and what it had not is its
        successor's; what was on no ledger would be nobody's."""
        if self._built:
            states = self.worker.ledger.states(self._order.giver)
            built, self._built = self._built, []
            for coming in built:
                entry = coming.entry
                if entry < 0 or (states[2 * entry] == State.GONE and states[2 * entry + 1] == coming.serial):
                    self._enter(coming.tunnel)
                else:
                    self._leave(coming.tunnel)
        self._drop()

    def late(self) -> None:
        self.abort("nothing was offered in time")

    def abort(self, why: str) -> None:
        if self._step is not Step.OVER:
            self.worker.log.warning("a hand-over broke off", giver=self._order.giver, why=why)
            self._drop()

    def _drop(self) -> None:
        """What was not told to go is the giver's still."""
        built, self._built = self._built, []
        for coming in built:
            self._leave(coming.tunnel)
        if self._step is not Step.OVER:
            self._step = Step.OVER
            self.close()

    def _leave(self, tunnel: Tunnel) -> None:
        self.worker.keeping.release(tunnel)
        drop(tunnel)


def _waits(record: TunnelRecord) -> bool:
    return bool(record.client.waiting or record.server.waiting)


def _read(fd: int, record: TunnelRecord) -> tuple[bytes, bytes]:
    """What waits in both directions. Raises `OSError`, `NotAdopted`."""
    size = record.client.waiting + record.server.waiting
    if os.fstat(fd).st_size != size:
        raise NotAdopted(f"{size} bytes wait by its record, and {os.fstat(fd).st_size} came")
    data = os.pread(fd, size, 0)
    return data[: record.client.waiting], data[record.client.waiting :]
