"""The frozen routing tables that the master compiles from a configuration and every worker serves from.

Everything here is validated already: a worker never meets a bad host, an unknown name or a duration
with a unit. Durations are seconds (float), sizes are bytes (int). `0` means "no limit" nowhere; an absent
limit is `None`.

A snapshot travels as MessagePack in a sealed memfd (a thousand routes do not fit into one channel
message), so every struct is plain data. `FORMAT` changes when an older reader would misread a newer
snapshot.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FORMAT = 3


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all snapshot structs: immutable, keyword-only, compact on the wire."""


class ListenTimeouts(Spec, frozen=True, kw_only=True):
    """Client-side timeouts in seconds."""

    tls_handshake: float = 10.0
    request_head: float = 10.0
    body_idle: float = 30.0
    keep_alive: float = 75.0
    send: float = 30.0


class ListenLimits(Spec, frozen=True, kw_only=True):
    """Client-side limits. `connections` is the total over all workers."""

    head_bytes: int = 32 * 1024
    headers: int = 100
    body_bytes: int = 100 * 1024 * 1024
    connections: int = 50_000


class CertificateSpec(Spec, frozen=True, kw_only=True):
    """One certificate. The PEM (chain and key together) comes as a descriptor beside the snapshot,
    under `name` (see `messages.CertificateFd`); the key itself is never part of the snapshot."""

    name: str
    # DNS names of the subjectAltName, lower case, "*.example.com" for wildcards.
    hosts: tuple[str, ...]
    not_after: float = 0.0  # Unix time


class ListenTls(Spec, frozen=True, kw_only=True):
    """TLS at a listener. The first certificate is the default for clients that send no (known) name."""

    certificates: tuple[CertificateSpec, ...]


class ListenerSpec(Spec, frozen=True, kw_only=True):
    """One `[listen.NAME]` table."""

    slot: int  # index of this listener's cells on the scoreboard; stable across reloads
    owner: int = 0  # number of the row's owner: the generation that gave it to this listener
    name: str
    bind: tuple[str, ...]  # canonical: "0.0.0.0:8080", "[::]:8080", "unix:/path"
    trusted_proxies: tuple[str, ...] = ()  # CIDRs
    tls: ListenTls | None = None
    redirect_https: bool = False
    redirect_port: int = 443  # the port put into the https:// address
    timeouts: ListenTimeouts = ListenTimeouts()
    limits: ListenLimits = ListenLimits()


class HeaderRules(Spec, frozen=True, kw_only=True):
    """Header rules of a route. Names keep the operator's spelling; comparison ignores case."""

    request_set: tuple[tuple[str, str], ...] = ()
    request_remove: tuple[str, ...] = ()
    response_set: tuple[tuple[str, str], ...] = ()
    response_remove: tuple[str, ...] = ()


class WebSocketSpec(Spec, frozen=True, kw_only=True):
    """Tunnel settings of a route; seconds, `None` switches a limit off. `ping` is how long a side may be
    silent before it is asked for a sign of life, and how long it has to answer. With `crash_safe`, bytes in
    flight outlive the worker; without, only a tunnel that has none does."""

    idle: float | None = 3600.0
    max_age: float | None = None
    ping: float | None = None
    inspect: bool = True
    crash_safe: bool = True


class RetrySpec(Spec, frozen=True, kw_only=True):
    """When another server is tried. `attempts` counts the first one too: 1 means never."""

    attempts: int = 2
    on: tuple[Literal["connect", "reset", "503"], ...] = ("connect", "reset")


class RouteSpec(Spec, frozen=True, kw_only=True):
    """One `[[route]]`. `host` and `path` are patterns, see `workers.core.routing`."""

    slot: int
    owner: int = 0
    name: str
    host: str | None = None  # lower case, no port: "a.example.com" or "*.example.com"
    path: str | None = None  # "/exact" or "/prefix/*"
    pool: str  # key in Snapshot.pools
    strip_prefix: bool = False
    headers: HeaderRules = HeaderRules()
    websocket: WebSocketSpec = WebSocketSpec()
    retry: RetrySpec = RetrySpec()


class ServerSpec(Spec, frozen=True, kw_only=True):
    """One server of a pool. Exactly one of `host`/`port` and `path` (Unix socket) is set."""

    slot: int  # index of this server's cells on the scoreboard; stable across reloads
    owner: int = 0
    name: str
    host: str | None = None  # an IP address, or a name to resolve
    # What `host` was resolved to by the control process; empty: the worker resolves it itself.
    addresses: tuple[str, ...] = ()
    port: int = 0
    path: str | None = None
    weight: int = 1
    backup: bool = False
    max_connections: int | None = None  # total over all workers


class StickySpec(Spec, frozen=True, kw_only=True):
    """Where the stickiness key comes from. `key` (32 bytes) signs the cookie; for the other kinds the
    request's own value is hashed onto the servers."""

    kind: Literal["cookie", "header", "query", "ip"]
    name: str = ""
    key: bytes = b""


class HashSpec(Spec, frozen=True, kw_only=True):
    """What `balance = "hash"` hashes."""

    kind: Literal["ip", "path", "header", "query", "cookie"] = "ip"
    name: str = ""


class UpstreamTimeouts(Spec, frozen=True, kw_only=True):
    """Server-side timeouts in seconds."""

    connect: float = 2.0
    response_head: float = 60.0
    body_idle: float = 60.0


class QueueSpec(Spec, frozen=True, kw_only=True):
    """Requests that wait for a connection when every server is at `max_connections`."""

    length: int = 1000
    timeout: float = 5.0


