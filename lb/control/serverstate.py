"""What a server is in one word, and why: the same for the metrics, the admin API and the dashboard.

The rule itself is the workers' (`workers.core.health`): here its outcome gets words.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lb.admin.views import ServerState
from lb.control.states import ServerStates
from workers.contract.cells import NANOSECONDS, Admin, CheckResult, Health, StateCell
from workers.contract.snapshot import PoolSpec, ServerSpec
from workers.core import health

CHECKED: Final = {
    CheckResult.OK: "as expected",
    CheckResult.CONNECT: "no connection: refused, unreachable, or its name is not resolved",
    CheckResult.TIMEOUT: "no answer in time",
    CheckResult.TLS: "the TLS handshake failed",
    CheckResult.STATUS: "another status than expected",
    CheckResult.BODY: "another body than expected",
    CheckResult.PROTOCOL: "no valid answer: malformed, reset, or a wrong WebSocket handshake",
}


class Standing(NamedTuple):
    """How one server stands. `why` is for people and empty while all is well; `weight` is what counts now:
    with the operator's weight and the slow start, 0 while it gets nothing new."""

    state: ServerState
    why: str
    weight: float
    known: health.ServerState


class PoolStanding(NamedTuple):
    """How a pool stands; `servers` are in its order, `usable` says how many of them get new sessions."""

    servers: tuple[Standing, ...]
    usable: int
    panic: bool


def standing(states: ServerStates, pool: PoolSpec, now: float) -> PoolStanding:
    """How `pool` stands at `now` (monotonic seconds), as every worker sees it."""
    known = [_known(states, server) for server in pool.servers]
    usable = health.combine(pool, known, now)
    servers = tuple(
        _standing(states, pool, index, known[index], index in usable.usable, now)
        for index in range(len(known))
    )
    return PoolStanding(servers, len(usable.usable), usable.panic)


def _known(states: ServerStates, server: ServerSpec) -> health.ServerState:
    given = states.get(server, StateCell.WEIGHT)
    return health.ServerState(
        health=states.get(server, StateCell.HEALTH),
        admin=states.get(server, StateCell.ADMIN),
        weight=given - 1 if given else None,
        returned=states.get(server, StateCell.RETURNED) / NANOSECONDS,
        ejected_until=states.get(server, StateCell.EJECTED_UNTIL) / NANOSECONDS,
    )


def _standing(
    states: ServerStates, pool: PoolSpec, index: int, known: health.ServerState, usable: bool, now: float
) -> Standing:
    server = pool.servers[index]
    step, _ = health.slow_start_step(pool.slow_start, known, now)
    state, why = _word(states, server, known, step, now)
    weight = server.weight if known.weight is None else known.weight
    return Standing(state, why, weight * step / health.STEPS if usable else 0.0, known)


def _word(
    states: ServerStates, server: ServerSpec, known: health.ServerState, step: int, now: float
) -> tuple[ServerState, str]:
    """What the operator wants comes first, then what was seen."""
    if known.admin == Admin.MAINT:
        return "maint", "in maintenance: it gets nothing new"
    if known.admin == Admin.DRAIN:
        if states.empty_by(server):
            return "drain", "it drains: tunnels are asked to move, sticky sessions stay, nothing else comes"
        return "drain", "it drains: sticky sessions and tunnels stay, nothing else comes"
    if known.health == Health.DOWN:
        result = CheckResult(states.get(server, StateCell.LAST_RESULT))
        # A good check does not bring it back before there were `rise` of them.
        return "down", "its checks fail" + ("" if result is CheckResult.OK else f": {CHECKED[result]}")
    if known.ejected_until > now:
        return "ejected", f"too many errors: ejected for {known.ejected_until - now:.0f}s more"
    if step < health.STEPS:
        return "starting", f"it came back: slow start, {step * 100 // health.STEPS}% of its weight"
    why = "" if known.weight is None else f"the operator has set its weight to {known.weight}"
    return ("unchecked" if known.health == Health.UNKNOWN else "up"), why
