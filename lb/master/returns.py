"""Where clients that were asked to come again are to go: told to the workers that come meanwhile, too."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import msgspec

from lb.master.worker_process import WorkerProcess
from workers.contract.messages import MoveTunnels

MAX_KEPT: Final = 64  # the oldest is forgotten


class Returns:
    """The moves of tunnels between servers whose time is not over."""

    def __init__(self) -> None:
        self._orders: dict[MoveTunnels, None] = {}

    def note(self, order: MoveTunnels) -> None:
        """A worker is told `order`; its siblings are told the same, but for how many each is to close."""
        self.restore((msgspec.structs.replace(order, request=0, count=0),))

    def restore(self, orders: Iterable[MoveTunnels]) -> None:
        """Takes in what was noted, also by the master before an upgrade."""
        self._orders.update(dict.fromkeys(orders))
        for order in list(self._orders)[:-MAX_KEPT]:
            del self._orders[order]

    def current(self) -> tuple[MoveTunnels, ...]:
        """Those whose time is not over."""
        now = time.monotonic()
        self._orders = {order: None for order in self._orders if order.until > now}
        return tuple(self._orders)

    def tell(self, worker: WorkerProcess) -> None:
        """`worker` is fresh. (Nobody waits for its answers.)"""
        for order in self.current():
            worker.send(order)
