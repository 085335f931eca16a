"""Which servers of a pool may be used: what checks, workers and the operator say of them, combined.

Every worker computes this alone, from the same cells, so no two need to agree on anything. Times are part of
the input: an ejection ends and a slow start goes on by the clock, whether the control process lives or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from workers.contract import errors
from workers.contract.cells import Admin, Health, ServerCell
from workers.contract.errors import Refusal
from workers.contract.snapshot import EjectSpec, PoolSpec

NEVER: Final = float("inf")
# Steps of a slow start: a server gets 1/20 of its weight at first, then 2/20, ...
STEPS: Final = 20
_GATEWAY_STATUSES: Final = frozenset((502, 503, 504))
_TO_CONNECT: Final = frozenset(
    (errors.CONNECT_FAILED, errors.CONNECT_TIMEOUT, errors.UPSTREAM_TLS, errors.RESOLVE_FAILED)
)


class ServerState(NamedTuple):
    """What is known of one server; times are monotonic seconds, 0.0 for never. `weight` is the operator's,
    `None` where the configured one holds."""

    health: int = Health.UNKNOWN
    admin: int = Admin.READY
    weight: int | None = None
    returned: float = 0.0
    ejected_until: float = 0.0


class Usable(NamedTuple):
    """The outcome. `usable` are the servers that new sessions may go to, `reachable` says of each server
    whether a sticky cookie still leads there; `weights` are whole numbers in proportion; `panic`: too few are
    well, so all are used; `until` is when time alone may change the outcome."""

    usable: tuple[int, ...]
    reachable: tuple[bool, ...]
    weights: tuple[int, ...]
    panic: bool
    until: float


def combine(pool: PoolSpec, states: Sequence[ServerState], now: float) -> Usable:
    """Which servers of `pool` may be used at `now`; `states` are in the order of `pool.servers`.

    Panic never brings back what the operator took out. A server that drains, or has weight 0, keeps its
    sticky sessions; one in maintenance does not.
    """
    until = NEVER
    well: list[bool] = []
    for state in states:
        ejected = state.ejected_until > now
        if ejected:
            until = min(until, state.ejected_until)
        well.append(state.health != Health.DOWN and not ejected)
    ready = [index for index, state in enumerate(states) if state.admin == Admin.READY]
    panic = _panics(pool, sum(well[index] for index in ready), len(ready))
    reachable = tuple(
        (panic or well[index]) and state.admin != Admin.MAINT for index, state in enumerate(states)
    )
    weights: list[int] = []
    steps: list[int] = []
    for spec, state in zip(pool.servers, states, strict=True):
        weights.append(spec.weight if state.weight is None else state.weight)
        step, change = slow_start_step(pool.slow_start, state, now)
        steps.append(step)
        until = min(until, change)
    usable = tuple(index for index in ready if reachable[index] and weights[index] > 0)
    if any(steps[index] < STEPS for index in usable):
        weights = [weight * step for weight, step in zip(weights, steps, strict=True)]
    return Usable(usable, reachable, tuple(weights), panic, until)


def _panics(pool: PoolSpec, well: int, ready: int) -> bool:
    eject = pool.eject
    return eject is not None and ready > 0 and well * 100 < eject.panic_percent * ready


def slow_start_step(slow_start: float | None, state: ServerState, now: float) -> tuple[int, float]:
    """The step (1 to `STEPS`) of a server that came back, and when the next one is due."""
    began = max(state.returned, state.ejected_until)
    if slow_start is None or not 0.0 < began <= now < began + slow_start:
        return STEPS, NEVER
    step = min(STEPS, int((now - began) / slow_start * STEPS) + 1)
    return step, began + slow_start * step / STEPS


class Watch:
    """What goes wrong on one server in a row, as one worker sees it. `failed` and `answered` tell which of
    the counters of `ServerCell` (for `EjectSpec`) the event makes due; a count begins anew then."""

    __slots__ = ("_connects", "_errors", "_gateway", "spec")

    def __init__(self, spec: EjectSpec) -> None:
        self.spec = spec
        self._errors = 0
        self._gateway = 0
        self._connects = 0

    def forget(self) -> None:
        """The server is out: what went wrong before does not count when it is back."""
        self._errors = self._gateway = self._connects = 0

    def answered(self, status: int) -> Sequence[int]:
        """The server answered with `status`."""
        self._connects = 0
        if status < 500:
            self._errors = self._gateway = 0
            return ()
        if status not in _GATEWAY_STATUSES:
            self._gateway = 0
            return self._more(gateway=False, connect=False)
        return self._more(gateway=True, connect=False)

    def failed(self, refusal: Refusal) -> Sequence[int]:
        """The server did not answer, or not as it should."""
        return self._more(gateway=True, connect=refusal in _TO_CONNECT)

    def _more(self, *, gateway: bool, connect: bool) -> Sequence[int]:
        spec = self.spec
        reached = []
        self._errors += 1
        if spec.consecutive_errors is not None and self._errors >= spec.consecutive_errors:
            self._errors = 0
            reached.append(int(ServerCell.ERRORS_IN_A_ROW))
        if gateway:
            self._gateway += 1
            if spec.gateway_failures is not None and self._gateway >= spec.gateway_failures:
                self._gateway = 0
                reached.append(int(ServerCell.GATEWAY_FAILURES))
        if connect:
            self._connects += 1
            if spec.connect_failures is not None and self._connects >= spec.connect_failures:
                self._connects = 0
                reached.append(int(ServerCell.CONNECT_FAILURES))
        return reached
