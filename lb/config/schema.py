"""The whole configuration. What a key means, its default and what it may hold stand in one line each.

`route` and `pool` have their own modules; the reference in the documentation is generated from here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Annotated, Literal

from lb.config import text
from lb.config.kinds import (
    Boolean,
    Choice,
    CloseCode,
    Duration,
    Fraction,
    Integer,
    ListOf,
    Planned,
    Size,
    Text,
)
from lb.config.pool import Pool
from lb.config.problems import Problem, Source
from lb.config.route import Route
from lb.config.tables import ArrayOfTables, Conflict, Key, NamedTables, Table, TableOf
from workers.contract.scoreboard import MAX_WORKERS

_NAME = Text(text.name, "name")
_FILE = Text(text.file_path, "path of a file")


class Rebalance(Table, frozen=True, kw_only=True):
    """The kernel spreads connections over the workers and does not know how long they live. When the numbers
    of WebSockets in the workers drift apart, the fullest hands some over to the emptiest; their ends do not
    notice. Those with TLS on either side stay where they are."""

    tunnels: Annotated[
        int, Key(Integer(1, 1_000_000), "Workers that differ by fewer WebSockets are left alone.")
    ] = 50
    percent: Annotated[
        int,
        Key(Integer(1, 100), "So are those that differ by less than this share of the average worker's."),
    ] = 10
    pace: Annotated[int, Key(Integer(1, 100_000), "WebSockets handed over a second, at most.")] = 200


class Process(Table, frozen=True, kw_only=True):
    """The processes. One master binds, forks and supervises; workers carry the traffic."""

    workers: Annotated[
        int | None, Key(Integer(1, MAX_WORKERS, word="auto"), "Worker processes; auto: one per core.")
    ] = None
    user: Annotated[
        str | None,
        Key(Text(text.user, "name of a user"), "User that workers run as after root has bound.", live=False),
    ] = None
    pid_file: Annotated[
        str | None, Key(_FILE, "File for the master's process id, locked for its life.", live=False)
    ] = None
    shutdown_timeout: Annotated[
        float, Key(Duration("0s"), "At a graceful stop, what is left after this is closed.")
    ] = 30.0
    wedged_after: Annotated[
        float, Key(Duration("1s", "1h"), "A worker or keeper that stands still this long is replaced.")
    ] = 10.0
    rebalance: Annotated[
        Rebalance | None, Key(TableOf(Rebalance, off=True), "Evens out the workers' numbers of WebSockets.")
    ] = Rebalance()


class ListenTls(Table, frozen=True, kw_only=True):
    """TLS 1.2 and 1.3 at a listener."""

    certs: Annotated[
        tuple[str, ...],
        Key(
            ListOf(Text(text.file_path, "path or glob"), least=1),
            "PEM files; a file holds certificate and key, or its key lies beside it. The client's name "
            "chooses; the first is the default. Read again at reload.",
        ),
    ]


class ListenTimeouts(Table, frozen=True, kw_only=True):
    """What clients get time for."""

    tls_handshake: Annotated[float, Key(Duration(), "For the TLS handshake.")] = 10.0
    request_head: Annotated[float, Key(Duration(), "For the whole head of a request; then 408.")] = 10.0
    body_idle: Annotated[float, Key(Duration(), "Without a byte of the request's body; then 408.")] = 30.0
    keep_alive: Annotated[float, Key(Duration(), "Between two requests of a connection.")] = 75.0
    send: Annotated[float, Key(Duration(), "Without the client taking a byte of what waits for it.")] = 30.0


class ListenLimits(Table, frozen=True, kw_only=True):
    """What clients may send."""

    head_bytes: Annotated[int, Key(Size("1KiB", "1MiB"), "Request line and headers; then 414 or 431.")] = (
        32 * 1024
    )
    headers: Annotated[int, Key(Integer(1, 10_000), "Header fields; then 431.")] = 100
    body_bytes: Annotated[int, Key(Size("0B", "1024TiB"), "Body of a request; then 413.")] = 100 * 1024 * 1024
    connections: Annotated[
        int, Key(Integer(1, 10_000_000), "Client connections at the same time, over all workers.")
    ] = 50_000


class Listen(Table, frozen=True, kw_only=True):
    """Where clients connect."""

    name: str
    bind: Annotated[
        tuple[str, ...],
        Key(
            ListOf(Text(text.bind_address, '":port", "address:port", "[v6]:port" or "unix:/path"'), least=1),
            'Addresses. ":8080" is every address of the machine, IPv6 and IPv4.',
        ),
    ]
    trusted_proxies: Annotated[
        tuple[str, ...],
        Key(
            ListOf(Text(text.network, 'network such as "10.0.0.0/8"')),
            "Networks of proxies before this one, whose X-Forwarded-* and Forwarded are believed.",
        ),
    ] = ()
    proxy_protocol: Annotated[None, Key(Planned(False), "The PROXY protocol of a proxy before this one.")] = (
        None
    )
    tls: Annotated[ListenTls | None, Key(TableOf(ListenTls), "TLS; absent: plain HTTP.")] = None
    redirect_https: Annotated[
        bool,
        Key(Boolean(), "Answers every request with a redirect to https, at the port of the TLS listener."),
    ] = False
    timeouts: Annotated[ListenTimeouts, Key(TableOf(ListenTimeouts), "What clients get time for.")] = (
        ListenTimeouts()
    )
    limits: Annotated[ListenLimits, Key(TableOf(ListenLimits), "What clients may send.")] = ListenLimits()

    def conflicts(self) -> Iterator[Conflict]:
        if self.redirect_https and self.tls is not None:
            hint = "give plain HTTP a listener of its own"
            yield Conflict(("redirect_https", "tls"), "this listener speaks TLS itself", hint)


class Drain(Table, frozen=True, kw_only=True):
    """How WebSockets are asked to move: with a Close frame to both sides, a few at a time, so that clients
    come back as a drizzle rather than a storm."""

    close_code: Annotated[
        int,
        Key(
            CloseCode(),
            "Code of that Close frame: at a shutdown, where a server is drained or removed, and at max_age. "
            "1012 asks most clients to connect again, 1001 says that the server goes away.",
        ),
    ] = 1012
    spread: Annotated[
        float,
        Key(
            Duration("0s", "1d"),
            "Time over which they are closed, evenly; 0s: all at once. At a shutdown it is cut to fit into "
            "shutdown_timeout.",
        ),
    ] = 30.0
    hard_stop: Annotated[
        float, Key(Duration("0s"), "WebSockets of a worker that has lost its master are closed after this.")
    ] = 600.0


class AccessLog(Table, frozen=True, kw_only=True):
    """One line per exchange; a WebSocket has one when it opens and one when it closes."""

    path: Annotated[
        str,
        Key(
            Text(text.file_path, '"-", "off" or path of a file'),
            '"-" is stdout, "off" is none; a file is opened anew on SIGUSR1.',
        ),
    ] = "-"
    format: Annotated[
        Literal["json", "combined"], Key(Choice("json", "combined"), "One JSON object a line, or as Apache.")
    ] = "json"
    sample: Annotated[float, Key(Fraction(), "Share of the exchanges that is written, evenly spread.")] = 1.0


class Metrics(Table, frozen=True, kw_only=True):
    """Metrics for Prometheus: /metrics, /healthz and /readyz, and nothing else. Without this table there
    are none."""

    listen: Annotated[
        str,
        Key(
            Text(text.bind_address, '":port", "address:port", "[v6]:port" or "unix:/path"'),
            "Where they are served.",
            live=False,
        ),
    ] = "127.0.0.1:9180"


class Admin(Table, frozen=True, kw_only=True):
    """Admin API and dashboard. On a Unix socket, who may use them is decided by its permissions."""

    listen: Annotated[
        str | None,
        Key(
            Text(text.admin_address, '"unix:/path", ":port", "address:port", "[v6]:port" or "off"'),
            "Where they are served. Absent: a Unix socket beside the pid_file (lb.pid has lb.admin.sock), "
            "else admin.sock in /run/lb for root, and in a private folder for others.",
            live=False,
        ),
    ] = None
    token_file: Annotated[
        str | None,
        Key(
            _FILE,
            "File with what callers over TCP must show (Authorization: Bearer), 16 characters or more; made "
            "at the first start. Read again at reload.",
        ),
    ] = None

    def conflicts(self) -> Iterator[Conflict]:
        tcp = self.listen not in (None, "off") and not str(self.listen).startswith("unix:")
        if tcp and self.token_file is None:
            hint = 'add token_file = "admin.token"; the file is made at the start'
            yield Conflict(("listen", "token_file"), "a TCP address needs a token_file", hint)
        if not tcp and self.token_file is not None:
            yield Conflict(("token_file", "listen"), "is for TCP addresses only", "remove it")


class Dns(Table, frozen=True, kw_only=True):
    """How names of servers are resolved."""

    nameservers: Annotated[
        tuple[str, ...],
        Key(
            ListOf(Text(text.nameserver, "IP address, or address:port")),
            "DNS servers to ask; absent: those of the system.",
        ),
    ] = ()


class Config(Table, frozen=True, kw_only=True):
    """A whole configuration file that has been validated. Relative paths in it are kept as written, see
    `resolve`."""

    source: Source
    text_warnings: tuple[Problem, ...] = ()
    file_warnings: tuple[Problem, ...] = ()  # of the files that it names, as they were compiled last
    process: Annotated[Process, Key(TableOf(Process), "The processes.")] = Process()
    listen: Annotated[tuple[Listen, ...], Key(NamedTables(Listen, _NAME), "Where clients connect.")] = ()
    route: Annotated[tuple[Route, ...], Key(ArrayOfTables(Route), "Which requests go where.")] = ()
    pool: Annotated[tuple[Pool, ...], Key(NamedTables(Pool, _NAME), "The servers.")] = ()
    drain: Annotated[Drain, Key(TableOf(Drain), "The polite end of tunnels.")] = Drain()
    access_log: Annotated[AccessLog, Key(TableOf(AccessLog), "The access log.")] = AccessLog()
    metrics: Annotated[Metrics | None, Key(TableOf(Metrics), "Metrics for Prometheus.")] = None
    admin: Annotated[Admin, Key(TableOf(Admin), "Admin API and dashboard.")] = Admin()
    dns: Annotated[Dns, Key(TableOf(Dns), "How names of servers are resolved.")] = Dns()

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What does not keep it from being used, and should be looked at."""
        return self.text_warnings + self.file_warnings

    def resolve(self, path: str) -> pathlib.Path:
        """A file named in the configuration; relative ones start in its folder."""
        return self.source.base / path

    def admin_address(self, default: str) -> str | None:
        """Where the admin API listens: `default` ("unix:/path") where the file doesn't say, `None` where it
        is off."""
        return None if self.admin.listen == "off" else self.admin.listen or default
