"""Overview: is all well, and where to look if it is not?"""

from __future__ import annotations

from typing import Final

from grafana.source.model import (
    ERRORS,
    GREEN,
    NONE_IS_GOOD,
    ORANGE,
    RED,
    YELLOW,
    Json,
    Query,
    Row,
    alerts,
    graph,
    heatmap,
    increase,
    quantile,
    quantiles,
    rate,
    share,
    stat,
    table,
)
from grafana.source.page import HOST, ROUTE, page

REQUESTS: Final = rate("lb_http_requests_total", ROUTE)
FAILED: Final = rate("lb_http_requests_total", ROUTE, 'code=~"5.."')
GAVE_UP: Final = rate("lb_http_requests_total", ROUTE, 'code="499"')
RELOADED: Final = increase("lb_config_reloads_total", HOST, 'result="success"')
NOT_RELOADED: Final = increase("lb_config_reloads_total", HOST, 'result="failure"')
SECONDS: Final = "lb_http_request_duration_seconds"
EXPIRY: Final = f"(lb_tls_certificate_not_after_timestamp_seconds{{{HOST}}} - time()) / 86400"
DAYS: Final = ((None, RED), (3.0, ORANGE), (14.0, GREEN))


def dashboard() -> Json:
    """The first one to open."""
    return page(
        "overview",
        "Overview",
        "Is all well, and where to look if it is not?",
        ("route",),
        (_now(), _traffic(), _latency(), _edge(), _changes()),
    )


def _now() -> Row:
    return Row(
        "Now",
        (
            stat(
                "Instances out",
                "Are all instances scraped, and do they serve? Counts those that do not.",
                Query(f"count(up{{{HOST}}}) - (sum(lb_up{{{HOST}}}) or vector(0))"),
                thresholds=NONE_IS_GOOD,
            ),
            stat(
                "Requests",
                "How much traffic is there? Requests that ended a second, upgrades among them.",
                Query(f"sum({REQUESTS})"),
                unit="reqps",
            ),
            stat(
                "Failed",
                "What share of the requests was answered with 5xx, by the servers or by the load balancer?",
                Query(share(FAILED, REQUESTS, "")),
                unit="percentunit",
                thresholds=ERRORS,
                decimals=2,
            ),
            stat(
                "Slowest 1 %",
                "How long does the slowest request in a hundred take at least? Upgrades are not among them.",
                Query(quantile(0.99, SECONDS, ROUTE)),
                unit="s",
            ),
            stat(
                "WebSockets",
                "How many WebSockets are established?",
                Query(f"sum(lb_websocket_tunnels{{{ROUTE}}})"),
            ),
            stat(
                "Servers out",
                "How many upstream servers are down or ejected? Drained ones are not counted.",
                Query(f'sum(lb_upstream_server_state{{{HOST}, state=~"down|ejected"}})'),
                thresholds=NONE_IS_GOOD,
            ),
            stat(
                "Workers missing",
                "Do all workers serve?",
                Query(f"sum(lb_workers_wanted{{{HOST}}} - lb_workers{{{HOST}}})"),
                thresholds=NONE_IS_GOOD,
            ),
            stat(
                "Last reload",
                "Is what is in the files what is served? Failed on any instance shows as failed.",
                Query(f"min(lb_config_last_reload_successful{{{HOST}}})"),
                thresholds=((None, RED), (1.0, GREEN)),
                words={0: "failed", 1: "ok"},
            ),
        ),
    )


def _traffic() -> Row:
    by_class = f'label_replace({REQUESTS}, "class", "${{1}}xx", "code", "(.).*")'
    return Row(
        "Traffic",
        (
            graph(
                "Requests by route",
                "Which route has more or less traffic than usual?",
                Query(f"sum by (route) ({REQUESTS})", "{{route}}"),
                unit="reqps",
                stack=True,
            ),
            graph(
                "Requests by code",
                "What do clients get? 499 in 4xx: the client left before there was a response.",
                Query(f"sum by (class) ({by_class})", "{{class}}"),
                unit="reqps",
                stack=True,
            ),
            graph(
                "Failed by route",
                "Which route fails? Share of the requests that was answered with 5xx.",
                Query(share(FAILED, REQUESTS, "route"), "{{route}}"),
                unit="percentunit",
                thresholds=ERRORS,
            ),
            graph(
                "Failed by code",
                "How does it fail? 502: a server broke, 503: none was free, 504: one was too slow.",
                Query(f"sum by (route, code) ({FAILED})", "{{route}} {{code}}"),
                unit="reqps",
            ),
            graph(
                "Clients that gave up",
                "Where do clients lose patience? Clients that left before there was a response (499).",
                Query(f"sum by (route) ({GAVE_UP})", "{{route}}"),
                unit="reqps",
            ),
            graph(
                "In flight by route",
                "Where do requests pile up? Requests that are being served, WebSockets not among them.",
                Query(f"sum by (route) (lb_http_requests_in_flight{{{ROUTE}}})", "{{route}}"),
            ),
        ),
    )


