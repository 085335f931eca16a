"""One keeper as the master sees it: the process that holds duplicates of a slot's tunnels."""

from __future__ import annotations

from collections.abc import Callable

from lb.master.child import Child, close_fds
from lb.master.loop import Loop, Timer
from lb.master.spawn import Spawned
from workers.contract.errorlog import ErrorLog
from workers.contract.tunnels import FromKeeper, Settled, receive_from_keeper

Settle = Callable[[Settled], None]


class KeeperProcess(Child[FromKeeper]):
    """The child that keeps the tunnels of worker slot `slot`. `settling` is who waits for its `Settled`,
    `answered` says that no `Ping` is without its `Pong`."""

    __slots__ = ("_on_lost", "_on_message", "answered", "ready", "settling", "slot", "timer")

    def __init__(
        self,
        slot: int,
        spawned: Spawned,
        loop: Loop,
        log: ErrorLog,
        on_message: Callable[[KeeperProcess, FromKeeper], None],
        on_lost: Callable[[KeeperProcess, str], None],
    ) -> None:
        super().__init__(spawned, loop, log, receive_from_keeper)
        self.slot = slot
        self.ready = False
        self.answered = True
        self.settling: Settle | None = None
        self.timer: Timer | None = None  # of what it is to do next: get ready, settle
        self._on_message = on_message
        self._on_lost = on_lost

    def took(self, message: FromKeeper, fds: list[int]) -> None:
        """Passes the message on; keepers have nothing to hand over to the master."""
        close_fds(fds)
        self._on_message(self, message)

    def lost(self, why: str) -> None:
        """Passes it on."""
        self._on_lost(self, why)

    def expect(self, timer: Timer | None) -> None:
        """Puts `timer` in the place of the one that runs, which is cancelled."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer
