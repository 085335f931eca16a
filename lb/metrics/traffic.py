"""Listeners and routes: what comes from the clients."""

from __future__ import annotations

from typing import Final

from lb.control.figures import OTHER, Figures
from lb.metrics.sheet import Sheet
from workers.contract.errors import CONNECTION_LIMIT
from workers.contract.series import CLOSE_3XXX, CLOSE_4XXX, CLOSE_NONE
from workers.contract.snapshot import ListenerSpec, RetiredRow, RouteSpec, Snapshot

_CLOSE_CODES: Final = {CLOSE_NONE: "none", CLOSE_3XXX: "3xxx", CLOSE_4XXX: "4xxx"} | {
    code: str(code) for code in range(1000, 1016)
}


def code_label(status: int) -> str:
    """The label of a status (`series.status_label`)."""
    return str(status) if status else OTHER


def collect_certificates(sheet: Sheet, snapshot: Snapshot) -> None:
    """When certificates expire. Several listeners may have the same; of two with one name the first to
    expire counts."""
    expire: dict[str, float] = {}
    for listener in snapshot.listeners:
        for certificate in listener.tls.certificates if listener.tls else ():
            name = certificate.name
            expire[name] = min(expire.get(name, certificate.not_after), certificate.not_after)
    for name, not_after in expire.items():
        sheet.add("lb_tls_certificate_not_after_timestamp_seconds", not_after, name)


def collect_listener(sheet: Sheet, figures: Figures, spec: ListenerSpec) -> None:
    """One listener."""
    figure = figures.listener(spec)
    sheet.add("lb_listener_connections", figure.connections, spec.name)
    sheet.add("lb_listener_connections_total", figure.accepted, spec.name)
    sheet.add("lb_listener_connections_limit", spec.limits.connections, spec.name)
    rejected = {CONNECTION_LIMIT.reason: 0} | figure.rejected_by
    sheet.add_each("lb_listener_rejected_total", rejected, spec.name)


def collect_route(sheet: Sheet, figures: Figures, spec: RouteSpec) -> None:
    """One route."""
    name = spec.name
    figure = figures.route(spec)
    for (method, status), count in figure.requests_by.items():
        sheet.add("lb_http_requests_total", count, name, method, code_label(status))
    sheet.add("lb_http_requests_in_flight", figure.in_flight, name)
    sheet.add_histogram("lb_http_request_duration_seconds", figure.seconds, name)
    sheet.add_each("lb_websocket_handshakes_total", figure.handshakes, name)
    sheet.add_histogram("lb_websocket_handshake_duration_seconds", figure.handshake, name)
    sheet.add_histogram("lb_websocket_tunnel_duration_seconds", figure.tunnel, name)
    sheet.add("lb_websocket_bytes_total", figure.client_bytes, name, "from_client")
    sheet.add("lb_websocket_bytes_total", figure.server_bytes, name, "from_server")
    sheet.add("lb_websocket_messages_total", figure.client_messages, name, "from_client")
    sheet.add("lb_websocket_messages_total", figure.server_messages, name, "from_server")
    if spec.websocket.ping is not None:
        sheet.add_histogram("lb_websocket_ping_duration_seconds", figure.ping, name)
        sheet.add("lb_websocket_ping_timeouts_total", figure.ping_timeouts, name)
    for (initiator, code), count in figure.closes.items():
        label = _CLOSE_CODES.get(code, OTHER)
        sheet.add("lb_websocket_closes_total", count, name, initiator, label)


def collect_gone_routes(
    sheet: Sheet, figures: Figures, gone: tuple[RetiredRow, ...], named: set[str]
) -> None:
    """Routes that a reload took away, while something of theirs is still in flight. One whose name is used
    again (`named`) would be told twice."""
    for row in gone:
        in_flight = figures.in_flight(row)
        if in_flight and row.name not in named:
            named.add(row.name)
            sheet.add("lb_http_requests_in_flight", in_flight, row.name)


def collect_tunnels(sheet: Sheet, figures: Figures) -> None:
    """Tunnels by where they come from and go to."""
    for (route, pool, server), count in figures.tunnels().items():
        sheet.add("lb_websocket_tunnels", count, route, pool, server)
