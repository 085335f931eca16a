"""What `figures` finds on the scoreboard: plain numbers, named as the cells of `workers.contract.cells`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from workers.contract.cells import NANOSECONDS, MigrationReason, MigrationResult, WorkerCell

_MIGRATIONS: Final = {
    (reason.name.lower(), result.name.lower()): WorkerCell.MIGRATIONS
    + reason * MigrationResult.WIDTH
    + result
    for reason in MigrationReason
    for result in MigrationResult
    if result != MigrationResult.WIDTH
}


class Histogram(NamedTuple):
    """`counts` has one count per bound and one for what is above the last; they are not cumulative.
    `seconds` is the sum of all that was observed."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    seconds: float


class WorkerFigures(NamedTuple):
    """One worker slot: its process of now, and the counters of all that were there before."""

    slot: int
    heartbeat: float  # monotonic seconds
    generation: int
    pid: int
    connections: int
    tunnels: int
    accepted: int
    requests: int
    log_dropped: int
    accept_paused: int
    lag: float  # seconds
    longest_turn: float  # seconds
    long_turns: int
    listeners: int
    faults: int
    tls_12: int
    tls_13: int
    tls_failed: int
    tls_timeout: int
    cpu: float  # seconds
    series: int
    series_full: int
    error_log_dropped: int
    movable: int
    crash_safe: int
    paced: int
    migrations: dict[tuple[str, str], int]  # by (reason, result)


class ListenerFigures(NamedTuple):
    """One listener. `rejected_by` is by reason (`errors.REASONS`, or "other")."""

    connections: int
    accepted: int
    rejected: int
    rejected_by: dict[str, int]


class RouteFigures(NamedTuple):
    """One route. `requests_by` is by (method, status), `closes` by (initiator, code): status and code are as
    in `series`, and what found no series is under ("other", 0)."""

    in_flight: int
    requests: int
    requests_by: dict[tuple[str, int], int]
    tunnels: int
    client_bytes: int
    server_bytes: int
    client_messages: int
    server_messages: int
    handshakes: dict[str, int]
    closes: dict[tuple[str, int], int]
    seconds: Histogram
    handshake: Histogram
    tunnel: Histogram
    ping: Histogram
    ping_timeouts: int


class PoolFigures(NamedTuple):
    """One pool."""

    retries: int
    queued: int
    sticky: dict[str, int]
    connect: Histogram
    admitted: int
    admission_refused: int
    admission_queued: int


class ServerFigures(NamedTuple):
    """One server. `responses` is by status (0: other), `errors_by` by reason."""

    active: int
    tunnels: int
    connections: int
    idle: int
    requests: int
    errors: int
    retries: int
    waiting: int
    errors_in_a_row: int
    gateway_failures: int
    connect_failures: int
    responses: dict[int, int]
    errors_by: dict[str, int]


def histogram(row: Sequence[int], total: int, first: int, bounds: tuple[float, ...]) -> Histogram:
    """The histogram in `row`: its sum in cell `total`, its buckets from cell `first` on."""
    return Histogram(bounds, tuple(row[first : first + len(bounds) + 1]), row[total] / NANOSECONDS)


def worker_figures(slot: int, cells: Sequence[int]) -> WorkerFigures:
    """The figures in the worker's own cells (WorkerCell)."""
    return WorkerFigures(
        slot=slot,
        heartbeat=cells[WorkerCell.HEARTBEAT] / NANOSECONDS,
        generation=cells[WorkerCell.GENERATION],
        pid=cells[WorkerCell.PID],
        connections=cells[WorkerCell.CONNECTIONS],
        tunnels=cells[WorkerCell.TUNNELS],
        accepted=cells[WorkerCell.ACCEPTED],
        requests=cells[WorkerCell.REQUESTS],
        log_dropped=cells[WorkerCell.LOG_DROPPED],
        accept_paused=cells[WorkerCell.ACCEPT_PAUSED],
        lag=cells[WorkerCell.LAG] / NANOSECONDS,
        longest_turn=cells[WorkerCell.LONGEST_TURN] / NANOSECONDS,
        long_turns=cells[WorkerCell.LONG_TURNS],
        listeners=cells[WorkerCell.LISTENERS],
        faults=cells[WorkerCell.FAULTS],
        tls_12=cells[WorkerCell.TLS_12],
        tls_13=cells[WorkerCell.TLS_13],
        tls_failed=cells[WorkerCell.TLS_FAILED],
        tls_timeout=cells[WorkerCell.TLS_TIMEOUT],
        cpu=cells[WorkerCell.CPU] / NANOSECONDS,
        series=cells[WorkerCell.SERIES],
        series_full=cells[WorkerCell.SERIES_FULL],
        error_log_dropped=cells[WorkerCell.ERROR_LOG_DROPPED],
        movable=cells[WorkerCell.MOVABLE],
        crash_safe=cells[WorkerCell.SAFE],
        paced=cells[WorkerCell.PACED],
        migrations={key: cells[cell] for key, cell in _MIGRATIONS.items()},
    )
