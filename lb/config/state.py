"""What the master keeps from one configuration to the next: scoreboard rows and keys of sticky cookies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec

from workers.contract.scoreboard import Capacity

_Name = TypeVar("_Name")
_EMPTY: Final[Mapping[str, bytes]] = MappingProxyType({})

InUse = Callable[[str, int], bool]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """The scoreboard rows of one kind. `taken` are those of the configuration; `left` are rows whose
    owner is gone, which come back to it when it does, unless somebody else needed them."""

    taken: Mapping[Any, int] = MappingProxyType({})
    left: Mapping[Any, int] = MappingProxyType({})


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable: `compile` returns the next one, and an aborted reload drops it. `sticky_keys` holds,
    by pool, the keys that are in no file."""

    capacity: Capacity = Capacity()
    listeners: Rows = Rows()
    routes: Rows = Rows()
    servers: Rows = Rows()
    sticky_keys: Mapping[str, bytes] = _EMPTY


def assign(
    rows: Rows, names: Iterable[_Name], capacity: int, in_use: Callable[[int], bool]
) -> tuple[dict[_Name, int], Rows, list[_Name]]:
    """Gives every name a row: (row of each, the next `Rows`, names that found none).

    A name keeps its row. A row that was freed is given away only when `in_use` says that its cells are
    back to zero, and never in the step that frees it, since the old configuration serves until the
    commit.
    """
    wanted = list(names)
    assigned = {name: row for name in wanted if (row := _own(rows, name)) is not None and row < capacity}
    occupied = {*assigned.values(), *rows.taken.values()}
    without = [name for name in wanted if name not in assigned]
    free = (row for row in _by_preference(rows, capacity) if row not in occupied and not in_use(row))
    for name, row in zip(list(without), free, strict=False):
        assigned[name] = row
        without.remove(name)
    given = set(assigned.values())
    left = {name: row for name, row in {**rows.left, **rows.taken}.items() if row not in given}
    return assigned, Rows(taken=MappingProxyType(assigned), left=MappingProxyType(left)), without


def _own(rows: Rows, name: object) -> int | None:
    row = rows.taken.get(name)
    return rows.left.get(name) if row is None else row


def _by_preference(rows: Rows, capacity: int) -> Iterable[int]:
    """Rows that never had an owner first: those that had one may be asked for again."""
    had = set(rows.left.values())
    yield from (row for row in range(capacity) if row not in had)
    yield from (row for row in rows.left.values() if row < capacity)
