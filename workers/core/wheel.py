"""Timeouts without timers: a coarse wheel whose entries move lazily.

An item is in one bucket at most. Putting its deadline off is one attribute write; only when its bucket
comes up is it looked at and moved. Bringing a deadline forward moves it at once. So a connection that sees
a request a millisecond costs the wheel one move per timeout period (the idea: Varghese and Lauck, 1987,
scheme 6, with the lazy re-insertion of the Linux kernel's old timer wheel).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

NEVER: Final = float("inf")
TICK: Final = 0.1  # seconds: how coarse a timeout is
ALL: Final = 1 << 62


class Timed:
    """What the wheel holds. `deadline` is when it is due, `due` the time of the bucket that it is in
    (`NEVER` for none); the item only reads `due`."""

    __slots__ = ("deadline", "due")

    def __init__(self) -> None:
        self.deadline = NEVER
        self.due = NEVER

    def on_deadline(self) -> None:
        """Called once the deadline has passed; the item is in no bucket then."""
        raise NotImplementedError


class Wheel:
    """Buckets of `TICK` seconds. Times are seconds of one monotonic clock."""

    __slots__ = ("_buckets", "_next")

    def __init__(self, now: float) -> None:
        self._buckets: dict[int, set[Timed]] = {}
        self._next = int(now / TICK)

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def arm(self, item: Timed, deadline: float) -> None:
        """Sets the deadline of `item`. The hot path writes this out: assign `deadline`, and call `move`
        only when it is earlier than `due`."""
        item.deadline = deadline
        if deadline < item.due:
            self.move(item)

    def move(self, item: Timed) -> None:
        """Puts `item` into the bucket of its deadline."""
        if item.due != NEVER:
            self.drop(item)
        bucket = max(int(item.deadline / TICK) + 1, self._next)
        item.due = bucket * TICK
        members = self._buckets.get(bucket)
        if members is None:
            self._buckets[bucket] = {item}
        else:
            members.add(item)

    def drop(self, item: Timed) -> None:
        """Takes `item` out, as when its connection closes; harmless when it is in no bucket."""
        if item.due == NEVER:
            return
        bucket = int(item.due / TICK + 0.5)
        item.due = NEVER
        members = self._buckets.get(bucket)
        if members is not None:
            members.discard(item)
            if not members:
                del self._buckets[bucket]

    def advance(self, now: float, most: int = ALL) -> bool:
        """Calls `on_deadline` of everything that is due at `now`, and moves what is not yet; of `most` items
        in all. Returns whether some are left: then call it again soon. What a handler raises comes out of
        here; the items behind it are due at the next call."""
        current = int(now / TICK)
        if current - self._next > len(self._buckets):
            # The loop stood still for long: look at what there is rather than at every bucket between.
            passed = sorted(bucket for bucket in self._buckets if bucket <= current)
        else:
            passed = [bucket for bucket in range(self._next, current + 1) if bucket in self._buckets]
        self._next = current + 1
        try:
            for bucket in passed:
                most = self._empty(bucket, now, most)
                if most <= 0 and bucket in self._buckets:
                    self._next = bucket
                    return True
        except BaseException:
            self._put_back(passed)
            raise
        return False

    def _empty(self, bucket: int, now: float, most: int) -> int:
        """Sees to `most` items of `bucket`; returns how many may still be seen to."""
        members = self._buckets.get(bucket)
        # What `on_deadline` drops or moves leaves this very set; what it adds goes into later buckets.
        while members:
            if most <= 0:
                return most
            most -= 1
            item = members.pop()
            item.due = NEVER
            if item.deadline <= now:
                item.on_deadline()
            elif item.deadline != NEVER:
                self.move(item)
        self._buckets.pop(bucket, None)
        return most

    def _put_back(self, passed: Iterable[int]) -> None:
        """One handler failed; the others are called at the next `advance`."""
        for bucket in passed:
            for item in self._buckets.pop(bucket, ()):
                item.due = NEVER
                self.move(item)
