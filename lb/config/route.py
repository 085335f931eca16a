"""The part of the schema that says which requests go where: `[[route]]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from lb.config import text
from lb.config.kinds import Boolean, Choice, Duration, HeaderMap, Integer, ListOf, Text
from lb.config.tables import Conflict, Key, Table, TableOf

_HEADER = Text(text.ruled_header_name, "header name")
_HEADERS = HeaderMap(_HEADER, Text(text.header_value, "header value"))


class Headers(Table, frozen=True, kw_only=True):
    """Header rules. Names ignore case. Headers that frame the message or belong to one connection are
    the load balancer's own."""

    request_set: Annotated[
        tuple[tuple[str, str], ...], Key(_HEADERS, "Set in the request to the server, replacing what came.")
    ] = ()
    request_remove: Annotated[tuple[str, ...], Key(ListOf(_HEADER), "Removed from the request.")] = ()
    response_set: Annotated[
        tuple[tuple[str, str], ...], Key(_HEADERS, "Set in the response to the client, replacing what came.")
    ] = ()
    response_remove: Annotated[tuple[str, ...], Key(ListOf(_HEADER), "Removed from the response.")] = ()

    def conflicts(self) -> Iterator[Conflict]:
        yield from _set_and_removed("request", self.request_set, self.request_remove)
        yield from _set_and_removed("response", self.response_set, self.response_remove)
        if any(name.lower() == "host" for name in self.request_remove):
            yield Conflict(("request_remove",), "Host can't be removed: HTTP/1.1 needs it", "set it instead")


def _set_and_removed(
    side: str, pairs: tuple[tuple[str, str], ...], removed: tuple[str, ...]
) -> Iterator[Conflict]:
    lower = {name.lower() for name in removed}
    for name, _ in pairs:
        if name.lower() in lower:
            keys = (f"{side}_remove", f"{side}_set")
            yield Conflict(keys, f"{name} is set as well", "setting replaces what came")


class WebSocket(Table, frozen=True, kw_only=True):
    """WebSockets of a route. They work with no configuration."""

    idle: Annotated[
        float | None,
        Key(Duration(off=True), "A tunnel without a byte in either direction is closed after this."),
    ] = 3600.0
    max_age: Annotated[
        float | None,
        Key(Duration(off=True), "A tunnel is closed after this, politely: with drain.close_code."),
    ] = None
    ping: Annotated[
        float | None,
        Key(
            Duration("1s", off=True),
            "A side that is silent this long is sent a ping, and closed when it does not answer for as long "
            "again. Its pong goes no further. Finds peers that are gone without a word.",
        ),
    ] = None
    inspect: Annotated[
        bool,
        Key(
            Boolean(),
            "Reads frame headers on the way, for message counts and close codes in log and metrics, and to "
            "put pings and Close frames between frames. Without it tunnels that have to end are cut off.",
        ),
    ] = True
    crash_safe: Annotated[
        bool,
        Key(
            Boolean(),
            "Tunnels outlive a crash of their worker with every byte; false: only those that have none in "
            "flight. Where either side is TLS or a Unix socket it can't be had, and such tunnels end "
            "with their worker; `lb tunnels` shows which are safe.",
        ),
    ] = True

    def conflicts(self) -> Iterator[Conflict]:
        if self.ping is not None and not self.inspect:
            message = "needs inspect = true: without it nobody knows where a frame ends and a ping can go"
            yield Conflict(("ping", "inspect"), message, 'remove inspect = false, or write ping = "off"')


class Retry(Table, frozen=True, kw_only=True):
    """When another server is tried. Only where that is safe: nothing of the request reached a server, or
    its method is idempotent and its body can be sent again."""

    attempts: Annotated[int, Key(Integer(1, 10), "Servers tried, the first included; 1 is never again.")] = 2
    on: Annotated[
        tuple[Literal["connect", "reset", "503"], ...],
        Key(
            ListOf(Choice("connect", "reset", "503")),
            "After what: the connection failed, it was closed without an answer, the answer was 503.",
        ),
    ] = ("connect", "reset")


class Route(Table, frozen=True, kw_only=True):
    """The first route in file order that matches host and path gets the request."""

    name: Annotated[
        str,
        Key(
            Text(text.name, "name"),
            "Name in logs and metrics. Without it: its pool's, where no other route has that, else route-1, "
            "route-2 ... by place.",
        ),
    ] = ""
    host: Annotated[
        str | None,
        Key(Text(text.route_host, '"www.example.com" or "*.example.com"'), "Host to match; absent: all."),
    ] = None
    path: Annotated[
        str | None,
        Key(Text(text.route_path, '"/exact" or "/prefix/*"'), "Path to match, without query; absent: all."),
    ] = None
    pool: Annotated[str, Key(Text(text.name, "name of a pool"), "The pool whose servers answer.")]
    strip_prefix: Annotated[
        bool, Key(Boolean(), "The server sees the path without its prefix: for /api/*, /api/x becomes /x.")
    ] = False
    headers: Annotated[Headers, Key(TableOf(Headers), "Header rules.")] = Headers()
    websocket: Annotated[WebSocket, Key(TableOf(WebSocket), "WebSockets of this route.")] = WebSocket()
    retry: Annotated[Retry, Key(TableOf(Retry), "When another server is tried.")] = Retry()

    def conflicts(self) -> Iterator[Conflict]:
        if self.strip_prefix and self.path is None:
            yield Conflict(("strip_prefix", "path"), "needs a path", 'add path = "/prefix/*"')
