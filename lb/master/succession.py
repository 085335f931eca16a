"""What becomes of a worker's slot when its worker died and its tunnels may live on.

The keeper of the slot puts the ledger in order; then, sooner or later, a successor in the same slot takes the
tunnels over. A slot that shall not be served any more gets a *caretaker*, which does nothing but that, and
hands them to the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lb.master.keepers import Keepers
from lb.master.loop import Loop
from lb.master.supervision import Backoff
from workers.contract.errorlog import ErrorLog
from workers.contract.tunnels import Settled

# So many successors in a row may die before they have taken the tunnels over: it may be the tunnels' doing.
MAX_FAILURES: Final = 3


class Estate:
    """What a dead worker left. `held` tunnels (-1: not known yet), to be closed by `leave_by` where the
    dead one was leaving; `failures` successors died over it."""

    __slots__ = ("failures", "held", "leave_by")

    def __init__(self, leave_by: float | None, failures: int) -> None:
        self.held = -1
        self.leave_by = leave_by
        self.failures = failures


class Succession:
    """The estates of all slots; each ends when a successor has taken it over, or nothing is left of it."""

    def __init__(self, loop: Loop, log: ErrorLog, keepers: Keepers, start: Callable[[int], None]) -> None:
        """`start` is called with a slot when it is time for its next worker."""
        self._loop = loop
        self._log = log
        self._keepers = keepers
        self._start = start
        self._backoffs: dict[int, Backoff] = {}
        self._estates: dict[int, Estate] = {}

    @property
    def open(self) -> bool:
        """Whether some tunnels are in no worker's hands, or may be."""
        return any(estate.held for estate in self._estates.values())

    def of(self, slot: int) -> Estate | None:
        """What is to be taken over in `slot`."""
        return self._estates.get(slot)

    def held(self, slot: int) -> int:
        """How many tunnels are to be taken over in `slot`; 0 where that is not known yet."""
        estate = self._estates.get(slot)
        return 0 if estate is None else max(0, estate.held)

    def died(self, slot: int, lived: float, leave_by: float | None) -> None:
        """The worker of `slot` died after `lived` seconds. It was leaving where it had a `leave_by`."""
        before = self._estates.get(slot)
        failures = before.failures + 1 if before is not None and before.held > 0 else 0
        if before is not None and leave_by is None:
            leave_by = before.leave_by
        estate = self._estates[slot] = Estate(leave_by, failures)
        if failures >= MAX_FAILURES:
            self._log.error("worker after worker died taking tunnels over: they are closed", slot=slot)
            self._keepers.release(slot)
            self._settled(slot, estate, Settled(held=0), lived)
            return
        self._keepers.settle(slot, lambda settled: self._settled(slot, estate, settled, lived))

    def _settled(self, slot: int, estate: Estate, settled: Settled, lived: float) -> None:
        if self._estates.get(slot) is not estate:
            return
        if settled.held or settled.closed:
            fields = {"slot": slot, "held": settled.held, "closed": settled.closed}
            self._log.info("tunnels of a dead worker are kept", **fields)
        estate.held = settled.held
        delay = self._backoffs.setdefault(slot, Backoff()).died(lived, settled.held)
        if not delay:
            self._start(slot)
            return
        self._log.warning("workers die early, the next waits", slot=slot, seconds=delay)
        self._loop.later(delay, lambda: self._start(slot))

    def over(self, slot: int) -> None:
        """Nothing is left to be taken over in `slot`."""
        self._estates.pop(slot, None)
