"""What the launcher calls in a forked child: the event loop of one worker."""

from __future__ import annotations

import gc
import socket
from typing import Final

from workers.contract.bells import Bells
from workers.contract.ledger import Ledger
from workers.contract.scoreboard import Scoreboard
from workers.io.worker import Worker

# Connections leave no circles behind, so collecting often finds nothing and costs pauses: 5,000 young objects
# take half a millisecond, the 50,000 of the next generation five. All are looked at where the heap has grown
# by a quarter: a microsecond for a tunnel.
COLLECT: Final = (5_000, 10, 50)


def run(slot: int, channel: socket.socket, board: Scoreboard, bells: Bells, ledger: Ledger) -> int:
    """Serves until the master says stop, or is gone; returns the exit status.

    The launcher has reset the signals, closed foreign descriptors and dropped privileges before.
    """
    gc.set_threshold(*COLLECT)
    worker = Worker(slot, channel, board, bells, ledger)
    try:
        worker.start()
        worker.loop.run()
    finally:
        worker.close()
    return 0
