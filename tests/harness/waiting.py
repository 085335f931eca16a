"""Waiting for a condition with a deadline: the only way in which the tests synchronise with processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

_INTERVAL = 0.02


def eventually(condition: Callable[[], Value], what: str, within: float = 30.0) -> Value:
    """The first true value of `condition`, asked again until `within` seconds have passed.

    Raises `AssertionError` with `what` and the last value when that never comes.
    """
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what} (last seen: {value!r})")
        time.sleep(_INTERVAL)


async def until(condition: Callable[[], Value], what: str, within: float = 10.0) -> Value:
    """As `eventually`, for tests that run in an event loop."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what} (last seen: {value!r})")
        await asyncio.sleep(0.002)
