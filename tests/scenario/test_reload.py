"""Reloads in place, as connections see them: none is touched, and each exchange ends as it began."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, RawClient, eventually, fetch, reply
from tests.harness import websocket as ws
from tests.harness.client import request_bytes
from tests.harness.ports import free_port
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario


def refused(port: int) -> bool:
    """Whether nobody listens on `port`."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Hold:
    """A server that holds `/hold` until it is opened, and answers everything else at once."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            if request.target == "/hold":
                self.opened.wait(20)
            connection.send(reply(connection.upstream.name.encode()))


def test_an_exchange_ends_under_the_configuration_that_it_began_with(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    hold = Hold()
    one, two = upstream(hold, name="one"), upstream(hold, name="two")
    lb = balancer(settings([one.address], route={"headers": {"response_set": {"X-Rule": "old"}}}))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/hold"))
        eventually(lambda: one.requests, "the request is with the server")
        lb.tables["route"][0]["headers"] = {"response_set": {"X-Rule": "new"}}
        lb.tables["pool"]["main"]["servers"] = [two.address]
        lb.reload()
        hold.opened.set()
        response = client.read_response()
        assert (response.text, response.header("x-rule")) == ("one", "old")
        response = client.request("/")
        assert (response.text, response.header("x-rule")) == ("two", "new")
    eventually(lambda: one.open_connections() == 0, "nothing is left on the removed server")


def test_a_tunnel_on_a_removed_server_lives_on(balancer: StartBalancer, upstream: StartUpstream) -> None:
    one, two = upstream(ws.serve_echo, name="one"), upstream(ws.serve_echo, name="two")
    lb = balancer(settings([one.address]))
    with ws.connect(lb.address) as tunnel:
        lb.tables["pool"]["main"]["servers"] = [two.address]
        lb.tables["route"][0]["name"] = "renamed"
        lb.reload()
        for _ in range(4):
            assert fetch(lb.address).text == "two"
        tunnel.send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(tunnel).payload == b"still here"
        tunnel.send(ws.close_frame(1000, masked=True))
        assert ws.read_frame(tunnel).close_code == 1000
    (closed,) = lb.wait_access(event="websocket_close")
    assert (closed["server"], closed["route"]) == (one.address, "all")
    eventually(lambda: one.open_connections() == 0, "nothing is left on the removed server")


def test_a_removed_listener_stops_at_once_and_its_connections_live_on(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    configuration = settings([upstream(ws.serve_echo, name="up").address])
    port = free_port()
    configuration["listen"]["second"] = {"bind": [f"127.0.0.1:{port}"]}
    lb = balancer(configuration)
    with RawClient(("127.0.0.1", port)) as http, ws.connect(("127.0.0.1", port)) as tunnel:
        assert http.request("/").text == "up"
        del lb.tables["listen"]["second"]
        lb.reload()
        assert refused(port)
        assert http.request("/").text == "up"
        tunnel.send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(tunnel).payload == b"still here"
    lb.tables["listen"]["second"] = {"bind": [f"127.0.0.1:{port}"]}
    lb.reload()
    assert fetch(("127.0.0.1", port)).text == "up"


def test_limits_and_timeouts_of_a_listener_change(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream().address], listen={"limits": {"body_bytes": "1KiB"}}))
    assert fetch(lb.address, method="POST", body=b"x" * 2000).status == 413
    lb.tables["listen"]["public"]["limits"] = {"body_bytes": "4KiB"}
    lb.tables["listen"]["public"]["timeouts"] = {"request_head": "300ms"}
    lb.reload()
    assert fetch(lb.address, method="POST", body=b"x" * 2000).status == 200
    with RawClient(lb.address) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        assert client.read_response().status == 408


@pytest.mark.parametrize("broken", ["toml", "key", "address", "pool"])
def test_a_bad_configuration_changes_nothing(
    broken: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    lb = balancer(settings([upstream(ws.serve_echo, name="up").address]))
    generation = lb.status()["generation"]
    with ws.connect(lb.address) as tunnel, RawClient(lb.address) as http:
        assert http.request("/").text == "up"
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            lb.tables["pool"]["main"]["servers"] = ["127.0.0.1:1"]
            if broken == "key":
                lb.tables["pool"]["main"]["balence"] = "random"
            elif broken == "address":
                address = f"127.0.0.1:{taken.getsockname()[1]}"
                lb.tables["listen"]["public"]["bind"] = [*lb.tables["listen"]["public"]["bind"], address]
            elif broken == "pool":
                lb.tables["route"][0]["pool"] = "absent"
            lb.write()
            if broken == "toml":
                lb.file.write_text(lb.file.read_text() + "\n[[[\n")
            outcome = lb.ask("reload")["outcome"]
        assert not outcome["ok"]
        assert outcome["error"]
        assert lb.status()["generation"] == generation
        assert http.request("/").text == "up"
        assert fetch(lb.address).text == "up"
        tunnel.send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(tunnel).payload == b"still here"


def test_a_worker_that_dies_later_comes_back_under_the_new_configuration(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    one, two = upstream(name="one"), upstream(name="two")
    lb = balancer(settings([one.address], workers=1))
    assert fetch(lb.address).text.startswith("one")
    lb.tables["pool"]["main"]["servers"] = [two.address]
    lb.reload()
    lb.wait_replaced(0, lb.kill_worker(0))
    assert fetch(lb.address).text.startswith("two")


def test_a_hangup_reloads_too(balancer: StartBalancer, upstream: StartUpstream) -> None:
    one, two = upstream(name="one"), upstream(name="two")
    lb = balancer(settings([one.address]))
    pids = lb.worker_pids()
    lb.tables["pool"]["main"]["servers"] = [two.address]
    lb.write()
    lb.send_signal(signal.SIGHUP)
    eventually(lambda: fetch(lb.address).text.startswith("two"), "the new configuration is served")
    assert lb.worker_pids() == pids


def test_more_and_fewer_workers(balancer: StartBalancer, upstream: StartUpstream) -> None:
    lb = balancer(settings([upstream(ws.serve_echo, name="up").address], workers=1))
    (first,) = lb.worker_pids()
    with ws.connect(lb.address) as tunnel:
        for count in (3, 1, 2):
            lb.tables["process"]["workers"] = count
            lb.reload()
            for _ in range(20):
                assert fetch(lb.address).text == "up"
        tunnel.send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(tunnel).payload == b"still here"
    assert lb.worker_pids()[0] == first
    assert os.path.exists(f"/proc/{first}")
