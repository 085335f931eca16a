"""What a successor will serve: the configuration file as it is then, on the rows of its predecessor."""

from __future__ import annotations

import pathlib

from lb.master import plan as plans
from lb.master import status
from lb.master.plan import Plan
from lb.master.upgrade_state import UpgradeState, restored
from workers.contract.scoreboard import Scoreboard


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
