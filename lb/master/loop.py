"""The master's event loop: descriptors, timers and nothing else.

The process that forks has no asyncio loop and no threads (design, section 1), so this is a `selectors`
loop of its own, level-triggered, run by one thread.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import selectors
import time
from collections.abc import Callable
from typing import Final

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE

# A callback that raises is a bug in the master. Its loss would cost more than the bug (the workers would
# drain and leave), so it is reported and the loop goes on; but not for ever.
_TOLERATED_BUGS: Final = 100


class Timer:
    """A callback that is due at `when` (monotonic seconds)."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The callback is not called any more. May be called at any time, and twice."""
        self.callback = None


class Loop:
    """Calls back when a descriptor is ready or a timer is due, until `stop`."""

    def __init__(self, on_bug: Callable[[Exception], None]) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._on_bug = on_bug
        self._bugs = 0
        self._running = False

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Calls `callback(ready events)` whenever `fd` is ready for some of `events`. A second call for
        the same `fd` replaces the first."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, callback)
        else:
            self._selector.register(fd, events, callback)

    def forget(self, fd: int) -> None:
        """Stops watching `fd`, where it is watched; to be called before it is closed."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls `callback` once, `delay` seconds from now."""
        timer = Timer(time.monotonic() + delay, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Runs until `stop` is called."""
        self._running = True
        while self._running:
            for key, events in self._selector.select(self._patience()):
                # An earlier callback of this round may have forgotten the descriptor.
                if self._selector.get_map().get(key.fd) is key:
                    self._call(functools.partial(key.data, events))
            self._fire()

    def stop(self) -> None:
        """Ends `run` after the current round."""
        self._running = False

    def close(self) -> None:
        """Gives the selector's descriptor back."""
        self._selector.close()

    def _patience(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _fire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._call(callback)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            self._bugs += 1
            if self._bugs > _TOLERATED_BUGS:
                raise
            self._on_bug(error)
