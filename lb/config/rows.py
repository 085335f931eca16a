"""Which scoreboard rows the parts of a configuration have."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lb.config.pool import Server
from lb.config.positions import Path
from lb.config.problems import Report
from lb.config.schema import Config
from lb.config.state import InUse, Row, Rows, State, assign


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
    pools, without = give("pool", state.pools, [pool.name for pool in config.pool], capacity.pools)
    _refuse(errors, "pools", capacity.pools, [("pool", name) for name in without])
    pairs = [(pool, server.label) for pool, members in servers.items() for server in members]
    of_servers, without = give("server", state.servers, pairs, capacity.servers)
    at = [("pool", pool, "servers") for pool, _ in without]
    _refuse(errors, "servers", capacity.servers, at, [name for _, name in without])
    return AllRows(listeners=listeners, routes=routes, pools=pools, servers=of_servers)


def _refuse(
    errors: Report, what: str, capacity: int, places: Sequence[Path], names: Sequence[str] = ()
) -> None:
    for place, name in itertools.zip_longest(places, names):
        message = f"is beyond the capacity of {capacity} {what} (those just removed still count)"
        errors.add(place, message, value=name)
