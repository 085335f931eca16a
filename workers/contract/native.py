"""The C module `workers.contract._native`, or `None` where it was not compiled: then its twins in Python run.

Who uses it binds once, when it is imported, and says of which type what it binds is."""

from __future__ import annotations

import importlib
from typing import Any, Final, cast


def _load() -> Any:
    try:
        return importlib.import_module("workers.contract._native")
    except ImportError:
        return None


native: Final[Any] = _load()


def quick(cells: memoryview) -> memoryview:
    """`cells`, a row of format "q", with a short way to single ones: reading or writing one costs a third of
    what it costs in a memoryview."""
    return cells if native is None else cast(memoryview, native.Cells(cells))
