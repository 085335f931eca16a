"""The TCP check: a connection, and where TLS is spoken a handshake; then it is closed."""

from __future__ import annotations

from contextlib import AsyncExitStack

from lb.control.health.finding import Finding
from lb.control.health.stream import Stream
from lb.control.health.target import Target
from workers.contract.cells import CheckResult


async def check_tcp(target: Target, stack: AsyncExitStack) -> Finding:
    """Checks once. Raises `CheckFailed` or `NotChecked`."""
    stream = await Stream.open(target)
    stack.push_async_callback(stream.hang_up)
    return Finding(CheckResult.OK, "TLS established" if target.tls else "connected")
