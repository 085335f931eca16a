"""Clients that were asked to move, when they come again: not to the server that they come from.

Only a sticky cookie says where a client was, so only such handshakes are led elsewhere; without one the
pool's balance decides anyway. What the operator moves (`MoveTunnels`) is bounded in time and in number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from workers.contract.cells import ServerCell
from workers.contract.messages import MoveTunnels

if TYPE_CHECKING:
    from workers.io.pool import Pool
    from workers.io.worker import Worker

_TUNNELS: Final = int(ServerCell.TUNNELS)
_MOST: Final = 256  # moves at a time; the oldest is forgotten


class _Move:
    """One `MoveTunnels`. `left` is how many more handshakes it leads elsewhere."""

    __slots__ = ("aim", "left", "pool", "server", "target", "until")

    def __init__(self, order: MoveTunnels) -> None:
        self.pool = order.pool
        self.server = order.where.server
        self.target = order.target
        self.until = order.until
        self.left = order.total
        self.aim = order.aim


class Returns:
    """What one worker knows of clients that are to move."""

    __slots__ = ("_moves", "_worker")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._moves: list[_Move] = []

    def expect(self, order: MoveTunnels) -> None:
        """Clients of the server in `order` will come again."""
        self._moves = [*self._moves, _Move(order)][-_MOST:]

    def lead(self, pool: Pool, stuck: int, key: int | None) -> int:
        """Where a WebSocket handshake goes whose cookie names server `stuck`, by index in `pool`: -1 where
        that server is to be emptied, so that the balance chooses; another server for a client that is being
        moved; `stuck` for all others. `key` is what the pool's balance hashes."""
        spec = pool.servers[stuck].spec
        if self._worker.pacer.is_emptied(spec.slot, spec.owner):
            return -1
        if not self._moves:
            return stuck
        now = self._worker.now
        self._moves = moves = [move for move in self._moves if move.left > 0 and move.until > now]
        here = [move for move in moves if move.pool == pool.spec.name]
        for move in here:
            if move.server == spec.name:
                index = self._other(pool, move, {one.server for one in here}, key)
                if index >= 0:
                    move.left -= 1
                    return index
        return stuck

    def _other(self, pool: Pool, move: _Move, left: set[str], key: int | None) -> int:
        """The server that `move` prefers, as long as it has not its share; else one of those that nobody is
        asked to leave. -1 where there is none."""
        for index in pool.usable:
            server = pool.servers[index]
            if server.spec.name == move.target and not server.full and self._tunnels(server.base) < move.aim:
                return index
        excluded = tuple(index for index, server in enumerate(pool.servers) if server.spec.name in left)
        return pool.choose(key, None, pool.with_full(excluded))

    def _tunnels(self, base: int) -> int:
        """The tunnels of all workers on the server whose cells begin at `base`."""
        worker = self._worker
        total: int = worker.slab.cells[base + _TUNNELS]
        return total + sum(cells[base + _TUNNELS] for cells in worker.sibling_cells())
