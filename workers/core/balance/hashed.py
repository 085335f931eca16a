"""Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018).

A key goes to its server on the ring, unless that one has more than 1.25 times its share of what is in
flight already; then to the next one on the ring that has room. So a hot key can't drown a server, and
keys stay where they were as long as the load is even.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from operator import mul
from typing import Final

from workers.contract.snapshot import ServerSpec
from workers.core.balance.ring import Ring

BOUND: Final = 1.25


class BoundedHash:
    """The ring, and each server's part of the whole weight."""

    __slots__ = ("_parts", "_ring", "_usable", "_weights")

    def __init__(self, servers: Sequence[ServerSpec], usable: Sequence[int]) -> None:
        self._ring = Ring(servers, usable)
        self._usable = len(usable)
        # 0 for those that are not usable, so that one product leaves them out.
        weights = [0] * len(servers)
        for index in usable:
            weights[index] = servers[index].weight
        total = sum(weights)
        self._weights = weights
        self._parts = [BOUND * weight / total for weight in weights] if total else weights

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """See `Policy.pick`; `ticket` is the key's hash."""
        index = self._ring.owner(ticket)
        if index < 0:
            return -1
        # An idle server has room whatever the others do; that spares the sum.
        if not excluded and scores[index] * self._weights[index] <= 1:
            return index
        return self._pick_with_room(ticket, scores, excluded)

    def _pick_with_room(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        weights = self._weights
        # score * weight = active + 1; one more for the request that is being placed.
        total = sum(map(mul, scores, weights)) - self._usable + 1
        fallback = -1
        for index in self._ring.successors(ticket):
            if index in excluded:
                continue
            if scores[index] * weights[index] <= math.ceil(total * self._parts[index]) + 1e-6:
                return index
            if fallback < 0:
                fallback = index
        return fallback
