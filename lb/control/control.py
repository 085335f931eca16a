"""What the parts of the control process share: metrics, admin API, health checks and discovery are given
this object, and know of each other by it alone."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from lb.control.events import EventLog
from lb.control.spec import ControlSpec, Discovery
from lb.control.states import ServerStates
from lb.master.report import Outcome, StatusReport
from workers.contract.bells import Bells
from workers.contract.cells import CheckResult
from workers.contract.errorlog import ErrorLog
from workers.contract.messages import CloseTunnels, ListTunnels, MoveTunnels, Tunnels, TunnelsClosed
from workers.contract.scoreboard import Scoreboard
from workers.contract.snapshot import Snapshot


class Unanswered(Exception):
    """The master or a worker did not answer; `str()` says who and why."""


class LastCheck(NamedTuple):
    """The last active check of a server: what the scoreboard has no room for, too."""

    result: CheckResult
    detail: str  # for people: "expected status 200-299, got 503"
    at: float  # Unix time
    seconds: float  # how long it took


class Control(Protocol):
    """The control process as its parts see it. `snapshot`, `spec` and `status` are replaced as a whole when
    the master tells of new ones."""

    board: Scoreboard
    bells: Bells
    log: ErrorLog
    events: EventLog
    states: ServerStates
    snapshot: Snapshot
    spec: ControlSpec
    status: StatusReport
    started: float  # Unix time

    async def reload(self) -> Outcome:
        """Reloads the configuration and waits for the outcome. Raises `Unanswered`."""

    async def list_tunnels(self, slot: int, what: ListTunnels) -> Tunnels:
        """Asks the worker in `slot`; `what.request` is set here. Raises `Unanswered`."""

    async def close_tunnels(self, slot: int, what: CloseTunnels | MoveTunnels) -> TunnelsClosed:
        """Tells the worker in `slot`; `what.request` is set here. Raises `Unanswered`."""

    def discovered(self, discovery: Discovery) -> None:
        """Tells the master what was found; it makes a configuration of it."""

    def last_check(self, pool: str, server: str) -> LastCheck | None:
        """The last active check of a server (`HealthChecks.last`); `None` before the first."""

    def check_problems(self) -> list[str]:
        """Which health checks come late, a line for each pool (`HealthChecks.problems`)."""

    def discovery_problems(self) -> list[str]:
        """What discovery can't find now, a line for each (`Discoverer.problems`)."""
