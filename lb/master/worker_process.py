"""One worker as the master sees it: its process, its channel, and where it stands."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Literal

from lb.master.child import Child, close_fds
from lb.master.loop import Loop
from lb.master.spawn import Spawned
from workers.contract import messages
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import AnyMessage


class Phase(enum.Enum):
    """Where a worker stands. STARTING -> LOADING -> SERVING (or CARETAKING), and LEAVING from each of
    them."""

    STARTING = "starting"  # forked, not heard of yet
    LOADING = "loading"  # was sent its first configuration
    SERVING = "serving"
    CARETAKING = "caretaking"  # serves no listeners: takes over what a dead predecessor left, then leaves
    LEAVING = "leaving"  # was told to stop, and is not replaced


class WorkerProcess(Child[AnyMessage]):
    """The child that serves as worker `slot`. `moves` is why its tunnels move to its siblings when it
    leaves, and `leave_by` when it has to be gone (monotonic), once it was told to leave."""

    __slots__ = ("_on_broken", "_on_message", "caretaker", "hands_over", "leave_by", "moves", "phase", "slot")

    def __init__(
        self,
        slot: int,
        spawned: Spawned,
        loop: Loop,
        log: ErrorLog,
        on_message: Callable[[WorkerProcess, AnyMessage], None],
        on_broken: Callable[[WorkerProcess, str], None],
    ) -> None:
        super().__init__(spawned, loop, log, messages.receive)
        self.slot = slot
        self.phase = Phase.STARTING
        self.caretaker = False
        self.moves: Literal["retire", "upgrade"] = "retire"
        self.hands_over = False  # told to leave its tunnels alone until they are asked for
        self.leave_by: float | None = None
        self._on_message = on_message
        self._on_broken = on_broken

    def took(self, message: AnyMessage, fds: list[int]) -> None:
        """Passes the message on; workers have no descriptors to hand over."""
        close_fds(fds)
        self._on_message(self, message)

    def lost(self, why: str) -> None:
        """Passes it on."""
        self._on_broken(self, why)
