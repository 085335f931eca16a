"""The trial: the new release, executed beside the running one, shows that it could take over.

It reads the real state and the real configuration file, looks at the real scoreboard and ledger, and brings a
worker up to where it could serve, with a scoreboard and a ledger of its own and no sockets. It changes
nothing that the running processes use. Who started it sees to its end, and to its deadline.
"""

from __future__ import annotations

import os
import select
import signal
from collections import Counter
from typing import Final

import msgspec

from lb.config import ConfigErrors
from lb.master import sockets, spawn
from lb.master.deployment import DeployError, Deployment
from lb.master.failures import StartError
from lb.master.plan import Plan
from lb.master.spawn import Programs, Spawned
from lb.master.upgrade_attempt import TrialReport
from lb.master.upgrade_launch import Order
from lb.master.upgrade_plan import next_plan
from lb.master.upgrade_state import StateError, UpgradeState, unpack
from workers.contract import messages
from workers.contract.bells import Bells
from workers.contract.ledger import Ledger, LedgerError
from workers.contract.messages import AnyMessage, Prepared, Ready, Refused
from workers.contract.scoreboard import Scoreboard, ScoreboardError

_ENTRIES: Final = 16  # of the trial's own ledger
# Of the master, besides: the standard three, loop and signals, snapshot, access log, the control process, the
# commands that are being served, and what a fork takes.
_OPEN_FILES: Final = 32


class TrialError(Exception):
    """The worker did not come up; `str()` says why."""


class WorkerEnded(TrialError):
    """It ended; what it printed says why."""


def run(order: Order, version: str) -> int:
    """Tries, and writes the report. Returns the exit code."""
    for fd in (order.state, order.report):
        os.set_inheritable(fd, False)
    error, printed = "", False
    try:
        attempt(unpack(order.state))
    except (ScoreboardError, LedgerError) as failure:
        error = f"{failure}: upgrade by a restart"
    except WorkerEnded as failure:
        error, printed = str(failure), True
    except (StateError, ConfigErrors, StartError, DeployError, TrialError, OSError) as failure:
        error = str(failure)
    report = TrialReport(ok=not error, version=version, error=error, printed=printed)
    with os.fdopen(order.report, "wb") as pipe:
        pipe.write(msgspec.json.encode(report))
    return 1 if error else 0


def attempt(state: UpgradeState) -> None:
    """Everything that the successor will have to be able to do. Raises what `run` reports."""
    board = Scoreboard.attach(state.scoreboard)
    Ledger.attach(state.ledger)
    limit = spawn.raise_open_files()
    plan = next_plan(state, board)
    wanted = open_files(state, plan)
    if wanted > limit:
        raise TrialError(
            f"the master needs up to {wanted} open files while old and new workers are there, and may have"
            f" {limit}: raise its hard limit (prlimit --nofile, LimitNOFILE=, ulimit -Hn)"
        )
    _probe(state, plan)
    user = spawn.identity(plan.config.process.user)
    programs = spawn.preload()
    deployment = Deployment(plan)
    try:
        _bring_up(programs, deployment, user)
    finally:
        deployment.close()


def open_files(state: UpgradeState, plan: Plan) -> int:
    """The most descriptors that the successor will have: what it inherits, a channel to each new worker and
    its keeper, and what `plan` adds."""
    homes = Counter(listening.address for listening in state.listeners)
    added = 0
    for address in plan.listener_names:
        wanted = plan.workers if sockets.parse(address).path is None else 1
        added += max(0, wanted - homes[address])
    return len([*state.descriptors()]) + 2 * plan.workers + added + len(plan.certificates) + _OPEN_FILES


def _probe(state: UpgradeState, plan: Plan) -> None:
    """Whether the addresses can be had that the running lb does not listen on. Raises `BindError`."""
    held = {listening.address for listening in state.listeners}
    ports = {sockets.parse(address).port for address in held}
    for text in plan.listener_names:
        address = sockets.parse(text)
        if text in held:
            continue
        # An address of the running lb on the same port would answer for whoever else is there.
        if address.path is None and address.port not in ports:
            sockets.probe(address)
        sockets.rehearse(address)


def _bring_up(programs: Programs, deployment: Deployment, user: spawn.Identity | None) -> None:
    """A worker, until it has prepared `deployment`. Raises `TrialError`."""
    board, bells = Scoreboard.create(), Bells.create()
    ledger = Ledger.create(board.capacity.workers, _ENTRIES)
    kept = {board.fd, bells.workers, bells.control, ledger.fd}
    spawned = spawn.spawn(
        "lb-trial", kept, lambda channel: programs.worker(0, channel, board, bells, ledger), user
    )
    try:
        _expect(spawned, Ready)
        for envelope in deployment.envelopes(()):
            messages.send(spawned.channel, envelope.message, envelope.fds)
        _expect(spawned, Prepared)
    finally:
        os.kill(spawned.pid, signal.SIGKILL)
        os.waitpid(spawned.pid, 0)
        spawned.channel.close()


def _expect(spawned: Spawned, kind: type[Ready] | type[Prepared]) -> None:
    """Waits for the worker's next word. Raises `TrialError` where it is not of `kind`."""
    message = _next(spawned)
    if isinstance(message, Refused):
        raise TrialError(f"a worker of the new release refuses the configuration: {message.error}")
    if not isinstance(message, kind):
        raise TrialError(f"a worker of the new release says {type(message).__name__}, not {kind.__name__}")


def _next(spawned: Spawned) -> AnyMessage:
    select.select([spawned.channel], [], [])
    received = messages.receive(spawned.channel)
    if received is None:
        raise WorkerEnded("a worker of the new release ends on its way up")
    return received[0]
