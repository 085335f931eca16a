"""Every metric by its name: what Prometheus is told, and what docs/metrics.md must say."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Type = Literal["counter", "gauge", "histogram", "info"]


class Family(NamedTuple):
    """One metric. `name` is as operators see it, counters with `_total`; `unit` is part of the name."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""


_ALL: Final = (
    # --- the load balancer as a whole
    Family("lb_up", "gauge", "1 while the load balancer serves, 0 while it starts or stops."),
    Family("lb_build_info", "info",
           "Version of the load balancer, and whether its hot modules are compiled; the value is always 1.",
           ("version", "form")),
    Family("lb_start_time_seconds", "gauge", "Unix time when the master process started.", unit="seconds"),
    Family("lb_config_generation", "gauge", "Number of the configuration that is served."),
    Family("lb_config_reloads_total", "counter", "Reloads of the configuration, by result.", ("result",)),
    Family("lb_config_last_reload_successful", "gauge",
           "1 if the last reload succeeded (or there was none yet), else 0."),
    Family("lb_config_last_reload_success_timestamp_seconds", "gauge",
           "Unix time when the configuration that is served was loaded.", unit="seconds"),
    Family("lb_control_restarts_total", "counter",
           "Control processes that ended unasked and were replaced, by reason.", ("reason",)),
    Family("lb_workers", "gauge", "Worker processes that serve."),
    Family("lb_workers_wanted", "gauge", "Worker processes that there should be."),
    Family("lb_worker_restarts_total", "counter",
           "Workers that ended unasked and were replaced, by reason.", ("reason",)),
    Family("lb_accept_paused_total", "counter",
           "Times that accepting was put off for want of file descriptors or memory."),
    Family("lb_access_log_dropped_total", "counter", "Access log lines that were lost."),
    Family("lb_error_log_dropped_total", "counter", "Error log lines that were lost."),
    Family("lb_scoreboard_series_full_total", "counter",
           "Label combinations that were counted as \"other\" for want of room on the scoreboard."),
    Family("lb_upgrades_total", "counter", "Upgrades in place to the code on disk, by result.", ("result",)),
    Family("lb_keeper_restarts_total", "counter",
           "Keepers (they hold the workers' WebSockets) that ended unasked and were replaced, by reason.",
           ("reason",)),
    # --- workers
    Family("lb_worker_connections", "gauge", "Client connections of the worker.", ("worker",)),
    Family("lb_worker_tunnels", "gauge", "WebSocket tunnels of the worker.", ("worker",)),
    Family("lb_worker_tunnels_crash_safe", "gauge",
           "WebSocket tunnels of the worker that would outlive a crash of it.", ("worker",)),
    Family("lb_worker_tunnels_movable", "gauge",
           "WebSocket tunnels of the worker that can be handed to another one.", ("worker",)),
    Family("lb_worker_loop_lag_seconds", "gauge",
           "How late the event loop is: by how long its last tick was late, or the next one is overdue.",
           ("worker",), "seconds"),
    Family("lb_worker_longest_turn_seconds", "gauge",
           "The longest turn of the event loop in the last half minute to minute.",
           ("worker",), "seconds"),
    Family("lb_worker_long_turns_total", "counter",
           "Turns of the event loop that took more than 20 ms.", ("worker",)),
    Family("lb_worker_faults_total", "counter",
           "Callbacks of the worker's event loop that failed; each is a bug.", ("worker",)),
    Family("lb_worker_cpu_seconds_total", "counter", "CPU time of the worker.", ("worker",), "seconds"),
    Family("lb_worker_resident_memory_bytes", "gauge", "Resident memory of the worker.", ("worker",),
           "bytes"),
    Family("lb_worker_open_files", "gauge", "Open file descriptors of the worker.", ("worker",)),
    # --- listeners and TLS
    Family("lb_listener_connections", "gauge", "Open client connections.", ("listener",)),
    Family("lb_listener_connections_total", "counter", "Client connections that were accepted.",
           ("listener",)),
    Family("lb_listener_connections_limit", "gauge",
           "Client connections that may be open at the same time, over all workers.", ("listener",)),
    Family("lb_listener_rejected_total", "counter",
           "Connections and requests that were refused before they had a route, by reason.",
           ("listener", "reason")),
    Family("lb_tls_handshakes_total", "counter",
           "TLS handshakes of clients, by version (none: it failed) and result.", ("version", "result")),
    Family("lb_tls_certificate_not_after_timestamp_seconds", "gauge",
           "Unix time when the certificate expires.", ("name",), "seconds"),
    # --- HTTP
    Family("lb_http_requests_total", "counter",
           "Requests that ended, upgrades among them, by method and status code.",
           ("route", "method", "code")),
    Family("lb_http_requests_in_flight", "gauge", "Requests that are being served, tunnels not among them.",
           ("route",)),
    Family("lb_http_request_duration_seconds", "histogram",
           "From the request's head to the end of the response; upgrades are not among them.", ("route",),
           "seconds"),
    # --- WebSocket
    Family("lb_websocket_tunnels", "gauge", "Established WebSockets.", ("route", "pool", "server")),
    Family("lb_websocket_handshakes_total", "counter", "WebSocket handshakes that ended, by result.",
           ("route", "result")),
    Family("lb_websocket_handshake_duration_seconds", "histogram",
           "From the handshake's head to the 101 that opened a tunnel.", ("route",), "seconds"),
    Family("lb_websocket_tunnel_duration_seconds", "histogram", "How long WebSockets lived that have ended.",
           ("route",), "seconds"),
    Family("lb_websocket_bytes_total", "counter",
           "Bytes of established WebSockets, frames and all, as they flow.", ("route", "direction"), "bytes"),
    Family("lb_websocket_messages_total", "counter",
           "WebSocket messages as they flow, by direction; not counted where websocket.inspect is off.",
           ("route", "direction")),
    Family("lb_websocket_closes_total", "counter",
           "WebSockets that ended, by who closed first and close code (none: without a Close frame).",
           ("route", "initiator", "code")),
    Family("lb_websocket_migrations_total", "counter",
           "WebSockets that were handed to another process, by reason and result.", ("reason", "result")),
    Family("lb_websocket_drain_queue_length", "gauge",
           "WebSockets that wait for their turn to be closed politely."),
    Family("lb_websocket_ping_duration_seconds", "histogram",
           "From a ping of the load balancer to its pong, either side.", ("route",), "seconds"),
    Family("lb_websocket_ping_timeouts_total", "counter",
           "WebSockets that were closed since a side did not answer a ping.", ("route",)),
    # --- upstreams
    Family("lb_upstream_connections", "gauge",
           "Connections to the server: idle, active (with a request on them), or tunnel.",
           ("pool", "server", "kind")),
    Family("lb_upstream_requests_total", "counter", "Responses of the server, by status code.",
           ("pool", "server", "code")),
    Family("lb_upstream_connect_duration_seconds", "histogram",
           "Time to connect to a server, its TLS handshake included.", ("pool",), "seconds"),
    Family("lb_upstream_errors_total", "counter", "Exchanges that failed on the server's side, by reason.",
           ("pool", "server", "reason")),
    Family("lb_upstream_retries_total", "counter", "Requests that were sent to another server.", ("pool",)),
    Family("lb_upstream_queue_length", "gauge", "Requests that wait for a server.", ("pool",)),
    Family("lb_upstream_admission_total", "counter",
           "WebSocket handshakes to pools with admission, by whether they were let through.",
           ("pool", "result")),
    Family("lb_upstream_admission_queue_length", "gauge", "WebSocket handshakes that wait for admission.",
           ("pool",)),
    Family("lb_upstream_server_state", "gauge", "1 for the state that the server is in, 0 for all others.",
           ("pool", "server", "state")),
    Family("lb_upstream_server_weight", "gauge",
           "Weight that counts now: with the operator's and the slow start, 0 while it gets nothing new.",
           ("pool", "server")),
    Family("lb_upstream_health_checks_total", "counter", "Active health checks, by result.",
           ("pool", "server", "result")),
    Family("lb_upstream_ejections_total", "counter", "Ejections of the server, by reason.",
           ("pool", "server", "reason")),
    Family("lb_sticky_lookups_total", "counter", "Requests to pools with stickiness, by what became of it.",
           ("pool", "result")),
)  # fmt: skip

FAMILIES: Final[dict[str, Family]] = {family.name: family for family in _ALL}
