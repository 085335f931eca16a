"""What the admin API answers: plain data, the same for curl, `lb top` and the dashboard.

Times are Unix seconds, ages and durations seconds. Counters count since the load balancer started and
survive workers, reloads and the control process; whoever wants rates takes differences.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

AdminState = Literal["ready", "drain", "maint"]
# What a server is in one word: what the operator wants first, then what was seen.
ServerState = Literal["up", "unchecked", "down", "ejected", "starting", "drain", "maint"]
HealthWord = Literal["up", "down", "unknown"]

MAX_WEIGHT: Final = 1000  # as in the configuration
MAX_SECONDS: Final = 1e9
MAX_SPREAD: Final = 86_400.0
# The codes that one who sends a Close frame may choose.
CLOSE_CODES: Final = (
    {"minimum": 1000, "maximum": 1003},
    {"minimum": 1007, "maximum": 1014},
    {"minimum": 3000, "maximum": 4999},
)
TunnelId = Annotated[str, Meta(pattern=r"^[0-9]{1,4}-[0-9]{1,10}-[0-9]{1,18}$")]
Word = Annotated[str, Meta(max_length=1024)]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all answers."""


class Problem(View, frozen=True, kw_only=True):
    """Why a request was refused, after RFC 9457 (application/problem+json)."""

    title: str
    status: int
    detail: str = ""


class LastCheck(View, frozen=True, kw_only=True):
    """The last active check of a server. `result` is "ok", "connect", "timeout", "tls", "status", "body" or
    "protocol"; `detail` says it for people."""

    result: str
    detail: str
    at: float
    seconds: float  # how long it took; 0 is not known


class ServerView(View, frozen=True, kw_only=True):
    """One server of a pool."""

    name: str
    pool: str
    address: str
    addresses: tuple[str, ...]  # what its name is resolved to
    state: ServerState
    admin: AdminState
    health: HealthWord
    why: str  # why it is in that state, for people; empty while all is well
    since: float  # when the state changed last; 0 is since the start
    ejected_until: float  # 0: not ejected
    weight: int  # configured
    effective_weight: float  # with the operator's weight and the slow start; 0 while it gets nothing new
    backup: bool
    max_connections: int | None
    active: int  # exchanges in flight and tunnels
    tunnels: int
    connections: int  # open connections that carry HTTP or wait idle
    idle: int
    requests: int
    errors: int
    retries: int
    checks_ok: int
    checks_failed: int
    ejections: int
    last_check: LastCheck | None
    tunnels_by_worker: dict[str, int]  # by worker slot
    empty_by: float  # until when its tunnels are asked to move; 0: they are not


class AdmissionView(View, frozen=True, kw_only=True):
    """How a pool's WebSocket handshakes are let through."""

    rate: float  # a second
    burst: int
    queue: int  # that may wait
    waiting: int
    admitted: int
    refused: int


class PoolView(View, frozen=True, kw_only=True):
    """One pool. `panic` says that too few servers are usable and all are used."""

    name: str
    balance: str
    servers: tuple[ServerView, ...]
    usable: int
    panic: bool
    queued: int
    retries: int
    routes: tuple[str, ...]
    admission: AdmissionView | None  # None: as they come


class RouteView(View, frozen=True, kw_only=True):
    """One route."""

    name: str
    host: str | None
    path: str | None
    pool: str
    in_flight: int
    requests: int
    tunnels: int
    client_bytes: int
    server_bytes: int
    client_messages: int
    server_messages: int
    handshakes: dict[str, int]  # by result
    errors: int  # requests answered with 5xx
    ping_timeouts: int  # tunnels closed since a side did not answer a ping


class CertificateView(View, frozen=True, kw_only=True):
    """One certificate of a listener."""

    name: str
    hosts: tuple[str, ...]
    not_after: float


class ListenerView(View, frozen=True, kw_only=True):
    """One listener."""

    name: str
    bind: tuple[str, ...]
    tls: bool
    connections: int
    accepted: int
    rejected: int
    rejected_by_reason: dict[str, int]
    certificates: tuple[CertificateView, ...]


class WorkerView(View, frozen=True, kw_only=True):
    """One worker process."""

    slot: int
    pid: int
    state: str  # starting, loading, serving, caretaking (for a dead one's tunnels), leaving
    uptime: float
    generation: int
    connections: int
    tunnels: int
    crash_safe: int  # tunnels that would outlive it
    movable: int  # tunnels that can be handed to another worker
    closing: int  # tunnels that wait for their turn to be closed politely
    keeper_pid: int  # of the process that holds its tunnels for its successor; 0: there is none
    accepted: int
    requests: int
    loop_lag: float
    wedged: bool
    cpu_seconds: float
    memory_bytes: int  # resident set
    open_files: int  # -1: not known


class ReloadView(View, frozen=True, kw_only=True):
    """How a reload ended."""

    ok: bool
    generation: int
    changes: tuple[str, ...]
    error: str
    seconds: float
    at: float


