"""max_connections and the bounded queue before it."""

from __future__ import annotations

import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, fetch, open_clients, reply
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.gauges import Gauges
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


class Gate:
    """A server that holds every request until it is opened, and knows how many it holds."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0

    def __call__(self, connection: Connection) -> None:
        while connection.read_request() is not None:
            with self._lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self.opened.wait(20)
            with self._lock:
                self.inside -= 1
            connection.send(reply(b"ok"))


def start(
    balancer: StartBalancer, upstream: StartUpstream, gate: Gate, workers: int = 1, **queue: object
) -> LoadBalancer:
    """A load balancer over one server that takes two exchanges at a time."""
    server = {"name": "one", "address": upstream(gate).address, "max_connections": 2}
    return balancer(settings([server], workers=workers, pool={"queue": queue}))


def send_all(clients: list[RawClient]) -> None:
    """One request on each connection."""
    for client in clients:
        client.send(request_bytes("/", method="POST", body=b"x"))


def test_requests_wait_and_are_all_served(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=100, timeout="10s")
    with open_clients(lb.address, 10) as clients:
        send_all(clients)
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 10
    assert gate.most == 2


def test_the_limit_holds_over_all_workers(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, workers=2, length=100, timeout="10s")
    with open_clients(lb.address, 20) as clients:
        send_all(clients)
        eventually(lambda: gate.inside >= 1, "requests are with the server")
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 20
    assert gate.most <= 2


def test_a_full_queue_refuses_at_once(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=1, timeout="10s")
    with open_clients(lb.address, 3) as clients, RawClient(lb.address) as extra:
        send_all(clients[:2])
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        send_all(clients[2:])
        eventually(lambda: extra.request("/").status == 503, "the queue is full")
        lb.wait_access(reason="queue_full", status=503)
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 3


def test_waiting_has_an_end(balancer: StartBalancer, upstream: StartUpstream) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=10, timeout="300ms")
    with open_clients(lb.address, 2) as clients, RawClient(lb.address) as late:
        send_all(clients)
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        assert late.request("/").status == 503
        lb.wait_access(reason="queue_timeout", status=503)
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 2
        assert late.request("/").status == 200


def test_a_client_that_leaves_the_queue_takes_no_place(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=1, timeout="10s")
    with open_clients(lb.address, 2) as holders:
        send_all(holders)
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        for _ in range(5):
            with open_clients(lb.address, 1) as leavers:
                send_all(leavers)
        gate.opened.set()
        assert [client.read_response().status for client in holders] == [200] * 2
        with RawClient(lb.address) as client:
            assert client.request("/").status == 200


class Leaver:
    """A server that holds its only request until it is opened, and is gone then. `last` is how it goes:
    "close" says so in the response, "silently" lets the connection be kept for later and closes it."""

    def __init__(self, last: str) -> None:
        self.opened = threading.Event()
        self.last = last

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        self.opened.wait(20)
        connection.send(reply(b"last", headers={"Connection": "close"} if self.last == "close" else {}))


@pytest.mark.parametrize("sticky", [{}, {"sticky": {"cookie": "lb"}}], ids=["plain", "sticky"])
@pytest.mark.parametrize("last", ["close", "silently"])
@pytest.mark.parametrize("number", [5, 200])
def test_who_waits_for_a_server_that_dies_gets_an_answer(
    number: int, last: str, sticky: dict[str, object], balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Each connect fails at once, and gives its place free while the queue is being served."""
    leaver = Leaver(last)
    server = upstream(leaver)
    member = {"name": "one", "address": server.address, "max_connections": 1}
    pool = {"queue": {"length": 1000, "timeout": "60s"}, **sticky}
    lb = balancer(settings([member], workers=1, pool=pool))
    gauges = Gauges(lb)
    with RawClient(lb.address) as first, open_clients(lb.address, number) as waiters:
        first.send(request_bytes("/"))
        eventually(lambda: server.requests, "the only place is taken")
        send_all(waiters)
        gauges.wait(waiting=number, in_flight=number + 1, active=1)
        server.stop_listening()
        leaver.opened.set()
        assert first.read_response().body == b"last"
        assert [client.read_response().status for client in waiters] == [502] * number
        gauges.wait(waiting=0, in_flight=0, active=0, upstreams=0, connections=number + 1)
    gauges.wait_all_zero()
    lb.wait_access(number, status=502)
    assert "fault" not in lb.stderr


