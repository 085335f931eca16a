"""The pure rules of moving tunnels between workers: from whom, to whom, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Load(NamedTuple):
    """What a worker has: its tunnels, how many of them can be handed over, how many more it could take."""

    slot: int
    tunnels: int
    movable: int
    room: int


class Move(NamedTuple):
    """So many tunnels are to go from one slot to another."""

    giver: int
    taker: int
    tunnels: int


def rebalanced(loads: Sequence[Load], tunnels: int, percent: int, pace: int) -> Move | None:
    """The next move towards evenness, of `pace` tunnels at the most; `None` where none is worth it: no two
    workers differ by more than `tunnels`, and by more than `percent` of the average.

    It goes to the emptiest with room, from the fullest that can give. Half the difference goes, so the taker
    never ends above the giver, and nothing goes back and forth.
    """
    takers = [load for load in loads if load.room > 0]
    if not takers:
        return None
    taker = min(takers, key=lambda load: (load.tunnels, load.slot))
    enough = max(tunnels, percent * sum(load.tunnels for load in loads) / len(loads) / 100)
    for giver in sorted(loads, key=lambda load: (-load.tunnels, load.slot)):
        difference = giver.tunnels - taker.tunnels
        if difference <= enough:
            return None
        count = min(difference // 2, giver.movable, taker.room, pace)
        if count > 0:
            return Move(giver.slot, taker.slot, count)
    return None


def spread(count: int, takers: Sequence[Load]) -> dict[int, int]:
    """`count` tunnels divided among `takers` so that these end up as even as can be; less in all where they
    have no room for so many. By slot, those that get none left out."""
    low, high = 0, count + max((taker.tunnels for taker in takers), default=0)
    while low < high:  # the highest level that all can be filled up to
        level = (low + high + 1) // 2
        if sum(_lacks(taker, level) for taker in takers) <= count:
            low = level
        else:
            high = level - 1
    shares = {taker.slot: _lacks(taker, low) for taker in takers}
    left = count - sum(shares.values())
    for taker in takers:
        if left > 0 and _lacks(taker, low + 1) > shares[taker.slot]:
            shares[taker.slot] += 1
            left -= 1
    return {slot: share for slot, share in shares.items() if share > 0}


def _lacks(load: Load, level: int) -> int:
    """How many tunnels fill `load` up to `level`."""
    return min(load.room, max(0, level - load.tunnels))
