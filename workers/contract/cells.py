"""What each cell of the scoreboard holds.

Gauges go up and down and are signed; counters only grow; times are monotonic nanoseconds (CLOCK_MONOTONIC,
so every process reads the same clock). A row belongs to the owner whose number is in its OWNER cell: a
reader leaves out rows of another owner, so what a reload gives to somebody else starts from zero.
"""

from __future__ import annotations

import enum
from typing import Final

NANOSECONDS: Final = 1_000_000_000  # in a second: times and sums of seconds are kept in them

# Upper bounds of the histograms' buckets in seconds; one more bucket is for what is above the last.
HTTP_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
HANDSHAKE_SECONDS: Final = HTTP_SECONDS[:-1]
CONNECT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
PING_SECONDS: Final = CONNECT_SECONDS
TUNNEL_SECONDS: Final = (
    0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 43200.0, 86400.0, 172800.0,
    345600.0, 604800.0,
)  # fmt: skip


class WorkerCell(enum.IntEnum):
    """The worker's own cells."""

    HEARTBEAT = 0  # time of the last turn of the event loop's tick
    GENERATION = 1  # of the configuration that is served
    PID = 2
    CONNECTIONS = 3  # gauge: client connections
    TUNNELS = 4  # gauge: WebSocket tunnels
    ACCEPTED = 5  # counter: client connections
    REQUESTS = 6  # counter: exchanges that ended, upgrades among them
    LOG_DROPPED = 7  # counter: access log lines that were lost
    ACCEPT_PAUSED = 8  # counter: accept failed for want of fds or memory
    LAG = 9  # nanoseconds that the last tick came late
    LISTENERS = 11  # gauge: listening sockets served
    FAULTS = 12  # counter: callbacks of the event loop that failed, each a bug
    TLS_12 = 13  # counter: handshakes of clients that ended well, TLS 1.2
    TLS_13 = 14  # the same, TLS 1.3
    TLS_FAILED = 15  # counter
    TLS_TIMEOUT = 16  # counter
    CPU = 17  # counter: nanoseconds of CPU time
    SERIES = 18  # entries of the series area that are taken
    SERIES_FULL = 19  # counter: figures that went into a row's OTHER_* cell for want of an entry
    ERROR_LOG_DROPPED = 20  # counter: error log lines that were lost
    LISTENER_ROWS = 21  # one more than the highest row of a listener that was ever owned here
    ROUTE_ROWS = 22
    POOL_ROWS = 23
    SERVER_ROWS = 24
    MOVABLE = 25  # gauge: tunnels that can be handed over: no TLS on either side, and not being closed
    SAFE = 26  # gauge: tunnels that a keeper holds
    PACED = 27  # gauge: tunnels that wait for their turn to be closed politely
    LONGEST_TURN = 28  # nanoseconds of the longest turn of the event loop in the last half minute or more
    LONG_TURNS = 29  # counter: turns of the event loop of more than 20 ms
    MIGRATIONS = 32  # counters: MigrationReason * MigrationResult.WIDTH + MigrationResult
    WIDTH = 64


class MigrationReason(enum.IntEnum):
    """Why a tunnel changes hands."""

    CRASH = 0  # its worker died, and a keeper had it
    RETIRE = 1  # fewer workers
    REBALANCE = 2
    UPGRADE = 3


class MigrationResult(enum.IntEnum):
    """How it ended. Counted by who takes it over, failures by who would have given it."""

    OK = 0
    UNPROVED = 1  # closed: which bytes were still to be sent can't be proved
    GONE = 2  # both or one of its ends had failed meanwhile
    REFUSED = 3  # it stayed where it was
    WIDTH = 4


class ListenerCell(enum.IntEnum):
    """A row per listener."""

    CONNECTIONS = 0  # gauge
    ACCEPTED = 1
    REJECTED = 2  # counter: over limits.connections
    OWNER = 3
    OTHER_REJECTED = 4  # counter: rejections of any reason that found no entry
    WIDTH = 16


class RouteCell(enum.IntEnum):
    """A row per route."""

    IN_FLIGHT = 0  # gauge: exchanges
    TUNNELS = 2  # gauge
    OWNER = 3
    OTHER_REQUESTS = 4
    OTHER_CLOSES = 5
    OTHER_TUNNELS = 6  # gauge
    CLIENT_BYTES = 7  # counter: bytes of tunnels, from the client
    SERVER_BYTES = 8
    CLIENT_MESSAGES = 9  # counter: WebSocket messages of tunnels, from the client
    SERVER_MESSAGES = 10
    PING_TIMEOUTS = 11  # counter: tunnels closed since a side did not answer a ping
    HANDSHAKES = 16  # counters, in the order of HandshakeResult
    SECONDS_SUM = 24  # of responses, in nanoseconds
    SECONDS = 25  # a bucket per bound of HTTP_SECONDS, and one above
    HANDSHAKE_SUM = 44
    HANDSHAKE = 45
    TUNNEL_SUM = 64
    TUNNEL = 65
    PING_SUM = 96  # of round trips of pings, in nanoseconds
    PING = 97
    WIDTH = 128


