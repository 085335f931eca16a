"""When which of many connections is asked to leave, so that they come back as a drizzle and not as a storm.

Times are seconds of one monotonic clock. A *cause* says why (any hashable value): the same key may be planned
for several, and each of them can be called off without the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

Cause = TypeVar("Cause", bound=Hashable)

# A heap of this many entries is not worth being cleaned of those that were called off.
_SMALL: Final = 64
# Of a time that is to end with everybody gone: what remains after the last one is asked.
_LARGEST_MARGIN: Final = 1.0


def times(count: int, start: float, spread: float, random: Callable[[], float]) -> list[float]:
    """`count` times between `start` and `start + spread`, in no order: one in each of `count` equal parts, so
    that they are even, and anywhere in it, so that nothing beats in step. `random` yields from [0, 1)."""
    if spread <= 0:
        return [start] * count
    found = [start + (index + random()) * spread / count for index in range(count)]
    for index in range(count - 1, 0, -1):  # Fisher and Yates
        other = int(random() * (index + 1))
        found[index], found[other] = found[other], found[index]
    return found


class Window(NamedTuple):
    """From when on, and over what time, connections are asked; in seconds from now."""

    wait: float
    spread: float


def window(grace: float, spread: float, patience: float, *, late: bool) -> Window:
    """How to ask everybody within `grace`, so that the last one still has `patience` to answer, as far as
    that fits: the spread is cut, and with a short grace the patience to a third of it. With `late` they are
    left alone for as long as possible, half of `grace` at the least."""
    rest = min(patience, grace / 3) + min(_LARGEST_MARGIN, grace / 10)
    if not late:
        return Window(0.0, max(0.0, min(spread, grace - rest)))
    wait = max(grace / 2, grace - rest - spread)
    return Window(wait, max(0.0, min(spread, grace - wait - rest)))


class Timetable(Generic[Cause]):
    """Keys (numbers) with the times at which they are due. Take what is due with `next_due`."""

    __slots__ = ("_heap", "_planned", "_serial", "_size")

    def __init__(self) -> None:
        self._planned: dict[int, dict[Cause, float]] = {}
        # What was called off stays here until it comes up, or until there is more of it than of the rest.
        self._heap: list[tuple[float, int, int, Cause]] = []
        self._serial = 0  # so that causes are never compared
        self._size = 0  # entries of `_planned`

    def __len__(self) -> int:
        """How many keys are planned."""
        return len(self._planned)

    def __contains__(self, key: int) -> bool:
        return key in self._planned

    def __iter__(self) -> Iterator[int]:
        return iter(self._planned)

    def has(self, key: int, cause: Cause) -> bool:
        """Whether `key` is planned for `cause`."""
        return cause in self._planned.get(key, ())

    def planned(self, key: int) -> Mapping[Cause, float]:
        """What the key is planned for, and when."""
        return self._planned.get(key, {})

    def plan(self, keys: Iterable[int], cause: Cause, at: Iterable[float]) -> None:
        """Plans each key for its time in `at`. A key that is planned for `cause` already keeps the earlier
        time."""
        new: list[tuple[float, int, int, Cause]] = []
        for key, time in zip(keys, at, strict=True):
            causes = self._planned.setdefault(key, {})
            planned = causes.get(cause)
            if planned is None:
                self._size += 1
            elif planned <= time:
                continue
            causes[cause] = time
            self._serial += 1
            new.append((time, self._serial, key, cause))
        if len(new) > _SMALL:
            self._heap += new
            heapq.heapify(self._heap)
        else:
            for entry in new:
                heapq.heappush(self._heap, entry)
        self._clean()

    def next_due(self, now: float) -> tuple[int, Cause] | None:
        """The key that is due first at `now`, with its cause; it is forgotten. `None`: nothing is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            time, _, key, cause = heapq.heappop(heap)
            if self._planned.get(key, {}).get(cause) == time:
                self.forget((key,))
                return key, cause
        return None

    def forget(self, keys: Iterable[int]) -> None:
        """These are gone, for whatever cause they were planned."""
        for key in keys:
            self._size -= len(self._planned.pop(key, ()))
        self._clean()

    def call_off(self, cause: Cause) -> None:
        """Nothing is to be done for `cause` any more."""
        for key in [key for key, causes in self._planned.items() if cause in causes]:
            causes = self._planned[key]
            del causes[cause]
            self._size -= 1
            if not causes:
                del self._planned[key]
        self._clean()

    def without(self, there: Collection[int]) -> list[int]:
        """The planned keys that are not in `there`."""
        return [key for key in self._planned if key not in there]

    def _clean(self) -> None:
        if len(self._heap) > _SMALL + 2 * self._size:
            self._heap = [
                entry for entry in self._heap if self._planned.get(entry[2], {}).get(entry[3]) == entry[0]
            ]
            heapq.heapify(self._heap)
