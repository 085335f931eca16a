"""Long work of the event loop, done a little in each of its turns, so that no connection waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from workers.io.reactor import Reactor

Steps = Generator[None, None, None]

# Seconds of a turn that chores may take, and a step more: short for whoever waits, and long beside what a
# turn costs by itself.
SLICE: Final = 0.003


class Chores:
    """Does what it is given, one after the other. A chore yields where it may rest: every tenth of a
    millisecond or so, and nowhere where what it leaves half done could be seen."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: Reactor) -> None:
        self._loop = loop
        self._waiting: deque[Steps] = deque()

    @property
    def busy(self) -> bool:
        """Whether something is left to do."""
        return bool(self._waiting)

    def begin(self, steps: Steps, *, first: bool = False) -> None:
        """Does all of `steps`, from the next turn on, after what was begun before, or between two steps of
        that."""
        if first:
            self._waiting.appendleft(steps)
        else:
            self._waiting.append(steps)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._turn)

    def cancel(self, steps: Steps) -> None:
        """Does no more of `steps`, which hears of that (`GeneratorExit`)."""
        if steps in self._waiting:
            self._waiting.remove(steps)
            steps.close()

    def _turn(self) -> None:
        until = time.monotonic() + SLICE
        waiting = self._waiting
        try:
            while waiting and time.monotonic() < until:
                if next(waiting[0], _OVER) is _OVER:
                    waiting.popleft()
        except BaseException:
            waiting.popleft()
            raise
        finally:
            if waiting:
                self._loop.call_soon(self._turn)


_OVER: Final = object()
