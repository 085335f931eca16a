"""Least connections: the server with the lowest score, ties in rotation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import itemgetter

from workers.contract.snapshot import ServerSpec


class LeastConn:
    """Looks at every usable server's score; all that grows with their number runs in C."""

    __slots__ = ("_count", "_select", "_usable")

    def __init__(self, servers: Sequence[ServerSpec], usable: Sequence[int]) -> None:
        self._usable = tuple(usable)
        self._count = len(usable)
        # None: all of them, so that the caller's list serves as it is. (One item would come without a tuple.)
        self._select: Callable[[Sequence[float]], Sequence[float]] | None = None
        if 1 < self._count < len(servers):
            self._select = itemgetter(*usable)

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """See `Policy.pick`; `ticket` is random bits, which break ties."""
        count = self._count
        if excluded or count < 2:
            return self._pick_among(
                [index for index in self._usable if index not in excluded], ticket, scores
            )
        values = scores if self._select is None else self._select(scores)
        lowest = min(values)
        at = values.index(lowest)
        start = ticket % count
        if at < start:
            later = values[start:]
            if lowest in later:
                at = start + later.index(lowest)
        return self._usable[at]

    def _pick_among(self, candidates: list[int], ticket: int, scores: Sequence[float]) -> int:
        if not candidates:
            return -1
        start = ticket % len(candidates)
        return min(candidates[start:] + candidates[:start], key=scores.__getitem__)
