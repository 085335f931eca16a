"""Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018).

A key goes to its server on the ring, unless that one has more than 1.25 times its share of what is in
flight already (and more than `FLOOR`); then to the next one on the ring that has room. So a hot key can't
drown a server, and keys stay where they were as long as the load is even.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import mul
from typing import Final

from workers.contract.snapshot import ServerSpec
from workers.core.balance.ring import Ring

BOUND: Final = 1.25
# A server with fewer exchanges has room whatever the others have: with next to nothing in flight the bound
# would part equal keys for no gain, the more so as the other workers' figures are up to 100 ms old.
FLOOR: Final = 8
# A whole number is at most the bound rounded up where it is less than the bound and one; what is a
# little less than one keeps the rounding errors of the scores out.
_ROUND_UP: Final = 1 - 1e-6


class BoundedHash:
    """The ring, and each server's part of the whole weight."""

    __slots__ = ("_common_weight", "_parts", "_ring", "_usable", "_weights")

    def __init__(self, servers: Sequence[ServerSpec], usable: Sequence[int]) -> None:
        self._ring = Ring(servers, usable)
        self._usable = len(usable)
        # 0 for those that are not usable, so that one product leaves them out.
        weights = [0] * len(servers)
        for index in usable:
            weights[index] = servers[index].weight
        total = sum(weights)
        self._weights = weights
        # Where all are usable and weigh the same, a plain sum does, at a sixth of the cost.
        self._common_weight = weights[0] if len(set(weights)) == 1 else 0
        self._parts = [BOUND * weight / total for weight in weights] if total else weights

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """See `Policy.pick`; `ticket` is the key's hash."""
        index = self._ring.owner(ticket)
        if excluded or index < 0:
            return self._pick_next(ticket, scores, excluded)
        weights = self._weights
        load = scores[index] * weights[index]  # active + 1: with the request that is being placed
        if load <= FLOOR or load < self._placed(scores) * self._parts[index] + _ROUND_UP:
            return index
        return self._pick_next(ticket, scores, excluded)

    def _placed(self, scores: Sequence[float]) -> float:
        """Requests in flight on the usable servers, and the one that is being placed."""
        if self._common_weight:
            return sum(scores) * self._common_weight - self._usable + 1
        total: float = sum(map(mul, scores, self._weights))
        return total - self._usable + 1

    def _pick_next(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        weights = self._weights
        placed = self._placed(scores)
        full = -1
        for index in self._ring.successors(ticket):
            if index in excluded or index == full:
                continue
            load = scores[index] * weights[index]
            if load <= FLOOR or load < placed * self._parts[index] + _ROUND_UP:
                return index
            if full < 0:
                full = index
        # Everything left is full, which only exclusion can bring about: the key's own server then.
        return full
