"""A control process without a master: the real scoreboard, bells, event log and server states, for tests of
the parts that share them."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Final

from lb.control.control import LastCheck, Unanswered
from lb.control.events import EventLog
from lb.control.messages import Event
from lb.control.spec import ControlSpec, Discovery
from lb.control.states import ServerStates
from lb.master.report import Outcome, ReloadReport, StatusReport
from workers.contract.bells import Bells
from workers.contract.cells import ServerCell, WorkerCell
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import CloseTunnels, ListTunnels, MoveTunnels, Tunnels, TunnelsClosed
from workers.contract.scoreboard import Capacity, Scoreboard
from workers.contract.snapshot import PoolSpec, ServerSpec, Snapshot

SMALL: Final = Capacity(workers=4, listeners=8, routes=32, pools=16, servers=64, series=256)


class StandInControl:
    """Implements `lb.control.control.Control`. What the master or workers would do is recorded, or answered
    from what the test put here."""

    def __init__(self, snapshot: Snapshot | None = None, *, capacity: Capacity = SMALL) -> None:
        self.board = Scoreboard.create(capacity)
        self.bells = Bells.create()
        self._log_fd = os.memfd_create("log")
        self.log = ErrorLog("control", self._log_fd)
        self.events = EventLog()
        self.states = ServerStates(self.board, self.bells, self.events)
        self.snapshot = Snapshot(generation=0)
        self.spec = ControlSpec(generation=0, config_path="/lb.toml", config_text="")
        self.status = StatusReport(
            version="0", pid=os.getpid(), config="/lb.toml", uptime=0.0, state="serving", generation=0,
            workers=(), workers_wanted=0, listeners=(), reloads=ReloadReport(succeeded=0, failed=0),
            restarts={},
        )  # fmt: skip
        self.started = time.time()
        self.outcome: Outcome | None = None  # of the next reloads; None: the master does not answer
        self.reloads = 0
        self.tunnels: dict[int, Tunnels] = {}  # what the worker in a slot answers; missing: nothing
        self.closed: dict[int, TunnelsClosed] = {}
        self.asked: list[tuple[int, ListTunnels | CloseTunnels | MoveTunnels]] = []
        self.discoveries: list[Discovery] = []
        self.undiscovered: list[str] = []
        self.late: list[str] = []
        self.last_checks: dict[tuple[str, str], LastCheck] = {}  # by pool and server
        if snapshot is not None:
            self.serve(snapshot)

    def __enter__(self) -> StandInControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the descriptors."""
        for fd in (self.board.fd, self.bells.workers, self.bells.control, self._log_fd):
            os.close(fd)

    def serve(self, snapshot: Snapshot) -> None:
        """A configuration is served from now on; the parts' own `adopt` is the test's to call."""
        self.snapshot = snapshot
        self.states.adopt(snapshot)

    # --- what Control offers -----------------------------------------------------------------------------

    async def reload(self) -> Outcome:
        """Answers `outcome`."""
        self.reloads += 1
        if self.outcome is None:
            raise Unanswered("the master does not answer")
        return self.outcome

    async def list_tunnels(self, slot: int, what: ListTunnels) -> Tunnels:
        """Answers `tunnels[slot]`."""
        self.asked.append((slot, what))
        if slot not in self.tunnels:
            raise Unanswered(f"worker {slot} does not answer")
        return self.tunnels[slot]

    async def close_tunnels(self, slot: int, what: CloseTunnels | MoveTunnels) -> TunnelsClosed:
        """Answers `closed[slot]`."""
        self.asked.append((slot, what))
        if slot not in self.closed:
            raise Unanswered(f"worker {slot} does not answer")
        return self.closed[slot]

    def discovered(self, discovery: Discovery) -> None:
        """Keeps it."""
        self.discoveries.append(discovery)

    def last_check(self, pool: str, server: str) -> LastCheck | None:
        """Answers `last_checks`."""
        return self.last_checks.get((pool, server))

    def check_problems(self) -> list[str]:
        """Answers `late`."""
        return self.late

    def discovery_problems(self) -> list[str]:
        """Answers `undiscovered`."""
        return self.undiscovered

    # --- what the tests look at --------------------------------------------------------------------------

    def log_text(self) -> str:
        """All that was logged."""
        return os.pread(self._log_fd, 1 << 20, 0).decode()

    def kinds(self) -> list[str]:
        """The kinds of all events, oldest first."""
        return [event.kind for event in self.events.after(0)]

    def last_event(self, kind: str) -> Event:
        """The newest event of this kind; there must be one."""
        return [event for event in self.events.after(0) if event.kind == kind][-1]

    def pool(self, name: str) -> PoolSpec:
        """A pool of the snapshot."""
        return next(pool for pool in self.snapshot.pools if pool.name == name)

    def server(self, pool: str, name: str) -> ServerSpec:
        """A server of the snapshot."""
        return next(server for server in self.pool(pool).servers if server.name == name)

    def count(self, worker: int, server: ServerSpec, cell: ServerCell, by: int = 1) -> None:
        """What the worker in slot `worker` does: it owns its slab, and counts."""
        slab = self.board.slab(worker)
        slab.cells[WorkerCell.HEARTBEAT] = time.monotonic_ns()
        base = slab.server_base(server.slot)
        if slab.cells[base + ServerCell.OWNER] != server.owner:
            for index in range(base, base + ServerCell.WIDTH):
                slab.cells[index] = 0
            slab.cells[base + ServerCell.OWNER] = server.owner
        slab.cells[base + cell] += by
