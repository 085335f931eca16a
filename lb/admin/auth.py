"""Who may ask.

On a Unix socket the kernel says who the caller is (SO_PEERCRED): root is served, and the user that lb was
started as; the file's permissions (0600, of that user) keep all others away before that. Over TCP every
request but the dashboard's page itself needs the token.

A browser is a caller whose owner may not know what it asks, so whatever the address (people forward Unix
sockets to a local port, too): Host must be the address that is listened on, localhost, an IP literal of the
machine or, listening on all addresses, the machine's own host name, which a name that somebody makes to mean
this machine is not (DNS rebinding); Origin, when there is one, must be that of the page that we serve; and
what changes something must say that it is JSON, which no form of another site can without being asked first.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import struct
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lb.admin.problems import Refused, problem
from lb.control.control import Control
from lb.control.peers import network

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PAGE: Final = "/"  # the dashboard's page holds no figures: it asks for the token itself

_ELSEWHERE: Final = (
    "Host is not the address that the admin API listens on, nor localhost: ask for it by its IP address"
    " (or, where it listens on all, by the machine's own host name), or through a tunnel to localhost"
)

FAILURES: Final = 10  # wrong tokens that an address may show at once
FAILURES_RATE: Final = 0.5  # and a second afterwards
MAX_ADDRESSES: Final = 1024  # addresses that are remembered; the one that failed longest ago goes first


class Connection(NamedTuple):
    """How a request came: `peer` and `local` are IP addresses, empty on a Unix socket, where `uid` and `pid`
    are the caller's."""

    unix: bool
    peer: str = ""
    port: int = 0
    local: str = ""
    uid: int = -1
    pid: int = 0

    @classmethod
    def of(cls, request: web.Request) -> Connection:
        """Raises `Refused` where the client has gone already."""
        peer = None if request.transport is None else request.transport.get_extra_info("socket")
        if peer is None:
            raise Refused(400, "the connection is closed")
        if peer.family == socket.AF_UNIX:
            data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, _ = _CREDENTIALS.unpack(data)
            return cls(unix=True, uid=uid, pid=pid)
        address, port = peer.getpeername()[:2]
        return cls(unix=False, peer=address, port=port, local=peer.getsockname()[0])

    def __str__(self) -> str:
        return f"uid {self.uid} (pid {self.pid})" if self.unix else f"token from {self.peer} port {self.port}"


class Failures:
    """How often each address has failed lately, so that tokens can't be tried at will. IPv6 addresses count
    by their /64."""

    def __init__(self) -> None:
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spent)

    def blocked(self, address: str, now: float) -> bool:
        """Whether `address` has to wait before it is heard again."""
        return self._now(network(address), now) > FAILURES - 1

    def add(self, address: str, now: float) -> None:
        """`address` has failed."""
        key = network(address)
        self._spent[key] = (self._now(key, now) + 1.0, now)
        self._spent.move_to_end(key)
        if len(self._spent) > MAX_ADDRESSES:
            self._spent.popitem(last=False)

    def _now(self, key: str, now: float) -> float:
        spent, since = self._spent.get(key, (0.0, now))
        return max(0.0, spent - (now - since) * FAILURES_RATE)


def caller(request: web.Request) -> str:
    """Who sent `request`, for the audit lines: "uid 0 (pid 12)", or "token from 10.0.0.5 port 4711"."""
    return str(Connection.of(request))


def authenticate(control: Control) -> Middleware:
    """The middleware that lets a request pass, or says why not and closes the connection."""
    failures = Failures()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = Connection.of(request)
        try:
            _check_browser(request, connection, control.spec.admin or "")
            if connection.unix:
                _check_user(connection)
            elif request.path != _PAGE:
                _check_token(request, connection, control.spec.admin_token, failures)
        except Refused as refused:
            who = f"uid {connection.uid}" if connection.unix else connection.peer
            control.log.warning(
                "admin request refused", peer=who, status=refused.status, path=request.path, why=str(refused)
            )
            # Whoever is not let in keeps no place, and what else it has sent already is not read.
            answer = problem(refused.status, refused.detail, refused.headers)
            answer.force_close()
            return answer
        if _changes(request) and request.content_type != "application/json":
            raise Refused(415, "a request that changes something needs Content-Type: application/json")
        response = await handler(request)
        if request.path == _PAGE and not connection.unix:
            response.force_close()  # it needed no token either
        return response

    return middleware


def _changes(request: web.Request) -> bool:
    """Whether a handler that changes something will get `request`; the router has a word of its own for what
    none gets."""
    return request.method not in _SAFE_METHODS and request.match_info.http_exception is None


def _check_user(connection: Connection) -> None:
    if connection.uid not in (0, os.geteuid()):
        raise Refused(403, f"uid {connection.uid} is neither root nor the user that lb was started as")


def _check_token(request: web.Request, connection: Connection, token: str, failures: Failures) -> None:
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(shown.strip().encode("utf-8", "surrogateescape"), token.encode())
    if token and same and scheme.lower() == "bearer":
        return  # whatever its neighbours behind the same address have tried
    now = time.monotonic()
    if failures.blocked(connection.peer, now):
        detail = "too many wrong tokens came from this address: wait, or send the right one"
        raise Refused(429, detail, {"Retry-After": "5"})
    if shown:
        failures.add(connection.peer, now)
    detail = (
        "the token is wrong" if shown else "send the token of admin.token_file: Authorization: Bearer TOKEN"
    )
    raise Refused(401, detail, {"WWW-Authenticate": 'Bearer realm="lb"'})


# --- browsers ------------------------------------------------------------------------------------------


def _check_browser(request: web.Request, connection: Connection, listen: str) -> None:
    hosts = request.headers.getall("Host", [])
    host = host_name(hosts[0]) if len(hosts) == 1 else None
    if host is None or not is_ours(host, connection, listen):
        raise Refused(421, _ELSEWHERE)
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower() not in (
        f"http://{hosts[0]}".lower(),
        f"https://{hosts[0]}".lower(),
    ):
        raise Refused(403, "Origin is another site's")
    if request.path != _PAGE and request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise Refused(403, "a page of another site sent this")


def host_name(host: str) -> str | None:
    """The name or address in a Host field, lower case and without the port; `None` where it is malformed."""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        if not bracket:
            return None
    else:
        name, colon, port = host.partition(":")
        rest = colon + port
    if rest and not (rest.startswith(":") and rest[1:].isascii() and rest[1:].isdigit()):
        return None
    return name.lower() or None


def is_ours(host: str, connection: Connection, listen: str) -> bool:
    """Whether `host` (of a Host field, without the port) means the address `listen`, or this machine."""
    literal = _literal(host)
    if host == "localhost" or (literal is not None and literal.is_loopback):
        return True
    if connection.unix:
        return False
    listened = host_name(listen)
    if host == listened:
        return True
    wildcard = _literal(listened or "0.0.0.0")
    if wildcard is not None and wildcard.is_unspecified:
        # An address can't be made to mean another machine; behind a NAT it need not be one of our
        # interfaces'. What this machine is called is asked of the kernel alone.
        return literal is not None or host == socket.gethostname().lower()
    return literal is not None and literal == _literal(connection.local)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