class KeepAliveSpec(Spec, frozen=True, kw_only=True):
    """Idle connections kept per server and worker, and for how long."""

    max_idle: int = 64
    idle: float = 60.0


class UpstreamTls(Spec, frozen=True, kw_only=True):
    """TLS to the servers. `ca` is PEM text; empty means the system's store. `sni` empty means the
    server's own host name."""

    verify: bool = True
    sni: str = ""
    ca: str = ""


class HealthSpec(Spec, frozen=True, kw_only=True):
    """Active checks of one server, done by the control process; seconds.

    A server is down after `fall` failed checks in a row, and up again after `rise` good ones. `port` and
    `host` (the Host field, and the name to verify) default to the server's own; `status` holds inclusive
    ranges; `body` must occur in the answer's first 64 KiB. `tls` `None`: as the pool does."""

    type: Literal["http", "tcp", "websocket"] = "http"
    path: str = "/"
    every: float = 2.0
    timeout: float = 1.0
    fall: int = 3
    rise: int = 2
    port: int | None = None
    host: str | None = None
    status: tuple[tuple[int, int], ...] = ((200, 299),)
    body: str | None = None
    tls: bool | None = None


class EjectSpec(Spec, frozen=True, kw_only=True):
    """Passive ejection. The first three are counts in a row as one worker sees them (`None` is off): errors
    of any kind (5xx answers among them), gateway failures (502, 503, 504, resets, timeouts, malformed
    answers), failures to connect. An ejection lasts `duration` seconds times the number of ejections in a
    row, at most `max_duration`. Never more than `max_percent` of the pool are ejected. While fewer than
    `panic_percent` of the pool can be used, all are that the operator has not taken out (0: never)."""

    consecutive_errors: int | None = 5
    gateway_failures: int | None = None
    connect_failures: int | None = None
    duration: float = 30.0
    max_duration: float = 300.0
    max_percent: int = 50
    panic_percent: int = 0


class AdmissionSpec(Spec, frozen=True, kw_only=True):
    """How many WebSocket handshakes a pool's servers get: `rate` a second, `burst` at once, `queue` wait.
    Totals over all workers."""

    rate: float
    burst: int = 1000
    queue: int = 5000


class PoolSpec(Spec, frozen=True, kw_only=True):
    """One `[pool.NAME]` table. `servers` may be empty where they are discovered; `checks` has the active
    check of each server in the same order, or is empty."""

    slot: int = 0
    owner: int = 0
    name: str
    servers: tuple[ServerSpec, ...]
    checks: tuple[HealthSpec | None, ...] = ()
    eject: EjectSpec | None = None
    slow_start: float | None = None
    balance: Literal["round-robin", "least-conn", "p2c", "random", "hash"] = "round-robin"
    hash_on: HashSpec = HashSpec()
    sticky: StickySpec | None = None
    queue: QueueSpec = QueueSpec()
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    keep_alive: KeepAliveSpec = KeepAliveSpec()
    tls: UpstreamTls | None = None
    admission: AdmissionSpec | None = None
    # What becomes of tunnels to a server that a reload takes away.
    on_removed: Literal["keep", "paced-close"] = "keep"


class DrainSpec(Spec, frozen=True, kw_only=True):
    """How tunnels are asked to move (a Close frame with `close_code`, evenly over `spread` seconds), and how
    long what is still open may live when its process must go."""

    close_code: int = 1012
    spread: float = 30.0
    hard_stop: float = 600.0


class AccessLogSpec(Spec, frozen=True, kw_only=True):
    """`path` "-" is stdout, "off" is none, else a file that the master opens and passes on."""

    path: str = "-"
    format: Literal["json", "combined"] = "json"
    sample: float = 1.0


class RetiredRow(Spec, frozen=True, kw_only=True):
    """A scoreboard row whose route or server is gone from the configuration, though tunnels or exchanges on
    it may still live. `pool` is the server's; empty for a route."""

    slot: int
    owner: int
    name: str
    pool: str = ""


class Snapshot(Spec, frozen=True, kw_only=True):
    """One whole configuration, as the workers serve it. `generation` grows by one per commit."""

    generation: int
    format: int = FORMAT
    listeners: tuple[ListenerSpec, ...] = ()
    routes: tuple[RouteSpec, ...] = ()  # in file order: the first match wins
    pools: tuple[PoolSpec, ...] = ()
    drain: DrainSpec = DrainSpec()
    access_log: AccessLogSpec = AccessLogSpec()
    retired_routes: tuple[RetiredRow, ...] = ()
    retired_servers: tuple[RetiredRow, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)

# What msgspec raises for damaged bytes: text that is no UTF-8 and deep nesting have errors of their own.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class SnapshotError(ValueError):
    """A snapshot that this code can't serve: damaged, or of another format."""


def encode(snapshot: Snapshot) -> bytes:
    """MessagePack bytes of `snapshot`."""
    return _encoder.encode(snapshot)


def decode(data: bytes | memoryview) -> Snapshot:
    """The snapshot in `data`. Raises `SnapshotError` where it is damaged or of another format."""
    try:
        snapshot = _decoder.decode(data)
    except DECODE_ERRORS as error:
        raise SnapshotError(f"snapshot can't be decoded: {error}") from error
    if snapshot.format != FORMAT:
        raise SnapshotError(f"snapshot has format {snapshot.format}, this code reads {FORMAT}")
    return snapshot
