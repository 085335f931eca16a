"""Memory that calls leave behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable


def lost_blocks(call: Callable[[], object], times: int) -> int:
    """By how many blocks of memory CPython holds more after `times` calls."""
    for _ in range(10):
        call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(times):
        call()
    gc.collect()
    return sys.getallocatedblocks() - before