class UpgradeView(View, frozen=True, kw_only=True):
    """How an upgrade in place ended, from the version `before` to `after`."""

    ok: bool
    before: str
    after: str
    error: str
    seconds: float
    at: float


class StatusView(View, frozen=True, kw_only=True):
    """The whole in one answer: what `lb top` and the dashboard ask for again and again."""

    version: str
    form: str = ""  # of the hot modules: compiled or interpreted
    pid: int
    config: str
    state: str  # starting, serving, reloading, upgrading, stopping
    ready: bool
    problems: tuple[str, ...]  # what an operator should know now, most important first
    time: float
    uptime: float
    generation: int
    workers_wanted: int
    reloads_succeeded: int
    reloads_failed: int
    last_reload: ReloadView | None
    upgrades_succeeded: int
    upgrades_failed: int
    last_upgrade: UpgradeView | None
    restarts: dict[str, int]
    keeper_restarts: dict[str, int]
    migrations: dict[str, dict[str, int]]  # tunnels that changed hands, by reason and result
    workers: tuple[WorkerView, ...]
    listeners: tuple[ListenerView, ...]
    routes: tuple[RouteView, ...]
    pools: tuple[PoolView, ...]
    control_pid: int


class TunnelView(View, frozen=True, kw_only=True):
    """One established WebSocket. `id` is "slot-pid-number"."""

    id: str
    worker: int
    route: str
    pool: str
    server: str
    client: str
    host: str
    path: str
    request_id: str
    age: float
    idle: float
    client_bytes: int
    server_bytes: int
    client_messages: int  # -1: frames are not inspected
    server_messages: int
    tls: bool
    crash_safe: bool  # it would outlive a crash of its worker with every byte


class TunnelPage(View, frozen=True, kw_only=True):
    """A page of tunnels. `cursor` asks for the next one; empty: this is the last. `missing` names workers
    that did not answer, so that an incomplete list is not taken for the whole."""

    tunnels: tuple[TunnelView, ...]
    total: int
    cursor: str
    missing: tuple[int, ...]


class Closed(View, frozen=True, kw_only=True):
    """How many tunnels are being closed, or will be within the spread."""

    count: int
    missing: tuple[int, ...]


class Moved(View, frozen=True, kw_only=True):
    """How many tunnels are being moved; `servers` says from which."""

    count: int
    servers: dict[str, int]
    missing: tuple[int, ...]


class ConfigView(View, frozen=True, kw_only=True):
    """The active configuration: the file as it was read when it was loaded."""

    path: str
    generation: int
    text: str


class EventView(View, frozen=True, kw_only=True):
    """One event; `id` grows by one and is the id of the server-sent event."""

    id: int
    kind: str
    text: str
    at: float
    fields: dict[str, str | int | float]


class ServerChange(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator wants of a server; `None` leaves it. `weight` -1 goes back to the configured. With
    `admin` "drain" its tunnels are asked to move, evenly over `spread` seconds (`None`: as `drain.spread` is
    configured), unless `keep_tunnels` is set."""

    admin: AdminState | None = None
    spread: Annotated[float, Meta(ge=0, le=MAX_SPREAD)] | None = None
    keep_tunnels: bool = False
    weight: Annotated[int, Meta(ge=-1, le=MAX_WEIGHT)] | None = None


class TunnelClose(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tunnels to close, and how. At least one condition is needed; all that are given must match.
    `all` closes every one. The code is one that an endpoint may send (RFC 6455, section 7.4); the reason has
    at most 123 bytes."""

    ids: Annotated[tuple[TunnelId, ...], Meta(max_length=1000)] = ()
    route: Word = ""
    pool: Word = ""
    server: Word = ""
    client: Word = ""
    older: Annotated[float, Meta(ge=0, le=MAX_SECONDS)] = 0.0
    idle: Annotated[float, Meta(ge=0, le=MAX_SECONDS)] = 0.0
    all: bool = False
    code: Annotated[int, Meta(ge=1000, le=4999, extra_json_schema={"anyOf": CLOSE_CODES})] = 1001
    reason: Annotated[str, Meta(max_length=123)] = ""
    spread: Annotated[float, Meta(ge=0, le=MAX_SPREAD)] = 0.0


class TunnelMove(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tunnels of `pool` are to move: `count` of them, or as many as make its servers even by weight;
    from `server`, or from those that have more than their share; to the server `to`, or to where the pool's
    balance leads. They are closed evenly over `spread` seconds (`None`: as `drain.spread` is configured) with
    `code` (`None`: `drain.close_code`)."""

    pool: Annotated[str, Meta(min_length=1, max_length=1024)]
    server: Word = ""
    to: Word = ""
    count: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    spread: Annotated[float, Meta(ge=0, le=MAX_SPREAD)] | None = None
    code: Annotated[int, Meta(ge=1000, le=4999, extra_json_schema={"anyOf": CLOSE_CODES})] | None = None
    reason: Annotated[str, Meta(max_length=123)] = ""


class Nothing(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An empty object: what is asked for needs no more words."""
