"""Traffic in which every figure moves, and the clients' and servers' own count of it."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from pathlib import Path

from tests.harness import Connection, LoadBalancer, RawClient, Upstream, eventually, fetch, reply
from tests.harness import websocket as ws
from tests.harness.certificates import Authority
from tests.harness.client import request_bytes
from tests.harness.ports import free_port
from tests.harness.settings import Tables

PHRASES = {200: "200 OK", 201: "201 Created", 302: "302 Found", 404: "404 Not Found", 500: "500 Error"}
NARROW = 2  # exchanges that the pool `narrow` takes at a time
NO_TUNNEL = "/chat/no"
PINGS = {"silent": "1s"}  # of the other routes all bytes are counted, and pings are among them


def by_code(connection: Connection) -> None:
    """Answers with the status that the target ends in."""
    while (request := connection.read_request()) is not None:
        connection.send(reply(b"", PHRASES[int(request.target.rpartition("/")[2])]))


def reset(connection: Connection) -> None:
    """Takes a request and breaks the connection."""
    connection.read_request()
    connection.reset()


def chat(connection: Connection) -> None:
    """Echoes messages; the message "close" is answered with a Close frame."""
    head = connection.read_head()
    if head is None:
        return
    if NO_TUNNEL.encode() in head.first_line:
        connection.send(reply(b"no", "403 Forbidden"))
        return
    ws.accept(connection, head)
    while (frame := ws.read_frame(connection)).opcode != ws.CLOSE:
        if frame.payload == b"close":
            connection.send(ws.close_frame(4001))
        else:
            connection.send(ws.frame(frame.payload, frame.opcode))
            continue
        ws.read_frame(connection)
        return
    connection.send(ws.frame(frame.payload, ws.CLOSE))


class Gate:
    """Holds requests until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while connection.read_request() is not None:
            self.opened.wait(60)
            connection.send(reply(b""))


class Tally:
    """What clients and servers saw."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, ...]] = Counter()  # route, method, code
        self.unrouted = 0
        self.vanished = 0  # clients that answered no ping any more
        self.returned = 0  # requests with the cookie of a server
        self.messages: Counter[tuple[str, ...]] = Counter()  # direction
        self.bytes: Counter[tuple[str, ...]] = Counter()  # direction
        self.closes: Counter[tuple[str, ...]] = Counter()  # initiator, code
        self.handshakes: Counter[tuple[str, ...]] = Counter()  # result
        self.tls: Counter[tuple[str, ...]] = Counter()  # result


class Tunnel:
    """One WebSocket; what it sends and gets is counted in `tally`."""

    def __init__(self, lb: LoadBalancer, tally: Tally) -> None:
        self.tally = tally
        self.client = ws.connect(lb.address, "/chat/room")
        tally.requests["chat", "GET", "101"] += 1
        tally.handshakes["accepted",] += 1

    def _sent(self, data: bytes, messages: int = 0) -> None:
        self.client.send(data)
        self.tally.bytes["from_client",] += len(data)
        self.tally.messages["from_client",] += messages

    def _got(self, messages: int = 0) -> None:
        frame = ws.read_frame(self.client)
        self.tally.bytes["from_server",] += len(ws.frame(frame.payload, frame.opcode))
        self.tally.messages["from_server",] += messages

    def talk(self, *sizes: int) -> None:
        """Messages of these sizes, and a ping, all echoed."""
        for size in sizes:
            self._sent(ws.frame(b"x" * size, masked=True), 1)
            self._got(1)
        self._sent(ws.frame(b"ping", ws.PING, masked=True))
        self._got()

    def close(self, code: int) -> None:
        """The client closes."""
        self._sent(ws.close_frame(code, masked=True))
        self._got()
        self.client.close()
        self.tally.closes["client", str(code)] += 1

    def be_closed(self) -> None:
        """The server closes."""
        self._sent(ws.frame(b"close", masked=True), 1)
        self._got()
        self._sent(ws.close_frame(4001, masked=True))
        self.client.close()
        self.tally.closes["server", "4xxx"] += 1

    def break_off(self) -> None:
        """The client's connection breaks."""
        self.client.reset()
        self.tally.closes["none", "none"] += 1


