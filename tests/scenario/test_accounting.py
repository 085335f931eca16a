"""However an exchange ends, its place on the server is given back: none leaks."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, open_clients, processes, reply
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.settings import Tables, settings

pytestmark = pytest.mark.scenario

ENDED = (AssertionError, OSError)
BODY = 5000
Action = Callable[[Connection], bool]


class Hold:
    """Holds each request until it is opened, and knows how many it holds."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0

    def __call__(self, connection: Connection) -> bool:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.opened.wait(20)
        with self._lock:
            self.inside -= 1
        connection.send(reply(b"ok"))
        return True


def misbehave(connection: Connection, actions: dict[bytes, Action]) -> None:
    """A server that does what the target says."""
    while (head := connection.read_head()) is not None:
        target = head.first_line.split(b" ")[1]
        length = int(head.get("content-length") or 0)
        if target != b"/early" and length:
            connection.read_exactly(length)
        action = actions.get(target, ok)
        if target == b"/tunnel":
            ws.accept(connection, head)
            ws.echo_frames(connection)
            return
        if not action(connection):
            return


def ok(connection: Connection) -> bool:
    connection.send(reply(b"ok"))
    return True


def reset(connection: Connection) -> bool:
    connection.reset()
    return False


def close(_connection: Connection) -> bool:
    return False


def garbage(connection: Connection) -> bool:
    connection.send(b"what?\r\n\r\n")
    return True


def cut(connection: Connection) -> bool:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
    return False


def cut_and_reset(connection: Connection) -> bool:
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    connection.reset()
    return False


def silent(connection: Connection) -> bool:
    connection.wait_closed()
    return False


def stalled(connection: Connection) -> bool:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
    connection.wait_closed()
    return False


def wrong_upgrade(connection: Connection) -> bool:
    connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    return True


def early(connection: Connection) -> bool:
    connection.send(reply(b"early", "403 Forbidden", {"Connection": "close"}))
    return False


def busy(connection: Connection) -> bool:
    connection.send(reply(b"busy", "503 Service Unavailable"))
    return True


ACTIONS: dict[bytes, Action] = {
    b"/reset": reset,
    b"/close": close,
    b"/garbage": garbage,
    b"/cut": cut,
    b"/cut-and-reset": cut_and_reset,
    b"/silent": silent,
    b"/stalled": stalled,
    b"/101": wrong_upgrade,
    b"/early": early,
    b"/busy": busy,
}
TARGETS = [target.decode() for target in ACTIONS] + ["/ok", "/tunnel"]


def one(lb: LoadBalancer, dice: random.Random) -> None:
    """One exchange with a random server behaviour and a random end at the client."""
    target = dice.choice(TARGETS)
    method = dice.choice(["GET", "POST", "PUT", "HEAD"])
    body = b"x" * dice.choice([0, BODY]) if method != "HEAD" else b""
    if target == "/tunnel" or dice.random() < 0.2:
        request = ws.handshake_bytes(target)[0] + dice.choice([b"", ws.frame(b"early", masked=True)])
    else:
        request = request_bytes(target, method=method, body=body)
    with RawClient(lb.address, timeout=5) as client:
        patience = dice.random()
        try:
            if patience < 0.3:  # leaves in the middle of the request
                client.send(request[: dice.randrange(1, len(request) + 1)])
            elif patience < 0.5:  # leaves without waiting for the answer
                client.send(request)
            else:
                client.send(request)
                if client.read_response(method).status == 101 and dice.random() < 0.7:
                    client.send(ws.close_frame(1000, masked=True))
                    client.read_until_closed()
            if dice.random() < 0.5:
                client.reset()
        except ENDED:
            return


def tables(address: str, workers: int) -> Tables:
    """One server that takes eight exchanges at a time, and short timeouts everywhere."""
    return settings(
        [{"name": "one", "address": address, "max_connections": 8}],
        workers=workers,
        route={"retry": {"attempts": 2, "on": ["connect", "reset", "503"]}},
        pool={
            "balance": "least-conn",
            "queue": {"length": 1000, "timeout": "1s"},
            "timeouts": {"response_head": "300ms", "body_idle": "300ms"},
        },
        listen={"timeouts": {"request_head": "500ms", "body_idle": "500ms"}},
    )


def misbehave_at_random(lb: LoadBalancer, seed: int) -> None:
    """Eight clients with sixty exchanges each."""

    def work(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        for _ in range(60):
            one(lb, dice)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def assert_eight_fit(lb: LoadBalancer, hold: Hold) -> None:
    """Had a place been lost, fewer than eight requests could now be with the server at the same time."""
    lb.tables["pool"]["main"]["timeouts"] = {"response_head": "20s"}
    lb.tables["pool"]["main"]["queue"] = {"timeout": "10s"}
    lb.reload()
    with open_clients(lb.address, 10) as clients:
        for client in clients:
            client.send(request_bytes("/hold"))
        eventually(lambda: hold.inside == 8, "eight requests are with the server")
        hold.opened.set()
        assert [client.read_response().status for client in clients] == [200] * 10
    assert hold.most == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_every_place_is_given_back(workers: int, balancer: StartBalancer, upstream: StartUpstream) -> None:
    hold = Hold()
    actions: dict[bytes, Action] = {**ACTIONS, b"/hold": hold}
    server = upstream(lambda connection: misbehave(connection, actions))
    lb = balancer(tables(server.address, workers))
    pids = lb.worker_pids()
    before = {pid: len(processes.descriptors(pid)) for pid in pids}
    misbehave_at_random(lb, seed=workers)
    _assert_quiet(lb, before)
    assert_eight_fit(lb, hold)
    assert lb.worker_pids() == pids
    assert "level=error" not in lb.stderr


def _assert_quiet(lb: LoadBalancer, before: dict[int, int]) -> None:
    """All gauges are zero, and each worker holds only idle connections to the server."""

    def quiet() -> bool:
        return all(w["connections"] == 0 and w["tunnels"] == 0 for w in lb.status()["workers"])

    eventually(quiet, "all gauges are zero")
    for pid, count in before.items():
        assert len(processes.descriptors(pid)) <= count + 8
