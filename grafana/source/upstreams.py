"""Upstreams: can the servers be reached, do they answer, and is the work spread?"""

from __future__ import annotations

from typing import Final

from grafana.source.model import (
    BLUE,
    ERRORS,
    GREEN,
    NONE_IS_GOOD,
    ORANGE,
    RED,
    YELLOW,
    Json,
    Query,
    Row,
    graph,
    halves,
    increase,
    quantile,
    quantiles,
    rate,
    share,
    stat,
    timeline,
)
from grafana.source.page import POOL, page

RESPONSES: Final = rate("lb_upstream_requests_total", POOL)
RESPONSES_5XX: Final = rate("lb_upstream_requests_total", POOL, 'code=~"5.."')
ERRORS_ALL: Final = rate("lb_upstream_errors_total", POOL)
RETRIES: Final = rate("lb_upstream_retries_total", POOL)
CHECKS: Final = rate("lb_upstream_health_checks_total", POOL)
CHECKS_FAILED: Final = rate("lb_upstream_health_checks_total", POOL, 'result!="ok"')
LOOKUPS: Final = rate("lb_sticky_lookups_total", POOL)

# The worst that an instance sees counts, so the values grow with it.
STATES: Final = {
    1: ("up", GREEN),
    2: ("unchecked", "super-light-green"),
    3: ("starting", YELLOW),
    4: ("drain", BLUE),
    5: ("maint", "purple"),
    6: ("ejected", ORANGE),
    7: ("down", RED),
}


def _in_state(states: str) -> str:
    return f'sum(lb_upstream_server_state{{{POOL}, state=~"{states}"}})'


def dashboard() -> Json:
    """For those who run the servers behind."""
    return page(
        "upstreams",
        "Upstreams",
        "Can the servers be reached, do they answer, and is the work spread?",
        ("pool",),
        (_now(), _states(), _answers(), _errors(), _connections(), _admission(), _stickiness()),
    )


def _now() -> Row:
    return Row(
        "Now",
        (
            stat(
                "Usable",
                "What share of the servers gets new requests?",
                Query(f"{_in_state('up|unchecked|starting')} / {_in_state('.+')}"),
                unit="percentunit",
                thresholds=((None, RED), (0.5, YELLOW), (1.0, GREEN)),
            ),
            stat("Down", "How many fail their checks?", Query(_in_state("down")), thresholds=NONE_IS_GOOD),
            stat(
                "Ejected",
                "How many were taken out for failing in real traffic?",
                Query(_in_state("ejected")),
                thresholds=NONE_IS_GOOD,
            ),
            stat(
                "Taken out",
                "How many did an operator drain or put into maintenance? Did anybody forget one?",
                Query(_in_state("drain|maint")),
                thresholds=((None, "text"), (1.0, BLUE)),
            ),
            stat(
                "Answered with 5xx",
                "What share of the servers' own answers is 5xx?",
                Query(share(RESPONSES_5XX, RESPONSES, "")),
                unit="percentunit",
                thresholds=ERRORS,
                decimals=2,
            ),
            stat(
                "Failed",
                "How many exchanges a second got no whole answer?",
                Query(f"sum({ERRORS_ALL})"),
                unit="ops",
            ),
            stat(
                "Retried",
                "How many requests a second went to a second server?",
                Query(f"sum({RETRIES})"),
                unit="ops",
            ),
            stat(
                "Waiting",
                "How many requests wait for a server that is not full?",
                Query(f"sum(lb_upstream_queue_length{{{POOL}}})"),
                thresholds=((None, GREEN), (1.0, YELLOW), (100.0, RED)),
            ),
        ),
    )


def _states() -> Row:
    values = " or ".join(
        f'lb_upstream_server_state{{{POOL}, state="{word}"}} * {value}' for value, (word, _) in STATES.items()
    )
    return Row(
        "States",
        (
            timeline(
                "Servers",
                "Which server was out, when and why? The worst state that one of the instances sees.",
                Query(f"max by (pool, server) ({values})", "{{pool}} {{server}}"),
                STATES,
            ),
            graph(
                "Checks that failed",
                "What do health checks see? connect, timeout, tls, status, body, protocol.",
                Query(f"sum by (pool, server, result) ({CHECKS_FAILED})", "{{pool}} {{server}} {{result}}"),
                unit="ops",
            ),
            graph(
                "Checks",
                "Are checks made?",
                Query(f"sum by (pool) ({CHECKS})", "{{pool}}"),
                unit="ops",
            ),
            graph(
                "Ejections",
                "Which server was ejected, how often in this time, and by which rule?",
                Query(
                    f"sum by (pool, server, reason) ({increase('lb_upstream_ejections_total', POOL)})",
                    "{{pool}} {{server}} {{reason}}",
                ),
            ),
        ),
    )


def _answers() -> Row:
    return Row(
        "Answers",
        halves(
            graph(
                "Requests by server",
                "Is the work spread as the weights say?",
                Query(f"sum by (pool, server) ({RESPONSES})", "{{pool}} {{server}}"),
                unit="reqps",
            ),
            graph(
                "Answered with 5xx by server",
                "Is it one server, or all of a pool?",
                Query(share(RESPONSES_5XX, RESPONSES, "pool, server"), "{{pool}} {{server}}"),
                unit="percentunit",
                thresholds=ERRORS,
            ),
            graph(
                "Answers by code",
                "What do the servers say?",
                Query(f"sum by (pool, code) ({RESPONSES})", "{{pool}} {{code}}"),
                unit="reqps",
                stack=True,
            ),
            graph(
                "Weight",
                "How much should each server get? It grows in the slow start, and is 0 while it is out.",
                Query(f"avg by (pool, server) (lb_upstream_server_weight{{{POOL}}})", "{{pool}} {{server}}"),
            ),
        ),
    )


def _errors() -> Row:
    return Row(
        "Errors",
        halves(
            graph(
                "Errors by reason",
                "How do servers fail? connect_failed: nobody listens; upstream_reset: it closed unasked;"
                " the others are in the access log's table.",
                Query(f"sum by (pool, reason) ({ERRORS_ALL})", "{{pool}} {{reason}}"),
                unit="ops",
                stack=True,
            ),
            graph(
                "Errors by server",
                "Which server fails?",
                Query(f"sum by (pool, server) ({ERRORS_ALL})", "{{pool}} {{server}}"),
                unit="ops",
            ),
            graph(
                "Retries",
                "How many failures did clients not see, as another server answered?",
                Query(f"sum by (pool) ({RETRIES})", "{{pool}}"),
                unit="ops",
            ),
            graph(
                "Requests that wait",
                "Is a pool full? All its servers are at max_connections then.",
                Query(f"sum by (pool) (lb_upstream_queue_length{{{POOL}}})", "{{pool}}"),
            ),
        ),
    )


def _connections() -> Row:
    connect = "lb_upstream_connect_duration_seconds"
    return Row(
        "Connections",
        (
            graph(
                "Connections by kind",
                "What are the connections to the servers for? active: with a request on them.",
                Query(f"sum by (kind) (lb_upstream_connections{{{POOL}}})", "{{kind}}"),
                stack=True,
            ),
            graph(
                "Busy connections by server",
                "Which server has more to do than the others? Requests in flight and WebSockets.",
                Query(
                    f'sum by (pool, server) (lb_upstream_connections{{{POOL}, kind!="idle"}})',
                    "{{pool}} {{server}}",
                ),
            ),
            graph(
                "New connections",
                "Are connections used again? Many new ones beside many requests: see keep_alive.",
                Query(f"sum by (pool) ({rate(f'{connect}_count', POOL)})", "{{pool}}"),
                unit="cps",
            ),
            graph(
                "Time to connect",
                "Are servers slow to accept? The TLS handshake is part of it.",
                *quantiles(connect, POOL),
                unit="s",
            ),
            graph(
                "Slowest 1 % to connect, by pool",
                "Which pool is slow to accept?",
                Query(quantile(0.99, connect, POOL, "pool"), "{{pool}}"),
                unit="s",
            ),
        ),
    )


def _admission() -> Row:
    handshakes = rate("lb_upstream_admission_total", POOL)
    return Row(
        "Admission of WebSockets",
        (
            graph(
                "Handshakes by what became of them",
                "Do clients come back faster than admission lets them? refused: 503, the queue was full.",
                Query(f"sum by (pool, result) ({handshakes})", "{{pool}} {{result}}"),
                unit="reqps",
                stack=True,
            ),
            graph(
                "Handshakes that wait for admission",
                "How long is the line? Its length divided by admission.rate is the wait in seconds.",
                Query(f"sum by (pool) (lb_upstream_admission_queue_length{{{POOL}}})", "{{pool}}"),
            ),
        ),
    )


def _stickiness() -> Row:
    hits = rate("lb_sticky_lookups_total", POOL, 'result="hit"')
    returning = rate("lb_sticky_lookups_total", POOL, 'result!="new"')
    return Row(
        "Stickiness",
        (
            graph(
                "Lookups",
                "Do clients reach their server? new: brought no key; moved: theirs can't be used;"
                " invalid: forged, or of a server that is gone.",
                Query(f"sum by (pool, result) ({LOOKUPS})", "{{pool}} {{result}}"),
                unit="reqps",
                stack=True,
            ),
            graph(
                "Kept",
                "What share of the clients that come back gets the same server?",
                Query(share(hits, returning, "pool"), "{{pool}}"),
                unit="percentunit",
            ),
        ),
    )
