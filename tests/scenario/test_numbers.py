"""The numbers are true: after reloads and a killed worker, the metrics are what the clients have counted."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, reply
from tests.harness import websocket as ws
from tests.harness.figures import Scrape
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

REQUESTS = [  # method, label, status, how many
    ("GET", "GET", 200, 30),
    ("POST", "POST", 201, 12),
    ("PUT", "PUT", 500, 5),
    ("HEAD", "HEAD", 404, 4),
    ("DELETE", "DELETE", 418, 3),
    ("OPTIONS", "OPTIONS", 200, 2),
    ("BREW", "other", 200, 2),
    ("get", "other", 200, 1),
]
MESSAGES = [b"", b"a", b"b" * 125, b"c" * 126, b"d" * 70_000]
ENDS = [  # who ends it, with which code (0: no Close frame), and the label of that
    ("client", 1000, "1000"),
    ("client", 1001, "1001"),
    ("client", 3000, "3xxx"),
    ("client", 0, "none"),
    ("server", 1011, "1011"),
    ("server", 4999, "4xxx"),
    ("server", 0, "none"),
]


def serve(connection: Connection) -> None:
    """Answers with the status that the target names; WebSockets echo, and end as they are told."""
    while (request := connection.read_request()) is not None:
        kind, value = request.target.split("/")[2:4]
        if kind == "status":
            connection.send(reply(b"" if request.method == "HEAD" else b"body", f"{value} Word"))
            continue
        ws.accept(connection, request.head)
        with contextlib.suppress(ConnectionError):
            talk(connection)
        return


def talk(connection: Connection) -> None:
    """Echoes data; "end N" asks for a Close with N, or for the end without one where N is 0."""
    while True:
        frame = ws.read_frame(connection)
        if frame.payload.startswith(b"end "):
            code = int(frame.payload[4:])
            if code:
                connection.send(ws.close_frame(code))
                ws.read_frame(connection)
            return
        connection.send(ws.frame(frame.payload, ws.PONG if frame.opcode == ws.PING else frame.opcode))
        if frame.opcode == ws.CLOSE:
            return


class Ledger:
    """The clients, and what they count."""

    def __init__(self, lb: LoadBalancer) -> None:
        self.lb = lb
        self.connections = 0
        self.requests: Counter[tuple[str, ...]] = Counter()
        self.responses: Counter[tuple[str, ...]] = Counter()
        self.handshakes: Counter[tuple[str, ...]] = Counter()
        self.rejected: Counter[tuple[str, ...]] = Counter()
        self.closes: Counter[tuple[str, ...]] = Counter()
        self.bytes: Counter[tuple[str, ...]] = Counter()
        self.messages: Counter[tuple[str, ...]] = Counter()
        self.tunnels: list[RawClient] = []

    def client(self) -> RawClient:
        """A new connection."""
        self.connections += 1
        return RawClient(self.lb.address)

    def count(self, method: str, status: int) -> None:
        """A request that a server answered."""
        self.requests[method, str(status)] += 1
        self.responses[(str(status),)] += 1

    def ask(self) -> None:
        """All requests, on kept and on new connections."""
        with self.client() as kept:
            for method, label, status, times in REQUESTS:
                for number in range(times):
                    with contextlib.nullcontext(kept) if number % 2 else self.client() as client:
                        body = b"x" * 10 if method in ("POST", "PUT") else None
                        response = client.request(f"/app/status/{status}", method=method, body=body)
                        assert response.status == status
                    self.count(label, status)

    def be_refused(self) -> None:
        """What has no route, what is malformed, and a handshake that the server does not want."""
        with self.client() as client:
            assert client.request("/elsewhere").status == 404
            self.rejected[("no_route",)] += 1
        with self.client() as client:
            client.send(b"nonsense\r\n\r\n")
            assert client.read_response().status == 400
            self.rejected[("bad_request_line",)] += 1
        with self.client() as client:
            client.send(ws.handshake_bytes("/app/status/403")[0])
            assert client.read_response().status == 403
            self.count("GET", 403)
            self.handshakes[("rejected",)] += 1

    def open_tunnels(self, number: int) -> None:
        """More WebSockets."""
        for _ in range(number):
            client = self.client()
            ws.upgrade(client, "/app/ws/echo")
            self.tunnels.append(client)
            self.count("GET", 101)
            self.handshakes[("accepted",)] += 1

    def sent(self, client: RawClient, data: bytes, *, messages: int = 0) -> None:
        """Sends one frame."""
        client.send(data)
        self.bytes[("from_client",)] += len(data)
        self.messages[("from_client",)] += messages

    def got(self, client: RawClient, *, messages: int = 0) -> ws.Frame:
        """Receives one frame, which is as short as it can be."""
        frame = ws.read_frame(client)
        self.bytes[("from_server",)] += len(ws.frame(frame.payload))
        self.messages[("from_server",)] += messages
        return frame

    def talk(self) -> None:
        """Messages of all sizes and a ping, which is none, on every WebSocket."""
        for client in self.tunnels:
            for payload in MESSAGES:
                self.sent(client, ws.frame(payload, masked=True), messages=1)
                assert self.got(client, messages=1).payload == payload
            self.sent(client, ws.frame(b"ping", ws.PING, masked=True))
            assert self.got(client).opcode == ws.PONG

    def end_tunnels(self) -> None:
        """Ends each WebSocket in another way."""
        for number, client in enumerate(self.tunnels):
            who, code, label = ENDS[number % len(ENDS)]
            if who == "server":
                self.sent(client, ws.frame(b"end %d" % code, masked=True), messages=1)
                if code:
                    assert self.got(client).close_code == code
                    self.sent(client, ws.close_frame(code, masked=True))
                assert client.read_to_end() == b""
            elif code:
                self.sent(client, ws.close_frame(code, masked=True))
                assert self.got(client).close_code == code
                assert client.read_to_end() == b""
            client.close()
            self.closes[who, label] += 1
        self.tunnels.clear()

    def close(self) -> None:
        """Closes what a failed test has left open."""
        for client in self.tunnels:
            client.close()

    # --- comparing ---------------------------------------------------------------------------------------

    def differences(self) -> dict[str, tuple[object, object]]:
        """What the metrics say and the clients do not: (metrics, clients) by name."""
        scrape = Scrape(self.lb)
        plain = self.requests.total() - self.handshakes.total()
        pairs = {
            "requests": (scrape.by("lb_http_requests_total", "method", "code"), self.requests),
            "durations": (scrape.total("lb_http_request_duration_seconds_count"), plain),
            "responses": (scrape.by("lb_upstream_requests_total", "code"), self.responses),
            "handshakes": (scrape.by("lb_websocket_handshakes_total", "result"), self.handshakes),
            "opened": (
                scrape.total("lb_websocket_handshake_duration_seconds_count"),
                self.handshakes[("accepted",)],
            ),
            "closes": (scrape.by("lb_websocket_closes_total", "initiator", "code"), self.closes),
            "lives": (scrape.total("lb_websocket_tunnel_duration_seconds_count"), self.closes.total()),
            "bytes": (scrape.by("lb_websocket_bytes_total", "direction"), self.bytes),
            "messages": (scrape.by("lb_websocket_messages_total", "direction"), self.messages),
            "connections": (scrape.total("lb_listener_connections_total"), self.connections),
            "rejected": (scrape.by("lb_listener_rejected_total", "reason"), self.rejected),
            "errors": (scrape.total("lb_upstream_errors_total"), 0),
            "tunnels": (scrape.total("lb_websocket_tunnels"), len(self.tunnels)),
            "tunnels of workers": (scrape.total("lb_worker_tunnels"), len(self.tunnels)),
            "tunnels to servers": (scrape.total("lb_upstream_connections", kind="tunnel"), len(self.tunnels)),
            "clients": (scrape.total("lb_listener_connections"), len(self.tunnels)),
            "clients of workers": (scrape.total("lb_worker_connections"), len(self.tunnels)),
            "in flight": (scrape.total("lb_http_requests_in_flight"), 0),
            "active": (scrape.total("lb_upstream_connections", kind="active"), 0),
            "queued": (scrape.total("lb_upstream_queue_length"), 0),
            "faults": (scrape.total("lb_worker_faults_total"), 0),
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def compare(self) -> None:
        """Asserts that both say the same; the end of a connection may need a moment to arrive."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.differences(), "the metrics are what was counted", 10)
        assert self.differences() == {}


