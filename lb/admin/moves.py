"""Tunnels that are moved from server to server, as after one was added: which, how many, and who is told.

A tunnel can't be carried to another server: its client is asked to come again. So no more are asked than it
takes, they are asked over a time, and workers send those who come again to where they should go.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aiohttp import web

from lb.admin import requests
from lb.admin.answers import json
from lb.admin.auth import caller
from lb.admin.problems import Refused
from lb.admin.requests import Query
from lb.admin.tunnels import check_close
from lb.admin.views import Moved, TunnelMove
from lb.control.control import Control, Unanswered
from lb.control.figures import Figures
from lb.control.serverstate import standing
from workers.contract.messages import MoveTunnels, TunnelFilter
from workers.contract.snapshot import PoolSpec

# Seconds after the last Close frame in which clients may still come again.
LINGER: Final = 60.0


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to `weights` that add up to `total`, by the largest remainders."""
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    exact = [total * weight / whole for weight in weights]
    found = [math.floor(share) for share in exact]
    by_rest = sorted(range(len(weights)), key=lambda index: found[index] - exact[index])
    for index in by_rest[: total - sum(found)]:
        found[index] += 1
    return found


def surplus(counts: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many tunnels each server has more than its share by weight; negative: how many fewer."""
    shares = apportion(sum(counts), weights)
    return [count - share for count, share in zip(counts, shares, strict=True)]


class _Pool(NamedTuple):
    """A pool at one moment: for each server its tunnels by worker slot, and its weight for new sessions."""

    spec: PoolSpec
    tunnels: tuple[Mapping[int, int], ...]
    weights: tuple[float, ...]

    def count(self, index: int) -> int:
        """The tunnels of one server."""
        return sum(self.tunnels[index].values())

    def place(self, name: str) -> int:
        """The index of the server `name`."""
        for index, server in enumerate(self.spec.servers):
            if server.name == name:
                return index
        raise Refused(422, f"the pool {self.spec.name} has no server {name}")

    def to_move(self, asked: TunnelMove) -> dict[int, int]:
        """How many tunnels are to move from which server, by index. Raises `Refused`."""
        target = self.place(asked.to) if asked.to else -1
        source = self.place(asked.server) if asked.server else -1
        if target >= 0 and target == source:
            raise Refused(422, "server and to are the same server")
        if target >= 0 and not self.weights[target]:
            raise Refused(422, f"{asked.to} gets no new sessions now, so nothing can be moved there")
        if not any(weight for index, weight in enumerate(self.weights) if index != source):
            raise Refused(422, f"no other server of the pool {self.spec.name} gets new sessions now")
        counts = [self.count(index) for index in range(len(self.weights))]
        for index, server in enumerate(self.spec.servers):
            if not (self.weights[index] or server.backup or index == source):
                counts[index] = 0  # whoever is taken out or down is left alone, unless it is named
        extra = surplus(counts, self.weights)
        there = [max(0, number) for number in extra]
        if source >= 0:
            there = [number if index == source else 0 for index, number in enumerate(there)]
        total = sum(there)
        if target >= 0:
            total = min(total, max(0, -extra[target]))
        if asked.count is not None:
            total = asked.count
            if total > sum(there):  # more than makes them even
                there = [
                    0 if index == target or source not in (-1, index) else count
                    for index, count in enumerate(counts)
                ]
                total = min(total, sum(there))
        return {index: number for index, number in enumerate(apportion(total, there)) if number}


class Moves:
    """The route."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def move(self, request: web.Request) -> web.Response:
        """Asks as many clients as it takes to come again."""
        requests.query(request, Query)
        asked = await requests.body(request, TunnelMove)
        pool = self._look(asked)
        drain = self._control.snapshot.drain
        code = drain.close_code if asked.code is None else asked.code
        check_close(code, asked.reason)
        spread = drain.spread if asked.spread is None else asked.spread
        wanted = pool.to_move(asked)
        orders = self._orders(pool, asked, wanted, code, spread)
        answers = await asyncio.gather(*(self._tell(slot, order) for slot, order in orders))
        moved = _moved(orders, answers)
        self._say(caller(request), asked.pool, moved, spread, asked.to)
        return json(moved)

    def _look(self, asked: TunnelMove) -> _Pool:
        snapshot = self._control.snapshot
        spec = next((pool for pool in snapshot.pools if pool.name == asked.pool), None)
        if spec is None:
            raise Refused(422, f"there is no pool {asked.pool}; /api/v1/pools lists them")
        by_key = spec.sticky is not None and spec.sticky.kind != "cookie"
        if by_key or (spec.sticky is None and spec.balance == "hash"):
            raise Refused(
                422,
                f"clients of the pool {spec.name} go to the server that their key says, so they would come"
                " back to where they were; to close tunnels, use /api/v1/tunnels/close",
            )
        figures = Figures(self._control.board, snapshot)
        seen = standing(self._control.states, spec, time.monotonic()).servers
        weights = [one.weight for one in seen]
        first = [0.0 if server.backup else weights[index] for index, server in enumerate(spec.servers)]
        return _Pool(
            spec,
            tuple(figures.tunnels_by_worker(server) for server in spec.servers),
            tuple(first if any(first) else weights),  # backups have no share while others serve
        )

    def _orders(
        self, pool: _Pool, asked: TunnelMove, wanted: Mapping[int, int], code: int, spread: float
    ) -> list[tuple[int, MoveTunnels]]:
        """What to tell which worker: each a part of the tunnels in proportion to what it has, and all of them
        what becomes of those who come again, since they may come to any worker."""
        slots = sorted({worker.slot for worker in self._control.status.workers if worker.state != "starting"})
        target = next((i for i, server in enumerate(pool.spec.servers) if server.name == asked.to), -1)
        aim = pool.count(target) + sum(wanted.values()) if target >= 0 else 0
        until = time.monotonic() + spread + LINGER
        orders = []
        for index, number in wanted.items():
            there = pool.tunnels[index]
            shares = apportion(number, [there.get(slot, 0) for slot in slots])
            name = pool.spec.servers[index].name
            for slot, share in zip(slots, shares, strict=True):
                order = MoveTunnels(
                    request=0, where=TunnelFilter(pool=pool.spec.name, server=name), count=share, code=code,
                    spread=spread, until=until, pool=pool.spec.name,
                    total=number, target=asked.to, aim=aim, reason=asked.reason,
                )  # fmt: skip
                orders.append((slot, order))
        return orders

    async def _tell(self, slot: int, order: MoveTunnels) -> int | None:
        try:
            return (await self._control.close_tunnels(slot, order)).count
        except Unanswered as error:
            self._control.log.warning("tunnels not moved", worker=slot, error=error)
            return None

    def _say(self, by: str, pool: str, moved: Moved, spread: float, to: str) -> None:
        where = f" to {to}" if to else ""
        text = f"{moved.count} tunnels of {pool} are asked to move{where} within {spread:g}s, by {by}"
        fields: dict[str, str | int | float]
        fields = {"by": by, "count": moved.count, "pool": pool, "spread": spread, "to": to}
        self._control.log.info("tunnels asked to move", **fields)
        self._control.events.add("tunnels-closed", text, **fields)


def _moved(orders: Sequence[tuple[int, MoveTunnels]], answers: Sequence[int | None]) -> Moved:
    servers: dict[str, int] = {}
    missing = set()
    for (slot, order), count in zip(orders, answers, strict=True):
        if count is None:
            missing.add(slot)
        elif count:
            servers[order.where.server] = servers.get(order.where.server, 0) + count
    return Moved(count=sum(servers.values()), servers=servers, missing=tuple(sorted(missing)))
