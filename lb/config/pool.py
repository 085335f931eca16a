"""The part of the schema that says where requests go: `[pool.NAME]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from lb.config import text
from lb.config.checks import Discover, Eject, Health
from lb.config.kinds import Boolean, Choice, Duration, Integer, Kind, ListOf, Text
from lb.config.problems import format_value
from lb.config.tables import ArrayOfTables, Conflict, Key, Override, Table, TableOf
from lb.config.text import Wrong

_SRV: Final = "srv://"
_ADDRESS = Text(text.server_address, '"host:port", "[v6]:port" or "unix:/path"')


class Server(Table, frozen=True, kw_only=True):
    """One server of a pool."""

    name: Annotated[
        str,
        Key(
            Text(text.server_name, "name"),
            "Name in logs, metrics and commands. Empty means the address. "
            "What belongs to the server follows its name through a reload.",
        ),
    ] = ""
    address: Annotated[str, Key(_ADDRESS, "Where the server is reached.")]
    weight: Annotated[int, Key(Integer(1, 1000), "Share of the requests, relative to the others.")] = 1
    backup: Annotated[
        bool, Key(Boolean(), "Used only while none of the servers without this mark can be.")
    ] = False
    max_connections: Annotated[
        int | None,
        Key(
            Integer(1, 1_000_000, word="off"),
            "Exchanges and tunnels at the same time, over all workers; more wait in the queue.",
        ),
    ] = None
    health: Annotated[
        Health | Literal["off"] | None,
        Key(
            Override(Health, 'table of keys of the pool\'s health, or "off"'),
            'What is different for this server\'s health checks; "off": it is never checked.',
        ),
    ] = None

    @property
    def label(self) -> str:
        """The name by which it is known: its own, else its address."""
        return self.name or self.address


class _ServerAddress(Kind):
    """An address that stands for a whole server, or a name whose SRV records stand for any number."""

    type_name = f'{_ADDRESS.type_name}, or "srv://name"'

    def convert(self, value: object) -> Server:
        if isinstance(value, str) and value.startswith(_SRV):
            return Server(address=_SRV + text.srv_name(value))
        if isinstance(value, dict):
            raise Wrong(f"expected a string: {self.type_name}", "tables are written [[pool.NAME.server]]")
        return Server(address=_ADDRESS.convert(value))

    def show(self, value: Any) -> str:
        return format_value(value.address)


class Sticky(Table, frozen=True, kw_only=True):
    """Keeps a client at its server. Exactly one of cookie, header, query and ip. A client whose server
    can't be used gets a new one."""

    cookie: Annotated[
        str | None,
        Key(
            Text(text.cookie_name, "name of the cookie"),
            "Remembers the server in a signed cookie that tells nobody an address.",
        ),
    ] = None
    key_file: Annotated[
        str | None,
        Key(
            Text(text.file_path, "path of a file"),
            "File with 32 bytes or more that sign the cookie; made at the first start. Without it, cookies "
            "hold until the load balancer is restarted. Several load balancers need the same file.",
        ),
    ] = None
    header: Annotated[
        str | None,
        Key(Text(text.header_name, "name of the header"), "Equal values of this header, equal server."),
    ] = None
    query: Annotated[
        str | None,
        Key(Text(text.query_name, "name of the parameter"), "Equal values in the query, equal server."),
    ] = None
    ip: Annotated[bool, Key(Boolean(), "Equal client addresses, equal server.")] = False

    def conflicts(self) -> Iterator[Conflict]:
        given = [key for key in ("cookie", "header", "query") if getattr(self, key) is not None]
        given += ["ip"] if self.ip else []
        if len(given) > 1:
            yield Conflict(tuple(given), f"only one of {', '.join(given)} can be")
        if not given:
            yield Conflict(
                ("cookie", "header", "query", "ip"), "sticky needs one of cookie, header, query, ip"
            )
        if self.key_file is not None and self.cookie is None:
            yield Conflict(("key_file", "cookie"), "is for sticky cookies only", 'add cookie = "lb"')


class Queue(Table, frozen=True, kw_only=True):
    """Requests that wait while every server is at its max_connections."""

    length: Annotated[
        int, Key(Integer(0, 1_000_000), "Requests that may wait, in each worker; 0 refuses at once.")
    ] = 1000
    timeout: Annotated[float, Key(Duration(), "A request that waited this long is answered with 503.")] = 5.0


class Admission(Table, frozen=True, kw_only=True):
    """How fast WebSocket handshakes reach the servers, over all workers: clients that all come back at once
    wait in line, those with a sticky key first."""

    rate: Annotated[int, Key(Integer(1, 1_000_000), "Handshakes a second.")]
    burst: Annotated[
        int, Key(Integer(1, 1_000_000), "Handshakes let through at once after a quiet time.")
    ] = 1000
    queue: Annotated[
        int,
        Key(
            Integer(0, 1_000_000),
            "Handshakes that may wait; what exceeds it gets 503 with Retry-After. 0: nothing waits.",
        ),
    ] = 5000


class PoolTimeouts(Table, frozen=True, kw_only=True):
    """What the servers get time for."""

    connect: Annotated[float, Key(Duration(), "To accept a connection, TLS handshake included.")] = 2.0
    response_head: Annotated[float, Key(Duration(), "To answer after the request was sent.")] = 60.0
    body_idle: Annotated[float, Key(Duration(), "Without a byte of the response's body.")] = 60.0


