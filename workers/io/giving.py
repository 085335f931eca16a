"""The giver's side of a hand-over (see `workers.contract.tunnels`): tunnels go to another worker in batches.

A tunnel that is offered stands still: it is read and written by nobody, and what was received and not sent
goes along in a memfd. It is the giver's until Go is sent, and the taker's from then on; the giver's copies of
the sockets are closed when the taker has confirmed. Whatever breaks, exactly one of them goes on with it.
"""

from __future__ import annotations

import enum
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from workers.contract.cells import MigrationResult
from workers.contract.entries import State
from workers.contract.messages import Give
from workers.contract.tunnels import (
    BATCH,
    Done,
    End,
    Go,
    Handover,
    Offer,
    Ready,
    TunnelRecord,
    encode_record,
)
from workers.io.adoption import depart, describe, pause, resume
from workers.io.transfer import Transfer, close_all

if TYPE_CHECKING:
    from workers.io.tunnel import Tunnel
    from workers.io.worker import Worker

MOST_BYTES: Final = 60 * 1024  # of records in an Offer, which is a message of at most 64 KiB
# How long whose a tunnel is may stay open: the taker's keeper or its successor says so long before.
IN_LIMBO: Final = 60.0
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Step(enum.Enum):
    """What is waited for. IDLE -> OFFERED -> GOING -> IDLE and so on; ENDING, where End can't be sent yet."""

    IDLE = 0
    OFFERED = 1  # Ready
    GOING = 2  # Done
    ENDING = 3  # room in the queue
    OVER = 4


class Moving(NamedTuple):
    """A tunnel on its way; `entry` is where it was on this worker's ledger, -1 for nowhere."""

    tunnel: Tunnel
    entry: int


class Limbo(NamedTuple):
    """An entry that says GONE, while nobody has said that the tunnel came: it depends on the taker's entry.
    `tunnel` is there where Go was not sent: it is this worker's still, should the taker's entry be freed.
    `until` is when it is given up."""

    entry: int
    taker: int  # slot
    taker_entry: int
    taker_serial: int
    until: float
    tunnel: Tunnel | None


