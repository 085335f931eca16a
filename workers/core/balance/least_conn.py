"""Least connections: the server with the lowest score, ties in rotation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Final

from workers.contract.snapshot import ServerSpec

_FEW: Final = 32  # servers, all of which are looked at each time
_NEXT: Final = 15  # servers that are remembered of a look at more


class LeastConn:
    """Looks at every usable server's score; all that grows with their number runs in C. Where they are many,
    some of those that had the lowest score are remembered, and are next as long as they still have it: one
    that became still less loaded meanwhile has its turn a few requests later."""

    __slots__ = ("_count", "_level", "_next", "_select", "_usable")

    def __init__(self, servers: Sequence[ServerSpec], usable: Sequence[int]) -> None:
        self._usable = tuple(usable)
        self._count = len(usable)
        # None: all of them, so that the caller's list serves as it is. (One item would come without a tuple.)
        self._select: Callable[[Sequence[float]], Sequence[float]] | None = None
        if 1 < self._count < len(servers):
            self._select = itemgetter(*usable)
        self._next: list[int] = []
        self._level = 0.0  # the score of these

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """See `Policy.pick`; `ticket` is random bits, which break ties."""
        count = self._count
        if excluded or count < 2:
            return self._pick_among(
                [index for index in self._usable if index not in excluded], ticket, scores
            )
        following = self._next
        while following:
            index = following.pop()
            if scores[index] <= self._level:
                return index
        values = scores if self._select is None else self._select(scores)
        lowest = min(values)
        if count > _FEW:
            return self._pick_of_many(ticket, values, lowest)
        at = values.index(lowest)
        start = ticket % count
        if at < start:
            later = values[start:]
            if lowest in later:
                at = start + later.index(lowest)
        return self._usable[at]

    def _pick_of_many(self, ticket: int, values: Sequence[float], lowest: float) -> int:
        """The next server with the score `lowest`, going around from where the ticket says."""
        start = ticket % self._count
        found: list[int] = []
        for begin, end in ((start, self._count), (0, start)):
            at = begin - 1
            with suppress(ValueError):  # there is none, or no more
                while len(found) <= _NEXT:
                    at = values.index(lowest, at + 1, end)
                    found.append(self._usable[at])
        found.reverse()
        self._next, self._level = found, lowest
        return found.pop()

    def _pick_among(self, candidates: list[int], ticket: int, scores: Sequence[float]) -> int:
        if not candidates:
            return -1
        start = ticket % len(candidates)
        return min(candidates[start:] + candidates[:start], key=scores.__getitem__)
