"""Reloads while requests wait in the queue or are about to be tried again: they count servers by the
configuration that they began with, whatever order the new one has."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import (
    Connection,
    LoadBalancer,
    RawClient,
    Response,
    Upstream,
    eventually,
    fetch,
    open_clients,
    reply,
)
from tests.harness.client import request_bytes
from tests.harness.gauges import Gauges
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

QUEUE = {"queue": {"length": 10, "timeout": "60s"}}
STICKY = {"sticky": {"cookie": "lb"}}


class Hold:
    """A server that holds `/hold` until it is opened, then answers (or leaves without a word), and answers
    everything else at once; with its name, and one request per connection."""

    def __init__(self, *, leaves: bool = False) -> None:
        self.opened = threading.Event()
        self._leaves = leaves

    def __call__(self, connection: Connection) -> None:
        request = connection.read_request()
        if request is None:
            return
        if request.target == "/hold":
            self.opened.wait(20)
            if self._leaves:
                return
        connection.send(reply(connection.upstream.name.encode(), headers={"Connection": "close"}))


def held(server: Upstream) -> int:
    """How many times `server` was asked for `/hold`."""
    return sum(request.target == "/hold" for request in list(server.requests))


def members(servers: dict[str, Upstream], order: str, **options: object) -> list[dict[str, Any]]:
    """The `[[server]]` tables of the servers that `order` names."""
    return [{"name": name, "address": servers[name].address, **options} for name in order]


def sticky_cookie(response: Response) -> str:
    """NAME=VALUE of the cookie that `response` sets, or ""."""
    return (response.header("set-cookie") or "").split(";")[0]


def cookie_for(lb: LoadBalancer, name: str) -> dict[str, str]:
    """The Cookie field of a client that the server `name` has."""

    def answered() -> str:
        response = fetch(lb.address)
        return sticky_cookie(response) if response.text == name else ""

    return {"Cookie": eventually(answered, f"{name} answers")}


def assert_stuck(lb: LoadBalancer, cookie: str, name: str) -> None:
    """`cookie` names `name`, under the configuration that holds now."""
    response = fetch(lb.address, headers={"Cookie": cookie})
    assert (response.text, response.header("set-cookie")) == (name, None)


def reorder(lb: LoadBalancer, servers: list[dict[str, Any]]) -> None:
    """Reloads with `servers` in the pool."""
    lb.tables["pool"]["main"]["server"] = servers
    lb.reload()


def assert_sound(lb: LoadBalancer) -> None:
    """Nothing leaked, and nothing failed inside."""
    Gauges(lb).wait_all_zero()
    assert "fault" not in lb.stderr


@pytest.mark.parametrize("sticky", [{}, STICKY], ids=["plain", "sticky"])
@pytest.mark.parametrize("order", ["ba", "xab", "xba", "axb", "b", "xb"])
def test_a_retry_after_a_reload_goes_to_the_other_server(
    order: str, sticky: dict[str, object], balancer: StartBalancer, upstream: StartUpstream
) -> None:
    hold, other = Hold(leaves=True), Hold()
    other.opened.set()
    servers = {name: upstream(hold if name == "a" else other, name=name) for name in "abx"}
    retry = {"attempts": 2, "on": ["reset"]}
    lb = balancer(settings(members(servers, "ab"), workers=1, route={"retry": retry}, pool=sticky))
    headers = cookie_for(lb, "a") if sticky else {}
    # Without a cookie it is a's turn for one of two.
    with open_clients(lb.address, 1 if sticky else 2) as clients:
        for client in clients:
            client.send(request_bytes("/hold", headers=headers))
        eventually(lambda: held(servers["a"]), "a has a request")
        reorder(lb, members(servers, order))
        hold.opened.set()
        responses = [client.read_response() for client in clients]
        assert [(response.status, response.text) for response in responses] == [(200, "b")] * len(clients)
    assert (held(servers["a"]), held(servers["b"]), held(servers["x"])) == (1, len(clients), 0)
    if sticky:
        assert_stuck(lb, sticky_cookie(responses[0]), "b")
    assert_sound(lb)


@pytest.mark.parametrize("sticky", [{}, STICKY], ids=["plain", "sticky"])
@pytest.mark.parametrize("order", ["xa", "ax", "x"])
def test_a_retry_after_a_reload_has_nobody_but_the_servers_of_its_time(
    order: str, sticky: dict[str, object], balancer: StartBalancer, upstream: StartUpstream
) -> None:
    hold, other = Hold(leaves=True), Hold()
    other.opened.set()
    servers = {"a": upstream(hold, name="a"), "x": upstream(other, name="x")}
    retry = {"attempts": 3, "on": ["connect", "reset", "503"]}
    lb = balancer(settings(members(servers, "a"), workers=1, route={"retry": retry}, pool=sticky))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/hold"))
        eventually(lambda: held(servers["a"]), "a has the request")
        reorder(lb, members(servers, order))
        hold.opened.set()
        assert client.read_response().status == 502
    lb.wait_access(status=502, reason="upstream_reset")
    assert_sound(lb)


CHANGES: dict[str, dict[str, Any]] = {
    "nothing of the servers": {"order": "a", "max_connections": 1},
    "one in front": {"order": "xa", "max_connections": 1},
    "one behind": {"order": "ax", "max_connections": 1},
    "another weight": {"order": "a", "max_connections": 1, "weight": 7},
    "another limit": {"order": "a", "max_connections": 5},
    "no limit": {"order": "a"},
    "another server": {"order": "x", "max_connections": 1},
}


@pytest.mark.parametrize("sticky", [{}, STICKY], ids=["plain", "sticky"])
@pytest.mark.parametrize("change", CHANGES)
def test_who_waits_in_the_queue_keeps_the_turn(
    change: str, sticky: dict[str, object], balancer: StartBalancer, upstream: StartUpstream
) -> None:
    hold = Hold()
    servers = {name: upstream(hold, name=name) for name in "ax"}
    lb = balancer(settings(members(servers, "a", max_connections=1), workers=1, pool={**QUEUE, **sticky}))
    with open_clients(lb.address, 4) as clients:
        for client in clients:
            client.send(request_bytes("/hold"))
        Gauges(lb).wait(waiting=3)
        lb.tables["pool"]["main"]["queue"] = {"length": 20, "timeout": "60s"}
        reorder(lb, members(servers, **CHANGES[change]))
        hold.opened.set()
        responses = [client.read_response() for client in clients]
    assert [(response.status, response.text) for response in responses] == [(200, "a")] * 4
    if sticky and "a" in CHANGES[change]["order"]:
        for response in responses:
            assert_stuck(lb, sticky_cookie(response), "a")
    assert_sound(lb)


@pytest.mark.parametrize("freed", ["a", "b"])
@pytest.mark.parametrize("order", ["ba", "xab", "bxa"])
def test_who_waits_for_one_server_gets_that_one(
    order: str, freed: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Two wait, each stuck to a server; the place that becomes free is for one of them."""
    holds = {name: Hold() for name in "abx"}
    servers = {name: upstream(holds[name], name=name) for name in "abx"}
    limit = {"max_connections": 1}
    lb = balancer(settings(members(servers, "ab", **limit), workers=1, pool={**QUEUE, **STICKY}))
    cookies = {name: cookie_for(lb, name) for name in "ab"}
    with open_clients(lb.address, 4) as clients:
        holders = dict(zip("ab", clients[:2], strict=True))
        waiters = dict(zip("ab", clients[2:], strict=True))
        for name, client in [*holders.items(), *waiters.items()]:
            client.send(request_bytes("/hold", headers=cookies[name]))
        eventually(lambda: held(servers["a"]) and held(servers["b"]), "both places are taken")
        Gauges(lb).wait(in_flight=4)
        reorder(lb, members(servers, order, **limit))
        for name in (freed, "a" if freed == "b" else "b"):
            holds[name].opened.set()
            assert holders[name].read_response().text == name
            assert waiters[name].read_response().text == name
    assert held(servers["x"]) == 0
    for name in "ab":
        assert_stuck(lb, cookies[name]["Cookie"], name)
    assert_sound(lb)