class Giver(Transfer):
    """Gives up to `order.count` tunnels. `given` is how many went, `limbo` what is not settled when it is
    over, `error` why it broke off."""

    __slots__ = ("_batch", "_order", "_stay", "_step", "_theirs", "error", "given", "limbo")

    def __init__(self, worker: Worker, fd: int, order: Give, over: Callable[[Giver], None]) -> None:
        super().__init__(worker, fd, order.reason, over)
        self._order = order
        self._step = Step.IDLE
        self._batch: list[Moving] = []
        self._theirs: list[tuple[int, int]] = []  # the taker's entry and serial of each in the batch
        self._stay: set[int] = set()  # numbers of tunnels that could not go
        self.given = 0
        self.error = ""
        self.limbo: list[Limbo] = []

    @property
    def transfer(self) -> int:
        """Its number."""
        return self._order.transfer

    # --- offering ------------------------------------------------------------------------------------

    def offer(self) -> None:
        """Offers the next batch, or ends."""
        records, fds, memfds = self._pack()
        if not self._batch:
            self._end("")
            return
        self._step = Step.OFFERED
        self.wait()
        sent = self.send(Offer(giver=self.worker.slot, tunnels=tuple(records)), fds)
        close_all(memfds)
        if not sent:
            self.ended("the offer could not be sent")

    def _pack(self) -> tuple[list[TunnelRecord], list[int], list[int]]:
        """Stops the tunnels of the next batch: their records, all descriptors, and the memfds among those."""
        records: list[TunnelRecord] = []
        fds: list[int] = []
        memfds: list[int] = []
        left = min(BATCH, self._order.count - self.given)
        size = 0
        for tunnel in self._candidates():
            if len(self._batch) >= left:
                break
            record = describe(tunnel)
            size += len(encode_record(record))
            if size > MOST_BYTES and records:
                break
            waiting = b"".join((tunnel.from_client.out, tunnel.from_server.out))
            try:
                memfd = [_sealed(waiting)] if waiting else []
            except OSError as error:
                self.worker.log.warning("a tunnel can't be handed over now", error=error)
                self._stays(tunnel)
                continue
            pause(tunnel)
            tunnel.shared = True
            self._batch.append(Moving(tunnel, tunnel.entry))
            records.append(record)
            fds += (tunnel.client.fileno(), tunnel.server_sock.fileno(), *memfd)
            memfds += memfd
        return records, fds, memfds

    def _candidates(self) -> Iterator[Tunnel]:
        """The tunnels that may go, in the order of their coming; behind the others those of which a side is
        about to answer a Ping of ours, which only this worker can tell from others."""
        later: list[Tunnel] = []
        for tunnel in self.worker.tunnels.values():
            if self._may_go(tunnel):
                if tunnel.from_client.on_chunk is None and tunnel.from_server.on_chunk is None:
                    yield tunnel
                else:
                    later.append(tunnel)
        if self.reason != "rebalance":
            yield from later

    def _may_go(self, tunnel: Tunnel) -> bool:
        """Not where somebody asked for its end; and only to even out numbers, not where its Close is planned
        otherwise: its turn would be another one there."""
        if not (tunnel.open and tunnel.movable) or tunnel.closing is not None or tunnel.number in self._stay:
            return False
        pacer = self.worker.pacer
        if self.reason == "rebalance":
            return tunnel.number not in pacer
        return not pacer.is_ordered(tunnel.number)

    # --- what the taker says -------------------------------------------------------------------------

    def heard(self, message: Handover, fds: list[int]) -> None:
        close_all(fds)
        match message:
            case Ready() if self._step is Step.OFFERED:
                self._ready(message)
            case Done() if self._step is Step.GOING:
                self._done()
            case _:
                self.abort(f"{type(message).__name__} was not waited for")

    def _ready(self, message: Ready) -> None:
        refused = set(message.refused)
        entries = message.entries or ((-1, 0),) * len(self._batch)
        if len(entries) != len(self._batch):
            self.abort("Ready is about other tunnels than the offer")
            return
        going: list[Moving] = []
        theirs: list[tuple[int, int]] = []
        for index, moving in enumerate(self._batch):
            if index in refused:
                self._goes_on(moving.tunnel)
            else:
                going.append(moving)
                theirs.append(entries[index])
        self._batch, self._theirs = going, theirs
        if not going:
            self._end("the other worker takes no tunnels")
            return
        self._go()

    def _go(self) -> None:
        keeping = self.worker.keeping
        for moving in self._batch:
            if moving.entry >= 0:
                keeping.release(moving.tunnel, State.GONE)
        self._step = Step.GOING
        self.wait()
        if not self.send(Go()):
            self._doubt()

    def _done(self) -> None:
        keeping = self.worker.keeping
        for moving in self._batch:
            depart(moving.tunnel)
            if moving.entry >= 0:
                keeping.free(moving.entry)
        self.given += len(self._batch)
        self._batch = []
        self._step = Step.IDLE
        self.offer()

    # --- what goes wrong -----------------------------------------------------------------------------

    def _doubt(self) -> None:
        """Go could not be sent. The taker has let go of the tunnels, or it died; in that case its keeper may
        have seen GONE, so those with entries stand still until the taker's entries say whose they are."""
        until = self.worker.now + IN_LIMBO
        for moving, (entry, serial) in zip(self._batch, self._theirs, strict=True):
            if moving.entry >= 0 and entry >= 0:
                self.limbo.append(Limbo(moving.entry, self._order.taker, entry, serial, until, moving.tunnel))
                continue
            if moving.entry >= 0:
                self.worker.keeping.free(moving.entry)
            self._goes_on(moving.tunnel)
        self._batch = []
        self._end("the other worker is gone")

    def _lost(self) -> None:
        """Go was sent, and nothing was heard since: they are the taker's, or its successor's."""
        until = self.worker.now + IN_LIMBO
        for moving, (entry, serial) in zip(self._batch, self._theirs, strict=True):
            depart(moving.tunnel)
            if moving.entry >= 0 and entry >= 0:
                self.limbo.append(Limbo(moving.entry, self._order.taker, entry, serial, until, None))
            elif moving.entry >= 0:
                self.worker.keeping.free(moving.entry)
        self.given += len(self._batch)
        self._batch = []

    def ended(self, why: str) -> None:
        self.abort(why)

    def late(self) -> None:
        if self._step is Step.ENDING:
            self._end(self.error)
        else:
            self.abort("the other worker did not answer in time")

    def abort(self, why: str) -> None:
        if self._step is Step.GOING:
            self._lost()
        for moving in self._batch:
            self._goes_on(moving.tunnel)
        self._batch = []
        if self._step is not Step.OVER:
            self._end(why)

    def _goes_on(self, tunnel: Tunnel) -> None:
        """It is this worker's still."""
        resume(tunnel)
        if tunnel.entry < 0:
            self.worker.keeping.opened(tunnel)  # it may have had its turn meanwhile
        self._stays(tunnel)

    def _stays(self, tunnel: Tunnel) -> None:
        self._stay.add(tunnel.number)
        self.count(MigrationResult.REFUSED)

    def _end(self, error: str) -> None:
        self.error = error
        if not self.say(End()):
            # No room. To close without a word would say that this worker is dead.
            self._step = Step.ENDING
            self.deadline = self.worker.now
            return
        self._step = Step.OVER
        self.close()


def _sealed(data: bytes) -> int:
    """A memfd with `data`, which nobody can change any more. Raises `OSError`."""
    fd = os.memfd_create("lb-tunnel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd
