"""What the API offers, in one table: the routes are made from it, and the OpenAPI description too."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from lb.admin.requests import EventsQuery, Query, RecentQuery, TunnelQuery
from lb.admin.views import (
    Closed,
    ConfigView,
    EventView,
    ListenerView,
    Moved,
    Nothing,
    PoolView,
    ReloadView,
    RouteView,
    ServerChange,
    ServerView,
    StatusView,
    TunnelClose,
    TunnelMove,
    TunnelPage,
    WorkerView,
)

PREFIX: Final = "/api/v1"
EVENT_STREAM: Final = "text/event-stream"
_POOL: Final = {"pool": "chat"}
_SERVER: Final = {"pool": "chat", "server": "10.0.0.11:9000"}


class Operation(NamedTuple):
    """One route. `answer` is the struct (or a list of it) that a 200 holds, `None`: something else than JSON
    of ours; `path` is what its parameters are called, with an example each."""

    name: str
    method: str
    route: str
    summary: str
    answer: Any
    tag: str
    query: type[Query] = Query
    path: dict[str, str] = {}  # noqa: RUF012  (never changed)
    body: Any = None
    example: Any = None  # of the body
    waits: bool = False  # for the master or a worker, which may not answer: 503
    content: str = "application/json"


OPERATIONS: Final = (
    Operation("status", "GET", "/status", "Everything in one answer, problems first", StatusView, "status"),
    Operation("workers", "GET", "/workers", "The worker processes", list[WorkerView], "status"),
    Operation("listeners", "GET", "/listeners", "The listeners", list[ListenerView], "status"),
    Operation("routes", "GET", "/routes", "The routes in matching order", list[RouteView], "status"),
    Operation("pools", "GET", "/pools", "All pools with their servers", list[PoolView], "servers"),
    Operation("pool", "GET", "/pools/{pool}", "One pool with its servers", PoolView, "servers", path=_POOL),
    Operation(
        "server", "GET", "/pools/{pool}/servers/{server}", "One server", ServerView, "servers", path=_SERVER
    ),
    Operation(
        "change_server", "PATCH", "/pools/{pool}/servers/{server}",
        "Drain a server, put it in maintenance, make it ready again, or change its weight",
        ServerView, "servers", path=_SERVER, body=ServerChange, example=ServerChange(admin="drain"),
    ),
    Operation(
        "tunnels", "GET", "/tunnels", "Established WebSockets, page by page", TunnelPage, "tunnels",
        query=TunnelQuery,
    ),
    Operation(
        "close_tunnels", "POST", "/tunnels/close", "Close WebSockets with a Close frame to both sides",
        Closed, "tunnels", body=TunnelClose, waits=True,
        example=TunnelClose(pool="chat", server="10.0.0.11:9000", code=1012, reason="moving", spread=30.0),
    ),
    Operation(
        "move_tunnels", "POST", "/tunnels/move",
        "Make a pool's servers even: clients of some WebSockets are asked to come again, and go elsewhere",
        Moved, "tunnels", body=TunnelMove, waits=True, example=TunnelMove(pool="chat", spread=60.0),
    ),
    Operation(
        "reload", "POST", "/reload",
        "Reload the configuration. 200 too where it is refused: `ok` says how it went",
        ReloadView, "configuration", body=Nothing, example=Nothing(), waits=True,
    ),
    Operation(
        "config", "GET", "/config", "The active configuration, as it was read", ConfigView, "configuration"
    ),
    Operation(
        "events", "GET", "/events",
        "Events as they happen (server-sent events: id is the number, event the kind, data an EventView)",
        None, "events", query=EventsQuery, waits=True, content=EVENT_STREAM,
    ),
    Operation(
        "recent_events", "GET", "/events/recent", "The last events, oldest first", list[EventView], "events",
        query=RecentQuery,
    ),
    Operation("openapi", "GET", "/openapi.json", "This description", None, "status"),
)  # fmt: skip
