"""How many events one cause may add."""

from __future__ import annotations

import time
from collections.abc import Callable


class Quota:
    """What one cause may add: `burst` events at once, then one every `every` seconds. Otherwise a name whose
    addresses change each second would push out everything else that happened."""

    def __init__(self, burst: int, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._every = every
        self._clock = clock
        self._room = float(burst)
        self._last = clock()
        self._left_out = 0

    def take(self, text: str) -> str | None:
        """`text`, with how many were left out before it; `None` where this one is left out, too."""
        now = self._clock()
        self._room = min(float(self._burst), self._room + (now - self._last) / self._every)
        self._last = now
        if self._room < 1.0:
            self._left_out += 1
            return None
        self._room -= 1.0
        left_out, self._left_out = self._left_out, 0
        return f"{text} (and {left_out} more such events before)" if left_out else text