class KeepAlive(Table, frozen=True, kw_only=True):
    """Idle connections to the servers that are kept for the next request."""

    max_idle: Annotated[
        int, Key(Integer(0, 100_000), "Connections kept per server and worker; 0 keeps none.")
    ] = 64
    idle: Annotated[
        float,
        Key(Duration(), "For how long. Less than the servers' own keep-alive timeout spares retries."),
    ] = 60.0


class PoolTls(Table, frozen=True, kw_only=True):
    """TLS to the servers. `tls = {}` switches it on."""

    verify: Annotated[
        bool, Key(Boolean(), "Whether the certificate must be valid for the server's name.")
    ] = True
    sni: Annotated[
        str | None,
        Key(Text(text.host_name, "host name"), "Name to ask for and to verify; else the address's host."),
    ] = None
    ca: Annotated[
        str | None,
        Key(
            Text(text.file_path, "path of a file"),
            "PEM file with the authorities to trust instead of the system's. Read at start and reload.",
        ),
    ] = None

    def conflicts(self) -> Iterator[Conflict]:
        if self.ca is not None and not self.verify:
            yield Conflict(("ca", "verify"), "is not used where verify = false", "remove one of them")


class Pool(Table, frozen=True, kw_only=True):
    """Servers that share the requests of the routes that name the pool."""

    name: str
    servers: Annotated[
        tuple[Server, ...],
        Key(
            ListOf(_ServerAddress()),
            'Addresses of the servers. For more about each, see `server`. "srv://_ws._tcp.example.com" '
            "stands for the servers of that name's SRV records. Names are resolved again as DNS says.",
        ),
    ] = ()
    server: Annotated[
        tuple[Server, ...],
        Key(
            ArrayOfTables(Server), "The servers, one table `[[pool.NAME.server]]` each, instead of `servers`."
        ),
    ] = ()
    balance: Annotated[
        Literal["round-robin", "least-conn", "p2c", "random", "hash"],
        Key(
            Choice("round-robin", "least-conn", "p2c", "random", "hash"),
            "How a server is chosen. least-conn takes the one with the fewest exchanges and tunnels over all "
            "workers, p2c the better of two drawn; hash gives equal keys to equal servers. All of them "
            "respect weights.",
        ),
    ] = "round-robin"
    hash_on: Annotated[
        str,
        Key(
            Text(text.hash_key, '"ip", "path", "header:NAME", "query:NAME" or "cookie:NAME"'),
            'What `balance = "hash"` hashes.',
        ),
    ] = "ip"
    sticky: Annotated[Sticky | None, Key(TableOf(Sticky), "Keeps a client at its server.")] = None
    health: Annotated[Health | None, Key(TableOf(Health, off=True), "Active health checks.")] = None
    eject: Annotated[Eject | None, Key(TableOf(Eject, off=True), "Takes servers out that fail.")] = None
    slow_start: Annotated[
        float | None,
        Key(
            Duration("100ms", "24h", off=True),
            "Time in which the share of a server grows to its whole after it came back or was added.",
        ),
    ] = None
    queue: Annotated[Queue, Key(TableOf(Queue), "Waiting for a server that is full.")] = Queue()
    admission: Annotated[
        Admission | None, Key(TableOf(Admission, off=True), "Limits WebSocket handshakes a second.")
    ] = None
    timeouts: Annotated[PoolTimeouts, Key(TableOf(PoolTimeouts), "What the servers get time for.")] = (
        PoolTimeouts()
    )
    keep_alive: Annotated[KeepAlive, Key(TableOf(KeepAlive), "Idle connections that are kept.")] = KeepAlive()
    tls: Annotated[PoolTls | None, Key(TableOf(PoolTls), "TLS to the servers.")] = None
    discover: Annotated[
        Discover | None, Key(TableOf(Discover), "Servers from a file, beside those that are named here.")
    ] = None
    on_removed: Annotated[
        Literal["keep", "paced-close"],
        Key(
            Choice("keep", "paced-close"),
            "Tunnels on a server that a reload removes: they live on, or are asked to move, see `[drain]`.",
        ),
    ] = "keep"

    @property
    def every_server(self) -> tuple[Server, ...]:
        """The servers, however they were written. Those that are found are not among them."""
        return tuple(server for server in self.servers if not server.address.startswith(_SRV)) + self.server

    @property
    def srv(self) -> tuple[str, ...]:
        """The names whose SRV records are looked up."""
        listed = (server.address for server in self.servers)
        return tuple(address.removeprefix(_SRV) for address in listed if address.startswith(_SRV))

    @property
    def discovers(self) -> bool:
        """Whether servers are found, and may come and go without a reload."""
        return bool(self.srv or self.discover)

    def conflicts(self) -> Iterator[Conflict]:
        if self.servers and self.server:
            yield Conflict(("servers", "server"), "servers and [[server]] tables exclude each other")
        if not self.every_server and not self.discovers:
            hint = f'add servers = ["127.0.0.1:9000"] to [pool.{self.name}]'
            yield Conflict(("servers", "server", "discover"), "a pool needs a server", hint)
        yield from self._doubles()
        if self.hash_on != "ip" and self.balance != "hash":
            yield Conflict(("hash_on", "balance"), 'is used with balance = "hash" only')
        unix = [server.address for server in self.every_server if server.address.startswith("unix:")]
        if self.tls is not None and self.tls.verify and self.tls.sni is None and unix:
            yield Conflict(
                ("tls", "servers", "server"), f"{unix[0]} has no name to verify", 'add sni = "name" to tls'
            )

    def _doubles(self) -> Iterator[Conflict]:
        seen: set[str] = set()
        for server in self.every_server:
            if server.label in seen:
                hint = "give each a name of its own"
                yield Conflict(("server",), f"two servers are called {server.label}", hint)
            seen.add(server.label)
