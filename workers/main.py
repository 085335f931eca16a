"""What the launcher calls in a forked child: the event loop of one worker."""

from __future__ import annotations

import gc
import socket
from typing import Final

from workers.contract.bells import Bells
from workers.contract.ledger import Ledger
from workers.contract.scoreboard import Scoreboard
from workers.io.worker import Worker

COLLECT: Final = (50_000, 50, 50)


def run(slot: int, channel: socket.socket, board: Scoreboard, bells: Bells, ledger: Ledger) -> int:
    """Serves until the master says stop, or is gone; returns the exit status.

    The launcher has reset the signals, closed foreign descriptors and dropped privileges before.
    """
    # Connections leave no circles behind, so collecting often finds nothing and costs pauses.
    gc.set_threshold(*COLLECT)
    worker = Worker(slot, channel, board, bells, ledger)
    try:
        worker.start()
        worker.loop.run()
    finally:
        worker.close()
    return 0