def test_the_metrics_are_what_the_clients_count(balancer: StartBalancer, upstream: StartUpstream) -> None:
    servers = [{"name": name, "address": upstream(serve, name=name).address} for name in ("one", "two")]
    lb = balancer(settings(servers, workers=4, route={"path": "/app/*"}))
    lb.wait_control()
    with contextlib.closing(Ledger(lb)) as ledger:
        run(lb, ledger, upstream(serve, name="three").address)


def run(lb: LoadBalancer, ledger: Ledger, another: str) -> None:
    """The whole script; `another` is the address of a third server."""
    ledger.ask()
    ledger.be_refused()
    ledger.open_tunnels(2 * len(ENDS))
    ledger.talk()
    ledger.compare()

    lb.tables["pool"]["main"]["server"].append({"name": "three", "address": another})
    lb.reload()
    ledger.talk()
    ledger.open_tunnels(3)
    ledger.ask()
    ledger.compare()
    ledger.end_tunnels()
    ledger.compare()

    # What a worker has in flight dies with it, uncounted; this one has nothing.
    old = lb.kill_worker(1)
    lb.wait_replaced(1, old)
    ledger.open_tunnels(len(ENDS))
    ledger.talk()
    ledger.ask()

    lb.tables["pool"]["main"]["server"][0]["weight"] = 3
    lb.reload()
    ledger.ask()
    ledger.be_refused()
    ledger.talk()
    ledger.compare()
    ledger.end_tunnels()
    ledger.compare()

    scrape = Scrape(lb)
    assert scrape.by("lb_worker_restarts_total", "reason") == {("SIGKILL",): 1}
    assert scrape.by("lb_config_reloads_total", "result") == {("success",): 2}
    assert scrape.total("lb_config_last_reload_successful") == 1
    assert scrape.total("lb_workers") == 4
    assert scrape.by("lb_scoreboard_series_full_total") == {}
