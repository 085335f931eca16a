"""The events of the last while, and who listens to them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from lb.control.messages import Event

KEPT: Final = 1000
MAX_LISTENERS: Final = 64
QUEUE: Final = 256  # events that a listener may be behind; then it has lost some, and is told so


class TooManyListeners(Exception):
    """There is no room for another listener."""


class Listener:
    """One who listens. `lost` says that events were left out: ask for `EventLog.after` then."""

    def __init__(self) -> None:
        self.lost = False
        self._queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE)

    async def next(self) -> Event:
        """The next event; waits for it."""
        return await self._queue.get()

    def put(self, event: Event) -> None:
        """Takes `event`, or notes that it is lost where the listener is too slow."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.lost = True


class EventLog:
    """Numbers, keeps and passes on. Bounded in what is kept, and in who listens."""

    def __init__(self, forward: Callable[[Event], None] | None = None) -> None:
        """`forward` gets what is added here, so that it outlives this process."""
        self._forward = forward
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._listeners: set[Listener] = set()
        self._number = 0

    def add(self, kind: str, text: str, **fields: str | int | float) -> Event:
        """Something happened now. What is too long is cut."""
        event = self.take(Event(kind=kind, text=text, at=time.time(), fields=fields).bounded())
        if self._forward is not None:
            self._forward(event)
        return event

    def take(self, event: Event) -> Event:
        """Keeps an event that came from the master. Its number there is the least it gets here: numbers
        go on where an earlier control process left off."""
        self._number = max(self._number + 1, event.number)
        event = msgspec.structs.replace(event, number=self._number)
        self._kept.append(event)
        for listener in self._listeners:
            listener.put(event)
        return event

    @property
    def last(self) -> int:
        """The number of the last event; 0 before the first."""
        return self._number

    def after(self, number: int, limit: int = KEPT) -> list[Event]:
        """The last `limit` events with a higher number than `number`, oldest first."""
        return [event for event in self._kept if event.number > number][-limit:]

    def listen(self) -> Listener:
        """Somebody who gets every event from now on. Raises `TooManyListeners`."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise TooManyListeners(f"{MAX_LISTENERS} listen already")
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """`listener` is gone."""
        self._listeners.discard(listener)
