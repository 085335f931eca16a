"""What the running master takes along when it executes itself anew, and what has to come to rest before."""

from __future__ import annotations

from typing import Any, Final

from lb.master.child import Child
from lb.master.instance import Instance
from lb.master.pidfile import PidFile
from lb.master.reload import Step
from lb.master.report import UpgradeReport
from lb.master.services import Service
from lb.master.upgrade_plan import deployed
from lb.master.upgrade_state import (
    FORMAT,
    Command,
    Listening,
    LockedFile,
    Process,
    UpgradeState,
    compile_state,
)
from lb.master.worker_process import Phase

COMMAND: Final = "upgrade"  # on the command socket


def unrest(instance: Instance) -> str:
    """What must come to its end before the process may execute itself; empty where nothing must."""
    fleet = instance.fleet
    if instance.reloader.step is not Step.IDLE:
        return "a reload goes on"
    for worker in fleet.workers.values():
        if worker.phase not in (Phase.SERVING, Phase.LEAVING):
            return f"worker {worker.slot} (pid {worker.pid}) is {worker.phase.value}"
    if fleet.recovering:
        return "the tunnels of a dead worker are being taken over"
    if fleet.keepers.unsettled:
        return "a keeper comes or goes"
    for child in _children(instance):
        if child.closed:
            return f"a process (pid {child.pid}) is ending"
        if child.behind:
            return f"a process (pid {child.pid}) does not read what it is told"
    return ""


def _children(instance: Instance) -> list[Child[Any]]:
    children: list[Child[Any]] = [*instance.fleet.workers.values(), *instance.fleet.keepers.all.values()]
    if instance.control.child is not None:
        children.append(instance.control.child)
    return children


def export(instance: Instance, upgrades: UpgradeReport, began: float) -> UpgradeState:
    """The state as of now. `began` is when the upgrade began (monotonic)."""
    fleet, desk, ground = instance.fleet, instance.desk, instance.ground
    holdings = ground.holdings
    plan = fleet.deployment.plan
    return UpgradeState(
        format=FORMAT,
        version=instance.version,
        config=str(instance.path),
        served=plan.control.config_text,
        workers=plan.workers,
        started=ground.started,
        began=began,
        attempt=instance.reloader.attempt,
        compiled=compile_state(plan.state),
        deployed=deployed(plan),
        discovery=plan.discovery,
        listeners=tuple(
            Listening(address=kept.address, fd=kept.socket.fileno(), home=kept.home, file=kept.file)
            for kept in holdings.listeners.all()
        ),
        command=Command(
            path=str(holdings.command_path),
            fd=holdings.command_socket.fileno(),
            file=instance.command.identity,
            waiting=tuple(instance.command.waiting(COMMAND) or ()),
        ),
        pid_file=_locked(holdings.pid_file),
        metrics=_service(holdings.services.metrics),
        admin=_service(holdings.services.admin),
        scoreboard=ground.board.fd,
        ledger=ground.ledger.fd,
        bells=(ground.bells.workers, ground.bells.control),
        children=tuple(_processes(instance)),
        used_slots=tuple(sorted(fleet.used_slots)),
        restarts=dict(fleet.restarts),
        control_restarts=dict(instance.control.restarts),
        keeper_restarts=dict(fleet.keepers.restarts),
        reloads=instance.reloader.report,
        upgrades=upgrades,
        events=desk.events,
        event_count=desk.event_count,
        moves=desk.moves,
        notify=instance.notifier.address,
    )


def _locked(held: PidFile | None) -> LockedFile | None:
    return None if held is None else LockedFile(path=str(held.path), fd=held.fd)


def _service(service: Service | None) -> Listening | None:
    if service is None:
        return None
    return Listening(address=service.address, fd=service.socket.fileno(), file=service.identity)


def _processes(instance: Instance) -> list[Process]:
    found = [
        Process(
            kind="worker",
            pid=worker.pid,
            fd=worker.channel.fileno(),
            slot=worker.slot,
            phase="leaving" if worker.phase is Phase.LEAVING else "serving",
            started=worker.started,
            leave_by=worker.leave_by or 0.0,
        )
        for worker in instance.fleet.workers.values()
    ]
    found += [
        Process(kind="keeper", pid=keeper.pid, fd=keeper.channel.fileno(), slot=slot, started=keeper.started)
        for slot, keeper in instance.fleet.keepers.all.items()
    ]
    control = instance.control.child
    if control is not None:
        fd = control.channel.fileno()
        found.append(Process(kind="control", pid=control.pid, fd=fd, started=control.started))
    return found
