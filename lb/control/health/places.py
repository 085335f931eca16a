"""How many checks may run at the same time, and whose turn it is where there are more."""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

MOST: Final = 4096
OWN: Final = 8  # places that each pool has for itself, while half of all are enough for that


def most_at_once() -> int:
    """A check is a descriptor, and this process needs some for other things: a quarter of what it may open,
    at most `MOST`."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if files == resource.RLIM_INFINITY else max(1, min(MOST, files // 4))


class Places:
    """Places for the checks of all pools.

    Each pool has some of its own, so that the servers of one pool that keep their checks waiting until the
    timeout delay no check of another pool; the rest goes to who comes first, and where they wait to the pool
    that has the fewest.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._own = 1
        self._shared = most
        self._running: dict[str, int] = {}  # by pool
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def share(self, pools: Collection[str]) -> None:
        """These pools have checks from now on. Each has one place at least, however many they are."""
        count = max(1, len(pools))
        self._own = max(1, min(OWN, self.most // 2 // count))
        self._shared = max(0, self.most - self._own * count)
        self._wake()

    @asynccontextmanager
    async def place(self, pool: str) -> AsyncIterator[None]:
        """A place for a check of `pool`, as soon as there is one."""
        await self._enter(pool)
        try:
            yield
        finally:
            self._leave(pool)

    async def _enter(self, pool: str) -> None:
        if pool not in self._waiting and self._is_free(pool):
            self._add(pool, 1)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(pool, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(pool)  # it was given the place just now
            else:
                self._forget(pool, turn)
            raise

    def _leave(self, pool: str) -> None:
        self._add(pool, -1)
        self._wake()

    def _is_free(self, pool: str) -> bool:
        if self._running.get(pool, 0) < self._own:
            return True
        return sum(max(0, count - self._own) for count in self._running.values()) < self._shared

    def _wake(self) -> None:
        """Gives what is free to those who wait, the pool with the fewest first."""
        while self._waiting:
            pool = min(self._waiting, key=lambda name: self._running.get(name, 0))
            if not self._is_free(pool):
                return
            turn = self._waiting[pool][0]
            self._forget(pool, turn)
            self._add(pool, 1)
            turn.set_result(None)

    def _forget(self, pool: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting[pool]
        line.remove(turn)
        if not line:
            del self._waiting[pool]

    def _add(self, pool: str, by: int) -> None:
        count = self._running.get(pool, 0) + by
        if count:
            self._running[pool] = count
        else:
            self._running.pop(pool, None)
