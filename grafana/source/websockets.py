"""WebSockets: do clients get one, does it stay, and what flows?"""

from __future__ import annotations

from typing import Final

from grafana.source.model import (
    ERRORS,
    GREEN,
    RED,
    YELLOW,
    Json,
    Query,
    Row,
    graph,
    heatmap,
    quantile,
    quantiles,
    rate,
    share,
    stat,
)
from grafana.source.page import HOST, ROUTE, page

TUNNELS: Final = f'lb_websocket_tunnels{{{ROUTE}, pool=~"$pool"}}'
HANDSHAKES: Final = rate("lb_websocket_handshakes_total", ROUTE)
OPENED: Final = rate("lb_websocket_handshakes_total", ROUTE, 'result="accepted"')
# What the client did itself is not counted as failed.
REFUSED: Final = rate("lb_websocket_handshakes_total", ROUTE, 'result=~"rejected|refused|failed"')
CLOSES: Final = rate("lb_websocket_closes_total", ROUTE)
BROKEN: Final = rate("lb_websocket_closes_total", ROUTE, 'code="none"')
RESULT_OK: Final = 'result="ok"'
RESULT_NOT_OK: Final = 'result!="ok"'
BYTES: Final = rate("lb_websocket_bytes_total", ROUTE)
MESSAGES: Final = rate("lb_websocket_messages_total", ROUTE)


def dashboard() -> Json:
    """For those who run chat, games, live data."""
    return page(
        "websockets",
        "WebSockets",
        "Do clients get a WebSocket, does it stay, and what flows?",
        ("route", "pool"),
        (_now(), _open(), _handshakes(), _ends(), _moves(), _data()),
    )


def _now() -> Row:
    return Row(
        "Now",
        (
            stat("Established", "How many WebSockets are there?", Query(f"sum({TUNNELS})"), width=4),
            stat(
                "Opened",
                "How fast do new ones come?",
                Query(f"sum({OPENED})"),
                unit="ops",
                width=4,
            ),
            stat(
                "Refused",
                "What share of the handshakes failed? Clients that left are not counted as failed.",
                Query(share(REFUSED, HANDSHAKES, "")),
                unit="percentunit",
                thresholds=ERRORS,
                decimals=2,
                width=4,
            ),
            stat(
                "Broken",
                "What share of the WebSockets that ended had no Close frame?"
                " Phones that lose their network end so too: look for a change.",
                Query(share(BROKEN, CLOSES, "")),
                unit="percentunit",
                decimals=1,
                width=4,
            ),
            stat(
                "Messages",
                "How much is said, in both directions?",
                Query(f"sum({MESSAGES})"),
                unit="mps",
                width=4,
            ),
            stat(
                "Data",
                "How many bytes flow, in both directions?",
                Query(f"sum({BYTES})"),
                unit="Bps",
                width=4,
            ),
        ),
    )


def _open() -> Row:
    return Row(
        "Over time",
        (
            graph(
                "WebSockets by route",
                "Did clients drop off, or come in a rush?",
                Query(f"sum by (route) ({TUNNELS})", "{{route}}"),
                stack=True,
            ),
            graph(
                "WebSockets by server",
                "Which servers hold them, and is a drained one empty yet?",
                Query(f"sum by (pool, server) ({TUNNELS})", "{{pool}} {{server}}"),
            ),
            graph(
                "Fullest server to the average",
                "Are WebSockets spread evenly? 1 is even; one that came back is filled by new ones alone.",
                Query(
                    f"max by (pool) (sum by (pool, server) ({TUNNELS}))"
                    f" / avg by (pool) (sum by (pool, server) ({TUNNELS}))",
                    "{{pool}}",
                ),
                thresholds=((None, GREEN), (1.5, YELLOW), (3.0, RED)),
            ),
            graph(
                "Change in five minutes",
                "Do more go than come? Below 0 the number falls.",
                Query(f"sum by (route) (delta({TUNNELS}[5m]))", "{{route}}"),
                floor=None,
            ),
            graph(
                "Opened and closed",
                "Do clients come back as fast as they go? A rush of both is a reconnect storm.",
                Query(f"sum({OPENED})", "opened"),
                Query(f"sum({CLOSES})", "closed"),
                unit="ops",
            ),
            graph(
                "WebSockets by instance",
                "Does each load balancer have its share?",
                Query(f"sum by (instance) ({TUNNELS})", "{{instance}}"),
            ),
        ),
    )


def _handshakes() -> Row:
    return Row(
        "Handshakes",
        (
            graph(
                "Handshakes by result",
                "Do clients get in? rejected: the server said no; refused: the load balancer did;"
                " failed: the server, or the way to it.",
                Query(f"sum by (result) ({HANDSHAKES})", "{{result}}"),
                unit="ops",
                stack=True,
            ),
            graph(
                "Refused by route",
                "Which route lets nobody in? Clients that left are not counted as failed.",
                Query(share(REFUSED, HANDSHAKES, "route"), "{{route}}"),
                unit="percentunit",
                thresholds=ERRORS,
            ),
            graph(
                "Time of the handshake",
                "How long do clients wait for their 101?",
                *quantiles("lb_websocket_handshake_duration_seconds", ROUTE),
                unit="s",
            ),
        ),
    )


