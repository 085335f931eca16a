"""A consistent ring: a server's keys are its own, whichever others come and go.

Each server stands at many points of a circle of 2^32; a key belongs to the next point. A server that
leaves gives its keys to those that follow it, and no other key moves. Where the points lie follows from
the servers' names and weights alone, so all workers, and all restarts, agree.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import compress
from typing import Final

from workers.contract.snapshot import PoolSpec, ServerSpec

POINTS: Final = 160  # of a server of average weight: shares differ by about 1/sqrt(160) = 8 %
MAX_POINTS: Final = 32_768  # of a whole ring, roughly; with more servers each has fewer
_PER_DIGEST: Final = 16
_MASK: Final = 0xFFFF_FFFF
_MIX: Final = 0x9E37_79B9_7F4A_7C15  # 2^64 by the golden ratio: Fibonacci hashing


def hash_key(data: bytes) -> int:
    """A 32-bit hash of `data`, the same in every process and after every restart.

    CRC-32 tells short keys apart but maps neighbours to patterns; the multiplication spreads these. A
    client that picks its key picks its server with any hash that has no secret.
    """
    return (zlib.crc32(data) * _MIX >> 24) & _MASK


class Ring:
    """The usable servers on the ring."""

    __slots__ = ("_owners", "_points")

    def __init__(self, servers: Sequence[ServerSpec], usable: Sequence[int]) -> None:
        points, owners = _layout(tuple((server.name, server.weight) for server in servers))
        if len(usable) < len(servers):
            # The layout of all is kept and thinned out, so that a flip is cheap.
            wanted = [False] * len(servers)
            for index in usable:
                wanted[index] = True
            kept = [wanted[owner] for owner in owners]
            points, owners = tuple(compress(points, kept)), tuple(compress(owners, kept))
        self._points = points
        self._owners = owners + owners[:1]  # beyond the last point the circle begins again

    def owner(self, key: int) -> int:
        """The server that `key` belongs to, or -1 on an empty ring."""
        return self._owners[bisect_left(self._points, key & _MASK)] if self._points else -1

    def successors(self, key: int) -> Iterator[int]:
        """The owners from `key` on, all around the ring; a server comes as often as it has points."""
        at = bisect_left(self._points, key & _MASK)
        owners = self._owners
        for place in range(at, len(self._points)):
            yield owners[place]
        for place in range(at):
            yield owners[place]

    def pick(self, key: int, excluded: Collection[int] = ()) -> int:
        """The first server from `key` on that is not excluded, or -1."""
        index = self.owner(key)
        if not excluded or index not in excluded:
            return index
        for index in self.successors(key):
            if index not in excluded:
                return index
        return -1


@lru_cache(maxsize=16)  # up to 2 MB each, for a ring of 1,500 servers
def _layout(servers: tuple[tuple[str, int], ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The points of all `servers` (name and weight) in order, and the index of the server at each."""
    count = len(servers)
    placed: list[int] = []
    for index, (points, (name, _)) in enumerate(zip(_counts(servers), servers, strict=True)):
        placed.extend(point * count + index for point in _points(name, points))
    placed.sort()
    return tuple(code // count for code in placed), tuple(code % count for code in placed)


def _counts(servers: Sequence[tuple[str, int]]) -> list[int]:
    """How many points each server has. The unit goes in powers of two, so that one server more or less
    seldom changes the others' numbers."""
    weights = [max(0, weight) for _, weight in servers]
    if not any(weights):
        return [0] * len(weights)
    points = float(POINTS)
    while points * len(weights) > MAX_POINTS:
        points /= 2
    unit = 1.0
    mean = sum(weights) / len(weights)
    while unit * 1.5 < mean:
        unit *= 2
    return [max(1, round(points * weight / unit)) if weight else 0 for weight in weights]


def _points(name: str, count: int) -> list[int]:
    points: list[int] = []
    for block in range(-(-count // _PER_DIGEST)):
        digest = blake2b(name.encode(), salt=block.to_bytes(16, "big")).digest()
        points.extend(struct.unpack(f">{_PER_DIGEST}I", digest))
    return points[:count]


class StickyRing:
    """The server of a sticky header, query parameter or address: consistent, without bounded load, and
    with the backups behind the primaries."""

    __slots__ = ("_backups", "_primaries")

    def __init__(self, pool: PoolSpec, usable: Sequence[int]) -> None:
        primaries = [index for index in usable if not pool.servers[index].backup]
        backups = [index for index in usable if pool.servers[index].backup]
        self._primaries = Ring(pool.servers, primaries)
        self._backups = Ring(pool.servers, backups)

    def pick(self, key: int, excluded: Collection[int] = ()) -> int:
        """The index in `pool.servers` for `key` (of `hash_key`), or -1 when none is left."""
        index = self._primaries.pick(key, excluded)
        return index if index >= 0 else self._backups.pick(key, excluded)
