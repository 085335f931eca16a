"""Figures read from the scoreboard: no worker is asked, and none needs to be alive."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable

from lb.master.fleet import Fleet
from lb.master.instance import Instance
from lb.master.report import ListenerReport, StatusReport, UpgradeReport, WorkerReport
from lb.master.worker_process import WorkerProcess
from workers.contract.cells import NANOSECONDS, ListenerCell, PoolCell, RouteCell, ServerCell, WorkerCell
from workers.contract.form import form
from workers.contract.scoreboard import Scoreboard, Slab
from workers.contract.snapshot import ListenerSpec

_GAUGES = {
    "listener": (ListenerCell.CONNECTIONS,),
    "route": (RouteCell.IN_FLIGHT, RouteCell.TUNNELS),
    "pool": (PoolCell.QUEUED, PoolCell.ADMISSION_QUEUED),
    "server": (ServerCell.ACTIVE, ServerCell.TUNNELS, ServerCell.CONNECTIONS),
}


def _slabs(board: Scoreboard, used_slots: Collection[int]) -> list[Slab]:
    # Reading a page that was never written would allocate it, so unused slots are left out.
    return [board.slab(slot) for slot in sorted(used_slots)]


def in_use(fleet: Fleet, board: Scoreboard, kind: str, row: int) -> bool:
    """Whether a gauge of `row` ("listener", "route", "pool" or "server") is above zero in any worker, or
    may be: while a dead worker's tunnels are in nobody's hands, they are on no gauge."""
    return fleet.recovering or row_in_use(board, fleet.used_slots, kind, row)


def row_in_use(board: Scoreboard, used_slots: Collection[int], kind: str, row: int) -> bool:
    """The same, by the gauges of `used_slots` alone."""
    for slab in _slabs(board, used_slots):
        base = _base(slab, kind, row)
        if any(slab.cells[base + cell] for cell in _GAUGES[kind]):
            return True
    return False


def _base(slab: Slab, kind: str, row: int) -> int:
    match kind:
        case "listener":
            return slab.listener_base(row)
        case "route":
            return slab.route_base(row)
        case "pool":
            return slab.pool_base(row)
        case "server":
            return slab.server_base(row)
    raise ValueError(f"the scoreboard has no rows of kind {kind!r}")


def report(instance: Instance, state: str, upgrades: UpgradeReport) -> StatusReport:
    """All of it; `state` is what the master is at."""
    fleet, board = instance.fleet, instance.ground.board
    snapshot = fleet.deployment.plan.snapshot
    return StatusReport(
        version=instance.version,
        form=form(),
        pid=os.getpid(),
        config=str(instance.path),
        uptime=round(time.monotonic() - instance.ground.started, 3),
        state=state,
        generation=snapshot.generation,
        workers=worker_reports(fleet, board),
        workers_wanted=len(fleet.active),
        listeners=listener_reports(snapshot.listeners, fleet, board),
        reloads=instance.reloader.report,
        restarts=dict(fleet.restarts),
        control_pid=instance.control.pid,
        control_restarts=dict(instance.control.restarts),
        keeper_restarts=dict(fleet.keepers.restarts),
        upgrades=upgrades,
    )


def worker_reports(fleet: Fleet, board: Scoreboard) -> tuple[WorkerReport, ...]:
    """One report per process, leaving ones too."""
    workers = sorted(fleet.workers.values(), key=lambda worker: worker.slot)
    return tuple(
        _worker_report(worker, fleet.keepers.pid(worker.slot), board.slab(worker.slot)) for worker in workers
    )


def _worker_report(worker: WorkerProcess, keeper_pid: int, slab: Slab) -> WorkerReport:
    cells = slab.cells
    now = time.monotonic()
    beat = cells[WorkerCell.HEARTBEAT] / NANOSECONDS
    return WorkerReport(
        slot=worker.slot,
        pid=worker.pid,
        state=worker.phase.value,
        uptime=round(now - worker.started, 3),
        generation=cells[WorkerCell.GENERATION],
        connections=cells[WorkerCell.CONNECTIONS],
        tunnels=cells[WorkerCell.TUNNELS],
        accepted=cells[WorkerCell.ACCEPTED],
        requests=cells[WorkerCell.REQUESTS],
        heartbeat_age=round(max(0.0, now - max(beat, worker.started)), 3),
        listening_sockets=cells[WorkerCell.LISTENERS],
        keeper_pid=keeper_pid,
        tunnels_held=cells[WorkerCell.SAFE],
    )


def listener_reports(
    listeners: Iterable[ListenerSpec], fleet: Fleet, board: Scoreboard
) -> tuple[ListenerReport, ...]:
    """One report per configured listener, summed over all workers that ever were."""
    slabs = _slabs(board, fleet.used_slots)

    def total(row: int, cell: ListenerCell) -> int:
        return sum(slab.cells[slab.listener_base(row) + cell] for slab in slabs)

    return tuple(
        ListenerReport(
            name=spec.name,
            bind=spec.bind,
            tls=spec.tls is not None,
            connections=total(spec.slot, ListenerCell.CONNECTIONS),
            accepted=total(spec.slot, ListenerCell.ACCEPTED),
            rejected=total(spec.slot, ListenerCell.REJECTED),
        )
        for spec in listeners
    )
