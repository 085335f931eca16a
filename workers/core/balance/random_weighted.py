"""Weighted random choice."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from workers.contract.snapshot import ServerSpec
from workers.core.balance.round_robin import smooth


class RandomWeighted:
    """Each server as often in a table as its weight says; the ticket's random bits choose the entry."""

    __slots__ = ("_length", "_table")

    def __init__(self, servers: Sequence[ServerSpec], usable: Sequence[int]) -> None:
        self._table = tuple(smooth(usable, [servers[index].weight for index in usable]))
        self._length = len(self._table)

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """See `Policy.pick`; `ticket` is random bits, `scores` are not looked at."""
        if not self._length:
            return -1
        turns, at = divmod(ticket, self._length)
        index = self._table[at]
        if not excluded or index not in excluded:
            return index
        left = [index for index in self._table if index not in excluded]
        # The next bits: those that led to the excluded server would favour its neighbours.
        return left[turns % len(left)] if left else -1