class HandshakeResult(enum.IntEnum):
    """How a WebSocket handshake ended."""

    ACCEPTED = 0  # a tunnel opened
    REJECTED = 1  # the server answered with another status than 101
    REFUSED = 2  # the load balancer refused it: malformed, no server, queue full
    FAILED = 3  # the server, or the way to it, failed
    CLIENT_CLOSED = 4  # the client left


class PoolCell(enum.IntEnum):
    """A row per pool."""

    OWNER = 0
    RETRIES = 1
    QUEUED = 2  # gauge: requests that wait for a server
    STICKY = 4  # counters, in the order of StickyResult
    CONNECT_SUM = 12  # nanoseconds
    CONNECT = 13  # a bucket per bound of CONNECT_SECONDS, and one above
    ADMITTED = 28  # counter: WebSocket handshakes that `admission` let through
    ADMISSION_REFUSED = 29  # counter: those that it turned away
    ADMISSION_QUEUED = 30  # gauge: those that wait for it
    WIDTH = 32


class StickyResult(enum.IntEnum):
    """What became of a request's stickiness."""

    HIT = 0  # it went to its server
    NEW = 1  # it brought no key
    INVALID = 2  # its cookie names no server of the pool: forged, or of a server that is gone
    MOVED = 3  # its server can't be used


class ServerCell(enum.IntEnum):
    """A row per server."""

    ACTIVE = 0  # gauge: exchanges in flight plus tunnels; what least-conn and p2c compare
    TUNNELS = 1  # gauge
    CONNECTIONS = 2  # gauge: open upstream connections, idle ones too
    ERRORS = 4
    RETRIES = 5
    WAITING = 6  # gauge: queued requests that this server could serve
    BOUND = 7  # gauge: exchanges that this worker may have on the server, or has, whichever is more
    OWNER = 8
    IDLE = 9  # gauge: idle upstream connections
    OTHER_REQUESTS = 10
    OTHER_ERRORS = 11
    ERRORS_IN_A_ROW = 12  # counter: how often eject.consecutive_errors was reached here
    GATEWAY_FAILURES = 13  # counter: how often eject.gateway_failures was
    CONNECT_FAILURES = 14  # counter: how often eject.connect_failures was
    WIDTH = 32


class ControlCell(enum.IntEnum):
    """The control process's own cells."""

    HEARTBEAT = 0
    PID = 1
    FLIPS = 2  # counter: changes of any server's row, so that a reader may skip what it has seen
    WIDTH = 64


class StateCell(enum.IntEnum):
    """A row per server, written by the control process: what checks saw and what the operator wants."""

    OWNER = 0
    HEALTH = 1  # Health
    ADMIN = 2  # Admin
    WEIGHT = 3  # the operator's weight plus one; 0 is the configured weight
    RETURNED = 4  # time when it came back, from which slow_start counts; 0 is never
    EJECTED_UNTIL = 5  # time; 0 or in the past: not ejected. It counts as returned then
    EJECTION_STREAK = 6  # ejections one after the other, which make the next one longer
    CHECKED_AT = 7  # time of the last check
    LAST_RESULT = 8  # CheckResult of the last check
    CHANGED_AT = 9  # time of the last change of HEALTH, ADMIN or EJECTED_UNTIL
    CHECKS = 10  # counters, in the order of CheckResult
    EJECTIONS = 20  # counters, in the order of EjectReason
    EMPTY_BY = 24  # time by which the operator wants its tunnels closed, politely; 0 is never
    WIDTH = 32


class Health(enum.IntEnum):
    """What active checks say of a server."""

    UNKNOWN = 0  # not checked (yet): used
    UP = 1
    DOWN = 2


class Admin(enum.IntEnum):
    """What the operator wants of a server."""

    READY = 0
    DRAIN = 1  # no new sessions; sticky cookies still find it, but not with WebSockets, which are to move
    MAINT = 2  # nothing new at all; tunnels stay


class CheckResult(enum.IntEnum):
    """How an active check ended."""

    OK = 0
    CONNECT = 1  # no connection: refused, unreachable, or its name is not resolved
    TIMEOUT = 2
    TLS = 3
    STATUS = 4  # another status than expected
    BODY = 5  # another body than expected
    PROTOCOL = 6  # no valid answer: malformed, reset, or a wrong WebSocket handshake


class EjectReason(enum.IntEnum):
    """Why a server was ejected."""

    CONSECUTIVE_ERRORS = 0
    GATEWAY_FAILURES = 1
    CONNECT_FAILURES = 2
