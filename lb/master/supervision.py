"""The pure rules of supervision: when a dead worker comes back, and when a silent one is wedged."""

from __future__ import annotations

import os
import signal
from typing import Final

EARLY: Final = 1.0  # seconds; a worker that dies younger did so on its way up
_TOLERATED: Final = 2  # early deaths in a row that are answered at once
_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 5.0
_LONGEST_WITH_TUNNELS: Final = 1.0

WEDGED: Final = "wedged"
LATE: Final = "late"
CHANNEL: Final = "channel"
REFUSED: Final = "refused"


class Backoff:
    """How long a slot waits before its next worker: not at all, unless workers die early repeatedly."""

    __slots__ = ("_early",)

    def __init__(self) -> None:
        self._early = 0

    def died(self, lived: float, tunnels: int = 0) -> float:
        """Seconds to wait after a worker that lived for `lived` seconds; `tunnels` wait for its successor."""
        if lived >= EARLY:
            self._early = 0
            return 0.0
        self._early += 1
        if self._early <= _TOLERATED:
            return 0.0
        longest = _LONGEST_WITH_TUNNELS if tunnels else _LONGEST_DELAY
        return float(min(longest, _FIRST_DELAY * 2 ** min(10, self._early - _TOLERATED - 1)))


def quiet_for(quiet: float, beats: bool, elapsed: float, tick: float) -> float:
    """Seconds without a heartbeat, after a tick that came `elapsed` seconds after the one before.

    Where the master itself stood still (a stopped process group, a paused container), its children did
    too: no tick counts for more than twice its length.
    """
    return 0.0 if beats else quiet + min(elapsed, 2 * tick)


def cause_of_death(wait_status: int) -> str:
    """The stable word for how a process ended: "exit-1" or "SIGKILL"."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code >= 0:
        return f"exit-{code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal-{-code}"
