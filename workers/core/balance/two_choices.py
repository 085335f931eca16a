"""Power of two choices: two servers at random, and of them the less loaded one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from workers.contract.snapshot import ServerSpec
from workers.core.balance.weights import shares


class TwoChoices:
    """Constant cost however large the pool. Each server holds a run of a table, as long as its weight
    says; the second choice is drawn from the rest of the table, so it is another server."""

    __slots__ = ("_ends", "_length", "_rest", "_table")

    def __init__(self, servers: Sequence[ServerSpec], usable: Sequence[int]) -> None:
        table: list[int] = []
        # By index in `servers`: where the server's run ends, and how much of the table is not its own.
        self._ends = [0] * len(servers)
        self._rest = [0] * len(servers)
        parts = shares([servers[index].weight for index in usable]) if usable else []
        for index, part in zip(usable, parts, strict=True):
            table.extend([index] * part)
            self._ends[index] = len(table)
            self._rest[index] = sum(parts) - part
        self._length = len(table)
        self._table = tuple(table + table)  # twice, for a run that wraps

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """See `Policy.pick`; `ticket` is at least 32 random bits."""
        if not self._length:
            return -1
        bits, at = divmod(ticket, self._length)
        first = self._table[at]
        rest = self._rest[first]
        if not rest:
            return -1 if first in excluded else first
        second = self._table[self._ends[first] + bits % rest]
        if excluded and (first in excluded or second in excluded):
            return self._pick_left(ticket, scores, excluded)
        return second if scores[second] < scores[first] else first

    def _pick_left(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        left = [index for index in self._table[: self._length] if index not in excluded]
        if not left:
            return -1
        bits, at = divmod(ticket, len(left))
        first = left[at]
        others = [index for index in left if index != first]
        second = others[bits % len(others)] if others else first
        return second if scores[second] < scores[first] else first