def test_the_queue_of_a_server_that_dies_is_served_once_it_is_back(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    leaver = Leaver("close")
    server = upstream(leaver)
    member = {"name": "one", "address": server.address, "max_connections": 1}
    lb = balancer(settings([member], workers=1, pool={"queue": {"length": 10, "timeout": "60s"}}))
    port = server.port
    with open_clients(lb.address, 4) as clients:
        send_all(clients[:1])
        eventually(lambda: server.requests, "the only place is taken")
        send_all(clients[1:])
        Gauges(lb).wait(waiting=3)
        server.stop_listening()
        leaver.opened.set()
        assert [client.read_response().status for client in clients] == [200, 502, 502, 502]
        upstream(port=port)
        send_all(clients)
        assert [client.read_response().status for client in clients] == [200] * 4
    Gauges(lb).wait_all_zero()


@pytest.mark.parametrize("change", ["weight", "removed"])
def test_the_limit_holds_for_who_waits_over_a_reload(
    change: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    gate = Gate()
    lb = start(balancer, upstream, gate, length=100, timeout="60s")
    lb.tables["pool"]["spare"] = {"servers": [upstream().address]}
    lb.tables["route"].insert(0, {"name": "spare", "path": "/spare", "pool": "spare"})
    lb.reload()
    gauges = Gauges(lb)
    with open_clients(lb.address, 12) as clients:
        send_all(clients[:2])
        eventually(lambda: gate.inside == 2, "two requests are with the server")
        send_all(clients[2:])
        gauges.wait(queued=10)
        if change == "weight":
            lb.tables["pool"]["main"]["server"][0]["weight"] = 3
        else:
            del lb.tables["pool"]["main"]
            lb.tables["route"][1]["pool"] = "spare"
        lb.reload()
        # The worker's loop has turned, so whoever was let out of the queue is on the way.
        assert fetch(lb.address, "/spare").status == 200
        gauges.wait(active=2)
        gate.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 12
    assert gate.most == 2
    gauges.wait_all_zero()


def test_the_limit_holds_for_tunnels_over_reloads_that_change_their_server(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = {"address": upstream(ws.serve_echo).address, "max_connections": 2}
    lb = balancer(settings([server], workers=1, pool={"queue": {"length": 1, "timeout": "50ms"}}))
    with ws.connect(lb.address) as first, ws.connect(lb.address):
        for weight in (2, 3):
            lb.tables["pool"]["main"]["server"][0]["weight"] = weight
            lb.reload()
            assert fetch(lb.address).status == 503
        first.close()
        Gauges(lb).wait(tunnels=1)
        assert fetch(lb.address).status == 200


class Narrow:
    """Two servers that take one exchange each. One of them holds a tunnel from the start; the other resets
    /reset, once, and both hold /held until they are opened."""

    def __init__(self, balancer: StartBalancer, upstream: StartUpstream) -> None:
        self.opened = threading.Event()
        self.upstreams = [upstream(self._serve, name=name) for name in ("a", "b")]
        self.has_reset = False
        self.served: list[str] = []  # targets, as they came
        servers = [{"name": one.name, "address": one.address, "max_connections": 1} for one in self.upstreams]
        queue = {"length": 10, "timeout": "60s"}
        self.lb = balancer(settings(servers, workers=1, pool={"queue": queue}))
        self.tunnel = RawClient(self.lb.address)
        name = ws.upgrade(self.tunnel).header("x-server")
        self.busy, self.free = sorted(self.upstreams, key=lambda one: one.name != name)

    def _serve(self, connection: Connection) -> None:
        name = connection.upstream.name
        while (head := connection.read_head()) is not None:
            target = head.first_line.split(b" ")[1]
            if head.get("upgrade"):
                ws.accept(connection, head, {"X-Server": name})
                connection.wait_closed()
                return
            if target == b"/reset" and not self.has_reset:
                self.has_reset = True
                connection.reset()
                return
            self.served.append(target.decode())
            if target == b"/held":
                self.opened.wait(20)
            connection.send(reply(name.encode()))


def ask_for(client: RawClient, target: str) -> None:
    client.send(request_bytes(target))


def test_one_that_tried_the_free_server_holds_nobody_up_and_keeps_its_turn(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    narrow = Narrow(balancer, upstream)
    gauges = Gauges(narrow.lb)
    with narrow.tunnel, open_clients(narrow.lb.address, 4, timeout=10) as (first, held, second, third):
        ask_for(first, "/reset")
        gauges.wait(queued=1)
        ask_for(held, "/held")
        gauges.wait(active=2)
        ask_for(second, "/held")
        gauges.wait(queued=2)
        ask_for(third, "/third")
        gauges.wait(queued=3)
        narrow.opened.set()
        # It goes past the first, which may not use this server, and the next one after it.
        assert held.read_response().text == narrow.free.name
        assert second.read_response().text == narrow.free.name
        assert third.read_response().text == narrow.free.name
        gauges.wait(queued=1)
        narrow.tunnel.close()
        assert first.read_response().text == narrow.busy.name
    gauges.wait_all_zero()


def test_a_turn_that_was_passed_by_is_not_lost(balancer: StartBalancer, upstream: StartUpstream) -> None:
    narrow = Narrow(balancer, upstream)
    gauges = Gauges(narrow.lb)
    with narrow.tunnel, open_clients(narrow.lb.address, 3, timeout=10) as (first, held, second):
        ask_for(first, "/reset")
        gauges.wait(queued=1)
        ask_for(held, "/held")
        gauges.wait(active=2)
        ask_for(second, "/second")
        gauges.wait(queued=2)
        narrow.lb.reload()  # all who wait are looked at, and nobody finds a place
        assert narrow.lb.admin("pools/main")["servers"]
        narrow.tunnel.close()
        assert first.read_response().text == narrow.busy.name
        assert second.read_response().text == narrow.busy.name
        narrow.opened.set()
        assert held.read_response().text == narrow.free.name
    assert narrow.served == ["/held", "/reset", "/second"]
