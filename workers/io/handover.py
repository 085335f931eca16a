"""Tunnels that change hands between workers: what the master asks for, and what is not settled yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workers.contract.entries import State
from workers.contract.messages import Give, Given, Take
from workers.io.adoption import depart, resume
from workers.io.giving import Giver, Limbo
from workers.io.taking import Taker
from workers.io.transfer import Transfer, close_all

if TYPE_CHECKING:
    from workers.io.worker import Worker


class Handovers:
    """All hand-overs of one worker."""

    __slots__ = ("_limbo", "_say", "_worker", "transfers")

    def __init__(self, worker: Worker, say: Callable[[Given], None]) -> None:
        """`say` tells the master."""
        self._worker = worker
        self._say = say
        self.transfers: set[Transfer] = set()
        self._limbo: list[Limbo] = []

    @property
    def busy(self) -> bool:
        """Whether a hand-over is under way."""
        return bool(self.transfers or self._limbo)

    def give(self, order: Give, fds: list[int]) -> None:
        """Gives tunnels away; answered by `Given`."""
        if len(fds) != 1:
            close_all(fds)
            self._say(Given(transfer=order.transfer, count=0, error="no pair came with the order"))
            return
        giver = Giver(self._worker, fds[0], order, self._given)
        self.transfers.add(giver)
        giver.offer()

    def _given(self, giver: Giver) -> None:
        self.transfers.discard(giver)
        self._limbo += giver.limbo
        if giver.error:
            self._worker.log.warning("a hand-over broke off", given=giver.given, why=giver.error)
        self._say(Given(transfer=giver.transfer, count=giver.given, error=giver.error))

    def take(self, order: Take, fds: list[int]) -> None:
        """Takes tunnels that another worker gives."""
        if len(fds) != 1:
            close_all(fds)
            self._worker.log.error("tunnels are to be taken over, and no pair came", giver=order.giver)
            return
        self.transfers.add(Taker(self._worker, fds[0], order, self.transfers.discard))

    def tick(self) -> None:
        """Ends what takes too long, and looks whether what is unsettled is settled now."""
        now = self._worker.now
        for transfer in tuple(self.transfers):
            if now >= transfer.deadline:
                transfer.late()
        if self._limbo:
            self._limbo = [limbo for limbo in self._limbo if not self._settle(limbo)]

    def _settle(self, limbo: Limbo) -> bool:
        """Whether the taker's entry says by now whose the tunnel is."""
        worker = self._worker
        states = worker.ledger.states(limbo.taker)
        same = states[2 * limbo.taker_entry + 1] == limbo.taker_serial
        state = states[2 * limbo.taker_entry] if same else State.FREE
        if state == State.COMING and worker.now < limbo.until:
            return False
        worker.keeping.free(limbo.entry)
        if limbo.tunnel is not None:
            if state == State.FREE:
                resume(limbo.tunnel)
                worker.keeping.opened(limbo.tunnel)
            else:
                if state == State.COMING:
                    worker.log.error("a tunnel is closed: nobody says whose it is", taker=limbo.taker)
                depart(limbo.tunnel)
        return True

    def abort(self, why: str) -> None:
        """The worker ends now: what can stay stays, and ends with it."""
        for transfer in tuple(self.transfers):
            transfer.abort(why)
        for limbo in self._limbo:
            if limbo.tunnel is not None:
                depart(limbo.tunnel)
        self._limbo = []