class Scene:
    """The servers, the configuration and the clients."""

    def __init__(self, folder: Path) -> None:
        self.tally = Tally()
        self.gate = Gate()
        self.authority = Authority(folder)
        self.authority.issue("server.pem", "test.example")
        self.web = [Upstream(by_code, name="web1"), Upstream(by_code, name="web2")]
        self.good = Upstream(by_code, name="good")
        self.bad = Upstream(reset, name="bad")
        self.chat = Upstream(chat, name="chat")
        self.narrow = Upstream(self.gate, name="narrow")
        self.silent = Upstream(ws.serve_echo, name="silent")
        self.servers = [*self.web, self.good, self.bad, self.chat, self.narrow, self.silent]
        self.folder = folder

    def close(self) -> None:
        """Ends the servers."""
        self.gate.opened.set()
        for server in self.servers:
            server.close()

    def tables(self) -> Tables:
        """The configuration."""
        pools = ("web", "flaky", "gone", "chat", "narrow", "silent")
        host = "127.0.0.1"
        return {
            "process": {"workers": 2, "shutdown_timeout": "5s"},
            "metrics": {"listen": f"{host}:{free_port()}"},
            "drain": {"hard_stop": "5s"},
            "listen": {
                "public": {"bind": [f"{host}:{free_port()}"]},
                "secure": {
                    "bind": [f"{host}:{free_port()}"],
                    "tls": {"certs": [f"{self.folder}/server.pem"]},
                },
            },
            "route": [
                {
                    "name": pool,
                    "path": f"/{pool}/*",
                    "pool": pool,
                    "websocket": {"ping": PINGS.get(pool, "off")},
                }
                for pool in pools
            ],
            "pool": {
                "web": {"server": _named(*self.web), "sticky": {"cookie": "lb"}},
                "flaky": {
                    "server": _named(self.good, self.bad),
                    "eject": {"consecutive_errors": 2, "for": "5m"},
                },
                "gone": {
                    "server": [{"name": "gone", "address": f"{host}:{free_port()}"}],
                    "health": {"type": "tcp", "every": "200ms", "timeout": "200ms", "fall": 2},
                    "eject": {"panic_percent": 100},
                },
                "chat": {"server": _named(self.chat), "admission": {"rate": 1000}},
                "silent": {"server": _named(self.silent)},
                "narrow": {
                    "server": [{**one, "max_connections": NARROW} for one in _named(self.narrow)],
                    "queue": {"timeout": "1m"},
                },
            },
        }

    # --- the clients -----------------------------------------------------------------------------

    def round(self, lb: LoadBalancer) -> list[Tunnel]:
        """Some of everything; returns WebSockets that are still open."""
        self._requests(lb)
        self._handshakes(lb)
        return self._tunnels(lb)

    def _request(self, lb: LoadBalancer, route: str, end: object, method: str = "GET") -> None:
        response = fetch(lb.address, f"/{route}/{end}", method=method)
        self.tally.requests[route, method, str(response.status)] += 1

    def _requests(self, lb: LoadBalancer) -> None:
        for code in (200, 200, 201, 302, 404, 500):
            self._request(lb, "web", code)
            self._request(lb, "web", code, "POST")
        with RawClient(lb.address) as client:
            cookie = (client.request("/web/200").header("set-cookie") or "").partition(";")[0]
            client.request("/web/200", headers={"Cookie": cookie})
        self.tally.returned += 1
        self.tally.requests["web", "GET", "200"] += 2
        for _ in range(12):
            self._request(lb, "flaky", 200)
        for _ in range(3):
            self._request(lb, "gone", 200)
        assert fetch(lb.address, "/nowhere").status == 404
        self.tally.unrouted += 1

    def _handshakes(self, lb: LoadBalancer) -> None:
        """Over TLS with trust and without, and a WebSocket that the server does not want."""
        with RawClient(
            lb.address_of("secure"), tls=self.authority.client_context(), server_name="test.example"
        ) as client:
            assert client.request("/web/200").status == 200
        self.tally.requests["web", "GET", "200"] += 1
        self.tally.tls["ok",] += 1
        try:
            RawClient(lb.address_of("secure"), tls=ssl.create_default_context(), server_name="test.example")
        except ssl.SSLError:
            self.tally.tls["failed",] += 1
        with RawClient(lb.address) as client:
            client.send(ws.handshake_bytes(NO_TUNNEL)[0])
            assert client.read_response().status == 403
        self.tally.requests["chat", "GET", "403"] += 1
        self.tally.handshakes["rejected",] += 1

    def _tunnels(self, lb: LoadBalancer) -> list[Tunnel]:
        tunnels = [Tunnel(lb, self.tally) for _ in range(8)]
        for number, tunnel in enumerate(tunnels):
            tunnel.talk(1, 200, 70_000 + number)
        tunnels.pop().break_off()
        tunnels.pop().be_closed()
        tunnels.pop().close(1001)
        return tunnels

    def vanish(self, lb: LoadBalancer) -> None:
        """A client answers a ping, and the next one no more."""
        with ws.connect(lb.address, "/silent/room") as client:
            frame = ws.read_frame(client)
            assert frame.opcode == ws.PING
            client.send(ws.frame(frame.payload, ws.PONG, masked=True))
            assert ws.read_frame(client).opcode == ws.PING
            eventually(
                lambda: not any(worker["tunnels"] for worker in lb.status()["workers"]), "it is given up"
            )
        self.tally.requests["silent", "GET", "101"] += 1
        self.tally.vanished += 1

    def fill_queue(self, lb: LoadBalancer, number: int) -> list[RawClient]:
        """More requests to the pool `narrow` than it takes."""
        clients = [RawClient(lb.address) for _ in range(number)]
        for client in clients:
            client.send(request_bytes("/narrow/200", method="POST", body=b""))
        eventually(lambda: self.narrow.requests, "the server has a request")
        return clients

    def leave_queue(self, clients: list[RawClient]) -> None:
        """One goes, the others are served."""
        clients.pop().close()
        self.tally.requests["narrow", "POST", "499"] += 1

    def serve_queue(self, clients: list[RawClient]) -> None:
        """All that wait get their answer."""
        self.gate.opened.set()
        for client in clients:
            status = client.read_response("POST").status
            self.tally.requests["narrow", "POST", str(status)] += 1
            client.close()


def _named(*servers: Upstream) -> list[dict[str, object]]:
    return [{"name": server.name, "address": server.address} for server in servers]