@pytest.mark.parametrize("change", ["another limit", "no limit"])
def test_who_waits_goes_when_the_limit_is_lifted(
    change: str, balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """The exchange that holds the only place may be a tunnel, and never end."""
    hold = Hold()
    servers = {"a": upstream(hold, name="a")}
    lb = balancer(settings(members(servers, "a", max_connections=1), workers=1, pool=QUEUE))
    with RawClient(lb.address) as holder, RawClient(lb.address) as waiter:
        holder.send(request_bytes("/hold"))
        eventually(lambda: held(servers["a"]), "the only place is taken")
        waiter.send(request_bytes("/"))
        Gauges(lb).wait(waiting=1)
        reorder(lb, members(servers, **CHANGES[change]))
        assert waiter.read_response().text == "a"
        hold.opened.set()
        assert holder.read_response().text == "a"
    assert_sound(lb)


def test_who_waits_for_a_pool_that_is_removed_goes_on(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    """Nobody else comes to that pool any more, so there is nothing to wait for."""
    hold = Hold()
    servers = {name: upstream(hold, name=name) for name in "ax"}
    lb = balancer(settings(members(servers, "a", max_connections=1), workers=1, pool=QUEUE))
    with RawClient(lb.address) as holder, RawClient(lb.address) as waiter:
        holder.send(request_bytes("/hold"))
        eventually(lambda: held(servers["a"]), "the only place is taken")
        waiter.send(request_bytes("/"))
        Gauges(lb).wait(waiting=1)
        lb.tables["pool"] = {"other": {"server": members(servers, "x")}}
        lb.tables["route"][0]["pool"] = "other"
        lb.reload()
        assert waiter.read_response().text == "a"
        hold.opened.set()
        assert holder.read_response().text == "a"
    assert fetch(lb.address).text == "x"
    assert_sound(lb)
