"""What a master stands on: made at the start, or left by the predecessor in an upgrade."""

from __future__ import annotations

import pathlib
import time
from typing import NamedTuple

from lb.master import spawn
from lb.master.failures import StartError, reason
from lb.master.holdings import Holdings
from lb.master.plan import Plan
from lb.master.spawn import Identity, Programs, Spawned
from workers.contract.bells import Bells
from workers.contract.ledger import Ledger
from workers.contract.scoreboard import Scoreboard


class Ground(NamedTuple):
    """The memory that all processes share, and what the instance holds. `started` is monotonic."""

    started: float
    board: Scoreboard
    bells: Bells
    ledger: Ledger
    holdings: Holdings


def fresh(path: pathlib.Path, first: Plan, open_files: int) -> Ground:
    """That of the configuration `first`, read from `path`; a worker has two of its `open_files` per tunnel.
    Raises `StartError`; nothing is held then."""
    try:
        board = Scoreboard.create()
        bells, ledger = Bells.create(), Ledger.create(board.capacity.workers, open_files // 2)
    except OSError as error:
        raise StartError(f"no memory for the scoreboard: {reason(error)}") from error
    return Ground(time.monotonic(), board, bells, ledger, Holdings(path, first))


class Forks:
    """Forks the children, each with what it needs of the ground. All raise `OSError`."""

    def __init__(self, ground: Ground, programs: Programs, user: Identity | None) -> None:
        self._ground = ground
        self._programs = programs
        self._user = user

    def worker(self, slot: int) -> Spawned:
        """A worker for `slot`."""
        _, board, bells, ledger, _ = self._ground
        run, kept = self._programs.worker, {board.fd, bells.workers, bells.control, ledger.fd}
        return spawn.spawn(
            f"lb-worker-{slot}", kept, lambda channel: run(slot, channel, board, bells, ledger), self._user
        )

    def keeper(self, slot: int) -> Spawned:
        """The keeper of `slot`."""
        ledger, run = self._ground.ledger, self._programs.keeper
        return spawn.spawn(
            f"lb-keeper-{slot}", {ledger.fd}, lambda channel: run(slot, channel, ledger), self._user
        )

    def control(self) -> Spawned:
        """A control process."""
        board, bells, run = self._ground.board, self._ground.bells, self._programs.control
        metrics, admin = (service and service.socket for service in self._ground.holdings.services)
        sockets = [listening.fileno() for listening in (metrics, admin) if listening is not None]
        kept = {board.fd, bells.workers, bells.control, *sockets}
        return spawn.spawn(
            "lb-control", kept, lambda channel: run(channel, board, bells, metrics, admin), self._user
        )
