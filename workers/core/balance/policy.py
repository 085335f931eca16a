"""What a balancing policy is, and how the one that a pool asks for is built."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol

from workers.contract.snapshot import PoolSpec, ServerSpec
from workers.core.balance.hashed import BoundedHash
from workers.core.balance.least_conn import LeastConn
from workers.core.balance.random_weighted import RandomWeighted
from workers.core.balance.round_robin import RoundRobin
from workers.core.balance.two_choices import TwoChoices


class Policy(Protocol):
    """Chooses servers, without side effects. Built anew when a server goes down or comes back."""

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """The index in `pool.servers` to use, or -1 when none is left.

        `ticket` is a counter for round-robin, the key's `hash_key` for hash, and at least 32 random bits
        for the others. `scores[i]` is `(active + 1) / weight` of server i over all workers. `excluded`
        holds what was tried already: for the next candidate, call again with a longer one.
        """


_Build = Callable[[Sequence[ServerSpec], Sequence[int]], Policy]

_POLICIES: Final[Mapping[str, _Build]] = {
    "round-robin": RoundRobin,
    "least-conn": LeastConn,
    "p2c": TwoChoices,
    "random": RandomWeighted,
    "hash": BoundedHash,
}


def build(pool: PoolSpec, usable: Sequence[int]) -> Policy:
    """The policy of `pool` over the servers that may be chosen now: `usable`, indexes in `pool.servers`.

    Backups are chosen only where no primary is left: none usable, or all excluded. A server whose weight
    is not positive is never chosen.
    """
    policy = _POLICIES[pool.balance]
    primaries, backups = split(pool, usable)
    if not primaries:
        return policy(pool.servers, backups)
    if not backups:
        return policy(pool.servers, primaries)
    return WithBackups(policy(pool.servers, primaries), policy(pool.servers, backups))


def split(pool: PoolSpec, usable: Sequence[int]) -> tuple[list[int], list[int]]:
    """The usable primaries and the usable backups of `pool`, both in the order of the file."""
    chosen = [index for index in sorted(usable) if pool.servers[index].weight > 0]
    backups = [index for index in chosen if pool.servers[index].backup]
    return [index for index in chosen if not pool.servers[index].backup], backups


class WithBackups:
    """The primaries' policy, and behind it the backups' one."""

    __slots__ = ("_backups", "_primaries")

    def __init__(self, primaries: Policy, backups: Policy) -> None:
        self._primaries = primaries
        self._backups = backups

    def pick(self, ticket: int, scores: Sequence[float], excluded: Collection[int]) -> int:
        """See `Policy.pick`."""
        index = self._primaries.pick(ticket, scores, excluded)
        return index if index >= 0 else self._backups.pick(ticket, scores, excluded)