def _ends() -> Row:
    return Row(
        "Ends",
        (
            graph(
                "Ends by who began",
                "Who closes? none: a connection broke; lb: the load balancer, by a limit or an operator.",
                Query(f"sum by (initiator) ({CLOSES})", "{{initiator}}"),
                unit="ops",
                stack=True,
            ),
            graph(
                "Ends by code",
                "Why? 1000 and 1001 are normal, 1011 is the server's error, 1012 a restart, none a break.",
                Query(f"sum by (code) ({CLOSES})", "{{code}}"),
                unit="ops",
                stack=True,
            ),
            graph(
                "Broken by route",
                "Where do connections break? Share of the ends without a Close frame.",
                Query(share(BROKEN, CLOSES, "route"), "{{route}}"),
                unit="percentunit",
            ),
            graph(
                "Lifetime",
                "How long do WebSockets live? A sharp line is somebody's timeout.",
                *quantiles("lb_websocket_tunnel_duration_seconds", ROUTE),
                unit="dtdurations",
            ),
            graph(
                "Half live shorter than, by route",
                "Which route's clients come and go?",
                Query(quantile(0.5, "lb_websocket_tunnel_duration_seconds", ROUTE, "route"), "{{route}}"),
                unit="dtdurations",
            ),
            heatmap(
                "Lifetimes",
                "Is there a group that ends at the same age? WebSockets that ended a second, by their age.",
                "lb_websocket_tunnel_duration_seconds",
                ROUTE,
            ),
        ),
    )


def _moves() -> Row:
    migrations = "lb_websocket_migrations_total"
    tunnels = f"sum by (instance) (lb_worker_tunnels{{{HOST}}}) > 0"
    return Row(
        "Moves and dead peers",
        (
            graph(
                "Handed to another process",
                "Do WebSockets change hands, and why? Their clients notice nothing of it.",
                Query(f"sum by (reason) ({rate(migrations, HOST, RESULT_OK)})", "{{reason}}"),
                unit="ops",
                stack=True,
            ),
            graph(
                "Not handed over",
                "Was one lost? unproved: it had to be closed; gone: its ends had left; refused: it stayed.",
                Query(
                    f"sum by (reason, result) ({rate(migrations, HOST, RESULT_NOT_OK)})",
                    "{{reason}} {{result}}",
                ),
                unit="ops",
            ),
            graph(
                "Crash-safe and movable",
                "What share would outlive its worker, and can go to another one? Not those with TLS.",
                Query(
                    f"sum by (instance) (lb_worker_tunnels_crash_safe{{{HOST}}}) / ({tunnels})",
                    "{{instance}} crash-safe",
                ),
                Query(
                    f"sum by (instance) (lb_worker_tunnels_movable{{{HOST}}}) / ({tunnels})",
                    "{{instance}} movable",
                ),
                unit="percentunit",
            ),
            graph(
                "Waiting to be closed",
                "How far is the drain? WebSockets whose turn to be asked to move has not come.",
                Query(
                    f"sum by (instance) (lb_websocket_drain_queue_length{{{HOST}}})",
                    "{{instance}}",
                ),
            ),
            graph(
                "Round trip of a ping",
                "How far away are the peers? Only routes with websocket.ping.",
                *quantiles("lb_websocket_ping_duration_seconds", ROUTE),
                unit="s",
            ),
            graph(
                "Pings without an answer",
                "Do peers leave without a word? They were closed.",
                Query(f"sum by (route) ({rate('lb_websocket_ping_timeouts_total', ROUTE)})", "{{route}}"),
                unit="ops",
            ),
        ),
    )


def _data() -> Row:
    return Row(
        "Messages and bytes",
        (
            graph(
                "Messages by route",
                "Does anything flow, and which way? Not counted where websocket.inspect is off.",
                Query(f"sum by (route, direction) ({MESSAGES})", "{{route}} {{direction}}"),
                unit="mps",
            ),
            graph(
                "Bytes",
                "Who sends how much? Frames and all, as they flow.",
                Query(f"sum by (route, direction) ({BYTES})", "{{route}} {{direction}}"),
                unit="Bps",
            ),
            graph(
                "Bytes of a message",
                "Did messages grow? Bytes for each message, frame heads, pings and Close frames among them.",
                Query(
                    f"sum by (route, direction) ({BYTES}) / sum by (route, direction) ({MESSAGES})",
                    "{{route}} {{direction}}",
                ),
                unit="bytes",
            ),
            graph(
                "Messages of a WebSocket",
                "Are WebSockets silent that should not be? Messages a second for each, in both directions.",
                Query(
                    f"sum by (route) ({MESSAGES}) / sum by (route) (lb_websocket_tunnels{{{ROUTE}}})",
                    "{{route}}",
                ),
                unit="mps",
            ),
            graph(
                "Bytes by instance",
                "Does one load balancer carry more than the others?",
                Query(f"sum by (instance) ({rate('lb_websocket_bytes_total', HOST)})", "{{instance}}"),
                unit="Bps",
                stack=True,
            ),
        ),
    )
