"""What the master keeps from one configuration to the next: scoreboard rows and keys of sticky cookies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from workers.contract.scoreboard import Capacity

_Name = TypeVar("_Name")
_NO_KEYS: Final[Mapping[str, bytes]] = MappingProxyType({})
_NO_FILES: Final[Mapping[str, str]] = MappingProxyType({})

InUse = Callable[[str, int], bool]


class Row(NamedTuple):
    """A scoreboard row. `owner` is the generation that gave it to the name that has it: cells that another
    one left behind are not its own."""

    slot: int
    owner: int


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """The scoreboard rows of one kind. `taken` are those of the configuration; `left` are rows whose
    owner is gone, which come back to it when it does, unless somebody else needed them."""

    taken: Mapping[Any, Row] = MappingProxyType({})
    left: Mapping[Any, Row] = MappingProxyType({})


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable: `compile` returns the next one, and an aborted reload drops it. `sticky_keys` holds,
    by pool, the keys that are in no file; `servers_files`, by pool, the file with servers that
    was compiled last."""

    capacity: Capacity = Capacity()
    listeners: Rows = Rows()
    routes: Rows = Rows()
    pools: Rows = Rows()
    servers: Rows = Rows()
    sticky_keys: Mapping[str, bytes] = _NO_KEYS
    servers_files: Mapping[str, str] = _NO_FILES


def assign(
    rows: Rows, names: Iterable[_Name], capacity: int, in_use: Callable[[int], bool], generation: int
) -> tuple[dict[_Name, Row], Rows, list[_Name]]:
    """Gives every name a row: (row of each, the next `Rows`, names that found none).

    A name keeps its row. A row that was freed is given away only when `in_use` says that its cells are
    back to zero, and never in the step that frees it, since the old configuration serves until the
    commit. What is given away is owned by `generation` from then on.
    """
    wanted = list(names)
    assigned = {name: row for name in wanted if (row := _own(rows, name)) is not None and row.slot < capacity}
    occupied = {row.slot for row in (*assigned.values(), *rows.taken.values())}
    without = [name for name in wanted if name not in assigned]
    free = (slot for slot in _by_preference(rows, capacity) if slot not in occupied and not in_use(slot))
    for name, slot in zip(without, free, strict=False):
        assigned[name] = Row(slot, generation)
    without = [name for name in without if name not in assigned]
    given = {row.slot for row in assigned.values()}
    left = {name: row for name, row in {**rows.left, **rows.taken}.items() if row.slot not in given}
    return assigned, Rows(taken=MappingProxyType(assigned), left=MappingProxyType(left)), without


def retired(before: Rows, after: Rows, in_use: Callable[[int], bool]) -> dict[Any, Row]:
    """The rows that a configuration with `after` has left, by their old names: those that it frees, since
    the one with `before` serves until the commit, and those on which something is alive still."""
    return {
        name: row for name, row in after.left.items() if before.taken.get(name) == row or in_use(row.slot)
    }


def _own(rows: Rows, name: object) -> Row | None:
    row = rows.taken.get(name)
    return rows.left.get(name) if row is None else row


def _by_preference(rows: Rows, capacity: int) -> Iterable[int]:
    """Rows that never had an owner first: those that had one may be asked for again."""
    had = {row.slot for row in rows.left.values()}
    yield from (slot for slot in range(capacity) if slot not in had)
    yield from (row.slot for row in rows.left.values() if row.slot < capacity)
