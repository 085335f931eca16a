"""Who wants to know what happens to workers."""

from __future__ import annotations

from typing import Protocol

from lb.master.worker_process import WorkerProcess
from workers.contract.messages import Committed, Given, Prepared, Reclaimed, Refused, Tunnels, TunnelsClosed


class Observer(Protocol):
    """Who decides by what happens to workers."""

    def serving(self, worker: WorkerProcess) -> None:
        """A fresh worker serves its first configuration."""

    def answered(self, worker: WorkerProcess, message: Prepared | Refused | Committed) -> None:
        """A worker answers about a configuration that is not its first."""

    def failed(self, worker: WorkerProcess, why: str) -> None:
        """A worker died or refused its first configuration. It is replaced unless the fleet is closed."""


class Witness(Protocol):
    """Who tells others what happens to workers. Nothing here may fail."""

    def configured(self) -> None:
        """Another deployment is served from now on."""

    def changed(self) -> None:
        """A worker was started, or stands elsewhere."""

    def served(self, worker: WorkerProcess) -> None:
        """A fresh worker serves."""

    def ended(self, worker: WorkerProcess, cause: str, expected: bool) -> None:
        """A worker's process is gone."""

    def reclaimed(self, worker: WorkerProcess, message: Reclaimed) -> None:
        """A worker has taken over what its dead predecessor left."""

    def moved(self, worker: WorkerProcess, count: int, reason: str) -> None:
        """`count` tunnels went from `worker` to its siblings."""

    def told(self, worker: WorkerProcess, message: Tunnels | TunnelsClosed) -> None:
        """A worker answers what it was asked about its tunnels."""


class Movers(Protocol):
    """Who moves tunnels between workers."""

    def leaving(self, worker: WorkerProcess) -> None:
        """`worker` was told to leave and waits for somebody who takes its tunnels."""

    def given(self, worker: WorkerProcess, message: Given) -> None:
        """`worker` says that a hand-over is over."""

    def ended(self, worker: WorkerProcess) -> None:
        """`worker` is gone."""
