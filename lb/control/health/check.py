"""One check, whatever its type, within its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

from lb.control.health.finding import CheckFailed, Finding
from lb.control.health.http import check_http
from lb.control.health.target import Target
from lb.control.health.tcp import check_tcp
from lb.control.health.websocket import check_websocket
from workers.contract.cells import CheckResult

_CHECKS: Final[dict[str, Callable[[Target, AsyncExitStack], Awaitable[Finding]]]] = {
    "http": check_http,
    "tcp": check_tcp,
    "websocket": check_websocket,
}


async def check(target: Target, stack: AsyncExitStack) -> Finding:
    """Checks once, in at most `timeout` seconds, and says what came of it. To end the connection in order is
    left to `stack`, so that it takes nothing from the check's time. Raises `NotChecked`."""
    spec = target.spec
    try:
        async with asyncio.timeout(spec.timeout):
            return await _CHECKS[spec.type](target, stack)
    except TimeoutError:
        return Finding(CheckResult.TIMEOUT, f"not done within {spec.timeout:g}s: {target.stage}")
    except CheckFailed as failure:
        return failure.finding
