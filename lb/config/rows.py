"""Which scoreboard rows the parts of a configuration have."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from lb.config.pool import Server
from lb.config.positions import Path
from lb.config.problems import Report
from lb.config.schema import Config
from lb.config.state import InUse, Row, Rows, State, assign

_MOST_REFUSED: Final = 20  # that are named


class AllRows(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of every kind; those of servers by pool and name."""

    listeners: Rows = Rows()
    routes: Rows = Rows()
    pools: Rows = Rows()
    servers: Rows = Rows()


def row_of(rows: Rows, name: object) -> Row:
    """The row of `name`; one without meaning where it found none, which was reported."""
    return rows.taken.get(name, Row(0, 0))


def assign_rows(
    config: Config,
    servers: Mapping[str, tuple[Server, ...]],
    state: State,
    in_use: InUse,
    generation: int,
    errors: Report,
) -> AllRows:
    """Gives rows to the listeners, routes and pools of `config` and to `servers`, by pool; what is beyond the
    capacity is reported."""

    def give(kind: str, before: Rows, names: Sequence[Any], capacity: int) -> tuple[Rows, list[Any]]:
        _, rows, without = assign(before, names, capacity, lambda row: in_use(kind, row), generation)
        return rows, without

    capacity = state.capacity
    names = [listener.name for listener in config.listen]
    listeners, without = give("listener", state.listeners, names, capacity.listeners)
    _refuse(errors, "listeners", capacity.listeners, [("listen", name) for name in without])
    names = [route.name for route in config.route]
    routes, without = give("route", state.routes, names, capacity.routes)
    places = {name: index for index, name in enumerate(names)}
    _refuse(errors, "routes", capacity.routes, [("route", places[name]) for name in without])
    alive = _alive(state, in_use)
    _, pools, without = assign(
        state.pools, [pool.name for pool in config.pool], capacity.pools, alive.__contains__, generation
    )
    _refuse(errors, "pools", capacity.pools, [("pool", name) for name in without])
    pairs = [(pool, server.label) for pool, members in servers.items() for server in members]
    of_servers, without = give("server", state.servers, pairs, capacity.servers)
    at = [("pool", pool, "servers") for pool, _ in without]
    _refuse(errors, "servers", capacity.servers, at, [name for _, name in without])
    return AllRows(listeners=listeners, routes=routes, pools=pools, servers=of_servers)


def _alive(state: State, in_use: InUse) -> set[int]:
    """The rows of pools that are in use. A pool's is, as long as one of its servers' is: what goes on there
    is counted for the pool, too."""
    servers = {pool for (pool, _), row in state.servers.left.items() if in_use("server", row.slot)}
    return {row.slot for name, row in state.pools.left.items() if name in servers or in_use("pool", row.slot)}


def _refuse(
    errors: Report, what: str, capacity: int, places: Sequence[Path], names: Sequence[str] = ()
) -> None:
    more = len(places) - _MOST_REFUSED
    if more > 0:
        errors.add(places[-1][:1], f"{more} more {what} are beyond the capacity of {capacity}")
    for place, name in itertools.islice(itertools.zip_longest(places, names), _MOST_REFUSED):
        message = f"is beyond the capacity of {capacity} {what} (those just removed still count)"
        errors.add(place, message, value=name)