def _latency() -> Row:
    return Row(
        "Latency",
        (
            graph(
                "Response time",
                "Is it slow for all, or for a few?",
                *quantiles(SECONDS, ROUTE),
                unit="s",
            ),
            graph(
                "Slowest 1 % by route",
                "Which route is slow?",
                Query(quantile(0.99, SECONDS, ROUTE, "route"), "{{route}}"),
                unit="s",
            ),
            heatmap(
                "Response times",
                "Is there a second group of slow requests? Requests a second by how long they took.",
                SECONDS,
                ROUTE,
            ),
        ),
    )


def _edge() -> Row:
    return Row(
        "Listeners and TLS",
        (
            graph(
                "Connections of the limit",
                "How near is a listener to limits.connections? What comes beyond is closed at once.",
                Query(
                    f"max by (instance, listener) (lb_listener_connections{{{HOST}}}"
                    f" / lb_listener_connections_limit{{{HOST}}})",
                    "{{instance}} {{listener}}",
                ),
                unit="percentunit",
                thresholds=((None, GREEN), (0.8, YELLOW), (0.95, RED)),
            ),
            graph(
                "New connections",
                "Is there a rush of clients? Connections that were accepted a second.",
                Query(f"sum by (listener) ({rate('lb_listener_connections_total', HOST)})", "{{listener}}"),
                unit="cps",
            ),
            graph(
                "Refused before a route",
                "Who speaks wrong HTTP, asks for what is not there, or comes over the limit?"
                " The reasons are those of the access log.",
                Query(
                    f"sum by (listener, reason) ({rate('lb_listener_rejected_total', HOST)})",
                    "{{listener}} {{reason}}",
                ),
                unit="reqps",
            ),
            graph(
                "Open connections",
                "How many clients are connected? WebSockets are among them.",
                Query(f"sum by (listener) (lb_listener_connections{{{HOST}}})", "{{listener}}"),
            ),
            graph(
                "TLS handshakes",
                "Can clients shake hands? A client that does not trust the certificate shows as failed.",
                Query(
                    f"sum by (version, result) ({rate('lb_tls_handshakes_total', HOST)})",
                    "{{result}} {{version}}",
                ),
                unit="ops",
            ),
            table(
                "Certificates",
                "Which certificate expires next? Renewed ones are read at a reload.",
                Query(f"sort(min by (name) ({EXPIRY}))"),
                columns={"name": "Certificate", "Value": "Days left"},
                unit="none",
                thresholds=DAYS,
            ),
        ),
    )


def _changes() -> Row:
    return Row(
        "Changes and losses",
        (
            alerts("Alerts", "What is firing, or about to?"),
            table(
                "Versions",
                "Does every instance run the same version, in the same form?",
                Query(f"count by (version, form) (lb_build_info{{{HOST}}})"),
                columns={"version": "Version", "form": "Form", "Value": "Instances"},
            ),
            graph(
                "Age of the configuration",
                "When was the configuration loaded that is served, and do all instances have it since then?",
                Query(
                    f"time() - lb_config_last_reload_success_timestamp_seconds{{{HOST}}}",
                    "{{instance}}",
                ),
                unit="dtdurations",
            ),
            stat(
                "Reloads",
                "How often was the configuration changed in this time?",
                Query(f"sum({RELOADED})", instant=True),
                decimals=0,
                width=4,
            ),
            stat(
                "Failed reloads",
                "How many reloads changed nothing, as something was wrong? The error log says what.",
                Query(f"sum({NOT_RELOADED})", instant=True),
                thresholds=NONE_IS_GOOD,
                decimals=0,
                width=4,
            ),
            stat(
                "Log lines lost",
                "Is the access log complete? Lines are lost when the disk is full or too slow.",
                Query(
                    f"sum({increase('lb_access_log_dropped_total', HOST)})"
                    f" + sum({increase('lb_error_log_dropped_total', HOST)})",
                    instant=True,
                ),
                thresholds=NONE_IS_GOOD,
                decimals=0,
                width=4,
            ),
            stat(
                "Counted as other",
                "Are the labels of the figures complete? Totals are true all the same.",
                Query(f"sum({increase('lb_scoreboard_series_full_total', HOST)})", instant=True),
                thresholds=NONE_IS_GOOD,
                decimals=0,
                width=4,
            ),
            stat(
                "First expiry",
                "When must a certificate be renewed at the latest?",
                Query(f"min({EXPIRY})"),
                unit="d",
                thresholds=DAYS,
                decimals=1,
                width=4,
            ),
            stat(
                "Up for",
                "When was an instance started last?",
                Query(f"min(time() - lb_start_time_seconds{{{HOST}}})"),
                unit="dtdurations",
                width=4,
            ),
        ),
    )
