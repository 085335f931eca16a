"""The C module `workers.contract._native`, or `None` where it was not compiled: then its twins in Python run.

Who uses it binds once, when it is imported, and says of which type what it binds is."""

from __future__ import annotations

import importlib
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Final, cast


def _load() -> Any:
    try:
        return importlib.import_module("workers.contract._native")
    except ModuleNotFoundError:  # one that is there and can't be loaded is an error
        return None


native: Final[Any] = _load()


def quick(cells: memoryview) -> memoryview:
    """`cells`, a row of format "q", with a short way to single ones: a memoryview unpacks and packs each by
    its format."""
    return cells if native is None else cast(memoryview, native.Cells(cells))


def _add(cells: memoryview, amount: int, *indexes: int) -> None:
    for index in indexes:
        cells[index] += amount


def _observe(cells: memoryview, at_sum: int, at_buckets: int, bounds: tuple[int, ...], value: int) -> None:
    cells[at_sum] += value
    cells[at_buckets + bisect_left(bounds, value)] += 1


# Adds an amount to each of some cells of a `quick` row.
add: Final[Callable[..., None]] = _add if native is None else native.add
# Takes a value into a histogram: the indexes of its sum and of its first bucket, the upper bounds of all
# buckets but the last, and the value, in the unit of the bounds.
observe: Final[Callable[[memoryview, int, int, tuple[int, ...], int], None]] = (
    _observe if native is None else native.observe
)
