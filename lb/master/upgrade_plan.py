"""What a successor will serve: the configuration file as it is then, on the rows of its predecessor; or,
where that can't be served, what its predecessor served."""

from __future__ import annotations

import pathlib

import msgspec

from lb import config as configuration
from lb.config import ConfigErrors
from lb.control.spec import ControlSpec
from lb.master import plan as plans
from lb.master import status
from lb.master.plan import Plan
from lb.master.upgrade_state import Deployed, StateError, UpgradeState, restored
from workers.contract import snapshot as snapshots
from workers.contract.scoreboard import Scoreboard
from workers.contract.snapshot import DECODE_ERRORS, SnapshotError


def next_plan(state: UpgradeState, board: Scoreboard) -> Plan:
    """Reads and compiles the file. Raises `ConfigErrors`."""
    plan = plans.following(
        pathlib.Path(state.config),
        state.served,
        state.workers,
        restored(state.compiled, board.capacity),
        state.discovery,
        state.attempt + 1,
        lambda kind, row: status.row_in_use(board, state.used_slots, kind, row),
    )
    return plan.with_admin(None if state.admin is None else state.admin.address)


def deployed(plan: Plan) -> Deployed:
    """`plan` as `served_plan` needs it."""
    return Deployed(
        snapshot=snapshots.encode(plan.snapshot),
        control=msgspec.msgpack.encode(plan.control),
        certificates=tuple((*names, pem) for names, pem in plan.certificates.items()),
    )


def served_plan(state: UpgradeState, board: Scoreboard) -> Plan:
    """What the predecessor served, for which no file is read. Raises `StateError` where this release doesn't
    understand it."""
    try:
        plan = Plan(
            config=configuration.parse(state.served, pathlib.Path(state.config)),
            snapshot=snapshots.decode(state.deployed.snapshot),
            control=msgspec.msgpack.decode(state.deployed.control, type=ControlSpec),
            discovery=state.discovery,
            certificates={(listener, name): pem for listener, name, pem in state.deployed.certificates},
            state=restored(state.compiled, board.capacity),
            workers=state.workers,
        )
    except (ConfigErrors, SnapshotError, *DECODE_ERRORS) as error:
        raise StateError(f"what was served can't be served by this release: {error}") from error
    return plan.again(state.attempt + 1, state.workers)
