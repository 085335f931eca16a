"""What the launcher calls in the forked control process."""

from __future__ import annotations

import asyncio
import socket

from lb.control.process import ControlProcess
from workers.contract.bells import Bells
from workers.contract.scoreboard import Scoreboard


def run(
    channel: socket.socket,
    board: Scoreboard,
    bells: Bells,
    metrics: socket.socket | None,
    admin: socket.socket | None,
) -> int:
    """Works until the master says leave, or is gone; returns the exit status. `metrics` and `admin` are
    listening sockets.

    The launcher has reset the signals, closed foreign descriptors and dropped privileges before.
    """

    async def work() -> int:
        return await ControlProcess(channel, board, bells, metrics, admin).run()

    return asyncio.run(work())
