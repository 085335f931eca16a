"""How workers leave: when those that are to follow them serve, within a grace, their tunnels to siblings."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from lb.master.loop import Loop
from lb.master.succession import Succession
from lb.master.supervision import LATE
from lb.master.worker_process import Phase, WorkerProcess
from workers.contract.messages import Stop

if TYPE_CHECKING:
    from lb.master.fleet import Fleet

_LATE_AFTER: Final = 2.0  # beyond the grace that a leaving worker was given
_HEIRS_TIME: Final = 30.0  # how long a worker that is not wanted any more waits for those that are
_LEAST_GRACE: Final = 1.0


class Leaving:
    """Lets workers of `fleet` go."""

    def __init__(self, loop: Loop, fleet: Fleet, succession: Succession) -> None:
        self._loop = loop
        self._fleet = fleet
        self._succession = succession
        self._end_by: float | None = None  # when everybody has to be gone (monotonic), once lb stops

    @property
    def has_time(self) -> bool:
        """Whether lb does not stop, or not before the tunnels of a worker that died are closed in order."""
        return self._end_by is None or time.monotonic() < self._end_by

    # --- who ---------------------------------------------------------------------------------------------

    def switched(self, before: Collection[int]) -> None:
        """Other slots are to be served than those of `before`: the others' workers may go."""
        if set(before) - set(self._fleet.active):
            self._loop.later(_HEIRS_TIME, self._retire)
        self.retire_if_replaced()

    def retire_if_replaced(self) -> None:
        """Lets go who is not wanted any more, where all that is wanted serves."""
        workers = self._fleet.workers.values()
        serving = {worker.slot for worker in workers if worker.phase is Phase.SERVING}
        if serving.issuperset(self._fleet.active):
            self._retire()

    def _retire(self) -> None:
        fleet = self._fleet
        if fleet.closed:
            return
        for worker in list(fleet.workers.values()):
            if worker.slot in fleet.active or worker.phase is Phase.LEAVING:
                continue
            if self._succession.of(worker.slot) is not None:
                worker.caretaker = True  # it goes when it has what it came for
            else:
                self.relieve(worker, None)

    # --- how ---------------------------------------------------------------------------------------------

    def relieve(self, worker: WorkerProcess, leave_by: float | None) -> None:
        """Tells `worker` to leave, its tunnels to go to its siblings, by `leave_by` (monotonic), or within
        the grace of the configuration. Where lb stops, it closes them."""
        if self._end_by is not None:
            self.dismiss(worker, max(0.0, self._end_by - time.monotonic()))
            return
        grace = self._fleet.deployment.plan.snapshot.drain.hard_stop
        if leave_by is not None:
            grace = max(_LEAST_GRACE, leave_by - time.monotonic())
        self.dismiss(worker, grace, hand_over=True)

    def dismiss(self, worker: WorkerProcess, grace: float, hand_over: bool = False) -> None:
        """Tells `worker` to leave within `grace` seconds; it is not replaced."""
        worker.phase = Phase.LEAVING
        worker.hands_over = hand_over
        worker.leave_by = time.monotonic() + grace
        self._fleet.changed()
        worker.send(Stop(grace=grace, hand_over=hand_over))
        self.watch(worker)

    def watch(self, worker: WorkerProcess) -> None:
        """Ends `worker`, which was told to leave, when it is late; finds takers for its tunnels."""
        leave_by = worker.leave_by or 0.0

        def late() -> None:
            if worker.leave_by == leave_by:  # nobody gave it another grace
                self._fleet.kill(worker, LATE)

        self._loop.later(max(0.0, leave_by - time.monotonic()) + _LATE_AFTER, late)
        if worker.hands_over and self._fleet.mover is not None:
            self._fleet.mover.leaving(worker)

    # --- the end -----------------------------------------------------------------------------------------

    def leave_all(self, grace: float) -> None:
        """Tells everybody to leave within `grace` seconds. A worker that has not got yet what a dead one
        left gets it first, so that somebody closes those tunnels in order."""
        self._end_by = time.monotonic() + grace
        for worker in list(self._fleet.workers.values()):
            if grace and self._succession.held(worker.slot) and worker.phase is not Phase.LEAVING:
                worker.caretaker = True
            else:
                self.dismiss(worker, grace)
        self._loop.later(grace, self._end)

    def _end(self) -> None:
        if self.has_time:
            return  # another grace was given
        for worker in list(self._fleet.workers.values()):
            if worker.phase is not Phase.LEAVING:
                self.dismiss(worker, 0.0)
        self._fleet.check_empty()
