"""Weighted round-robin, as smooth as nginx's: a heavy server's turns lie apart, not in a row."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from workers.contract.snapshot import ServerSpec
from workers.core.balance.weights import shares


class RoundRobin:
    """One turn of the wheel, laid out when it is built; the ticket is the place on it."""

    __slots__ = ("_length", "_turns")

    def __init__(self, servers: Sequence[ServerSpec], usable: Sequence[int]) -> None:
        self._turns = tuple(smooth(usable, [servers[index].weight for index in usable]))
        self._length = len(self._turns)

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """See `Policy.pick`; `ticket` counts the requests, `scores` are not looked at."""
        if not self._length:
            return -1
        at = ticket % self._length
        index = self._turns[at]
        if not excluded or index not in excluded:
            return index
        for index in self._turns[at:] + self._turns[:at]:
            if index not in excluded:
                return index
        return -1


def smooth(members: Sequence[int], weights: Sequence[int]) -> list[int]:
    """`members` in turns by weight, spread evenly: nginx's smooth weighted round-robin, but over groups
    of equal weight, whose members take turns within. With few distinct weights that needs few steps, even
    for a thousand servers."""
    if not members:
        return []
    groups: dict[int, list[int]] = {}
    for member, share in zip(members, shares(weights), strict=True):
        groups.setdefault(share, []).append(member)
    strength = [share * len(group) for share, group in groups.items()]
    queues = list(groups.values())
    credit = [0] * len(queues)
    taken = [0] * len(queues)
    turns: list[int] = []
    total = sum(strength)
    for _ in range(total):
        credit = [have + gain for have, gain in zip(credit, strength, strict=True)]
        chosen = credit.index(max(credit))
        credit[chosen] -= total
        queue = queues[chosen]
        turns.append(queue[taken[chosen] % len(queue)])
        taken[chosen] += 1
    return turns
