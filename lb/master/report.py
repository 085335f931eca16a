"""What the master tells about itself: plain data, as `lb status --json` and `lb reload --json` print it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all reports."""


class Outcome(Report, frozen=True, kw_only=True):
    """How a reload ended. `changes` is what it changed, one line each; `error` why it did not happen."""

    ok: bool
    generation: int  # that is served now
    changes: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    at: float = 0.0  # Unix time


class WorkerReport(Report, frozen=True, kw_only=True):
    """One worker, from its cells on the scoreboard."""

    slot: int
    pid: int
    state: str  # starting, loading, serving, caretaking, leaving
    uptime: float
    generation: int
    connections: int
    tunnels: int
    accepted: int
    requests: int
    heartbeat_age: float  # seconds
    listening_sockets: int
    keeper_pid: int = 0  # of the process that holds duplicates of its tunnels; 0 while there is none
    tunnels_held: int = 0  # tunnels that would outlive it


class ListenerReport(Report, frozen=True, kw_only=True):
    """One `[listen.NAME]`."""

    name: str
    bind: tuple[str, ...]
    tls: bool
    connections: int
    accepted: int
    rejected: int


class ReloadReport(Report, frozen=True, kw_only=True):
    """Reloads since the start; `last` is `None` before the first."""

    succeeded: int
    failed: int
    last: Outcome | None = None
    last_success: float = 0.0  # Unix time; 0 before the first


class UpgradeOutcome(Report, frozen=True, kw_only=True):
    """How an upgrade in place ended. `error` says why it did not happen: nothing has changed then, unless the
    new release was `executed` already."""

    ok: bool
    before: str  # the version that ran
    after: str = ""  # that runs now, or would have
    executed: bool = False
    error: str = ""
    seconds: float = 0.0
    at: float = 0.0  # Unix time


class UpgradeReport(Report, frozen=True, kw_only=True):
    """Upgrades since the start; `last` is `None` before the first."""

    succeeded: int = 0
    failed: int = 0
    last: UpgradeOutcome | None = None


class StatusReport(Report, frozen=True, kw_only=True):
    """All that `lb status` shows."""

    version: str
    form: str = ""  # of the hot modules: compiled or interpreted; empty from an lb that did not tell
    pid: int
    config: str
    uptime: float
    state: str  # starting, serving, reloading, upgrading, stopping
    generation: int
    workers: tuple[WorkerReport, ...]
    workers_wanted: int
    listeners: tuple[ListenerReport, ...]
    reloads: ReloadReport
    restarts: dict[str, int]  # of workers, by cause
    control_pid: int = 0  # of the control process; 0 while there is none
    control_restarts: dict[str, int] = {}  # by cause
    keeper_restarts: dict[str, int] = {}  # by cause
    upgrades: UpgradeReport = UpgradeReport()


class Request(Report, frozen=True, kw_only=True):
    """What is asked of the command socket, one JSON line. `config` is the absolute path of the file that
    the caller means; a master that runs on another refuses. `now` makes a stop immediate."""

    command: Literal["reload", "status", "stop", "upgrade"]
    config: str = ""
    now: bool = False


class Reply(Report, frozen=True, kw_only=True, omit_defaults=True):
    """The answer, one JSON line. `error` is set where the request could not be served at all."""

    error: str = ""
    outcome: Outcome | None = None
    status: StatusReport | None = None
    upgrade: UpgradeOutcome | None = None
    pid: int = 0
