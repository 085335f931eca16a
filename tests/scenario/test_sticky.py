"""Stickiness: by cookie, header, query and address; over workers, reloads and restarts."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, Upstream, fetch, reply
from tests.harness import websocket as ws
from tests.harness.figures import Scrape
from tests.harness.settings import Tables, settings

pytestmark = pytest.mark.scenario


def server_of(lb: LoadBalancer, target: str = "/", **headers: str) -> str:
    """The name of the server that answers a request on a connection of its own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = fetch(lb.address, target, headers=named)
    assert response.status == 200, response
    return response.text.split(" ")[0]


def cookie_of(lb: LoadBalancer, cookie: str = "") -> tuple[str, str]:
    """(server, the new cookie's NAME=VALUE or "") of one request with `cookie`."""
    response = fetch(lb.address, "/", headers={"Cookie": cookie} if cookie else {})
    assert response.status == 200, response
    fresh = response.header("set-cookie") or ""
    return response.text.split(" ")[0], fresh.split(";")[0]


@pytest.fixture
def servers(upstream: StartUpstream) -> list[Upstream]:
    """Five servers that say their name."""
    return [upstream(name=f"s{number}") for number in range(5)]


def tables(servers: list[Upstream], workers: int = 4, **sticky: object) -> Tables:
    """Five servers behind `workers` workers."""
    return settings([server.address for server in servers], workers=workers, pool={"sticky": sticky})


def test_a_cookie_holds_on_every_worker(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(tables(servers, cookie="lb"))
    first, cookie = cookie_of(lb)
    assert cookie.startswith("lb=")
    for _ in range(30):
        assert cookie_of(lb, cookie) == (first, "")
    assert len({cookie_of(lb)[0] for _ in range(30)}) > 1


def test_a_cookie_tells_nobody_an_address(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(tables(servers, cookie="lb"))
    response = fetch(lb.address, "/")
    text = response.header("set-cookie") or ""
    attributes = {part.strip().lower() for part in text.split(";")[1:]}
    assert {"httponly", "path=/"} <= attributes
    assert any(attribute.startswith("samesite=") for attribute in attributes)
    assert "secure" not in attributes
    value = text.split(";")[0].removeprefix("lb=")
    decoded = base64.urlsafe_b64decode(value.replace(".", "") + "===")
    for server in servers:
        assert str(server.port) not in value
        assert str(server.port).encode() not in decoded
        assert server.port.to_bytes(2, "big") not in decoded
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", value)


def test_a_forged_cookie_is_ignored(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(tables(servers, cookie="lb"))
    _, cookie = cookie_of(lb)
    value = cookie.removeprefix("lb=")
    flipped = ("A" if value[0] != "A" else "B") + value[1:]
    for forged in (flipped, value[:-4] + "AAAA", value[:-1], value + "A", "", "0", "x" * 5000, value[::-1]):
        _, fresh = cookie_of(lb, f"lb={forged}")
        assert fresh.startswith("lb="), forged


def test_a_cookie_is_found_among_others(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(tables(servers, cookie="lb"))
    first, cookie = cookie_of(lb)
    for jar in (f"a=1; {cookie}; b=2", f"xlb=1; {cookie}", f"lb=forged; {cookie}"):
        assert cookie_of(lb, jar) == (first, "")


def test_a_cookie_holds_over_a_reload_that_adds_and_removes_servers(
    balancer: StartBalancer, servers: list[Upstream]
) -> None:
    lb = balancer(tables(servers[:4], cookie="lb"))
    jars = {server: cookie for server, cookie in (cookie_of(lb) for _ in range(40))}
    assert len(jars) == 4
    lb.tables["pool"]["main"]["servers"] = [servers[4].address, servers[2].address, servers[0].address]
    lb.reload()
    for server in ("s0", "s2"):
        assert cookie_of(lb, jars[server]) == (server, "")
    moved, fresh = cookie_of(lb, jars["s1"])
    assert moved in ("s0", "s2", "s4")
    assert fresh
    assert cookie_of(lb, fresh) == (moved, "")


def test_a_cookie_holds_over_a_restart_with_a_key_file(
    balancer: StartBalancer, servers: list[Upstream], tmp_path: Path
) -> None:
    key_file = tmp_path / "sticky.key"
    first = balancer(tables(servers, cookie="lb", key_file=str(key_file)))
    jars = [cookie_of(first) for _ in range(8)]
    first.stop()
    assert len(key_file.read_bytes()) >= 32
    assert key_file.stat().st_mode & 0o077 == 0
    second = balancer(tables(servers, cookie="lb", key_file=str(key_file)))
    for server, cookie in jars:
        assert cookie_of(second, cookie) == (server, "")


def test_a_cookie_holds_for_a_replaced_worker(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(tables(servers, workers=1, cookie="lb"))
    first, cookie = cookie_of(lb)
    lb.wait_replaced(0, lb.kill_worker(0))
    assert cookie_of(lb, cookie) == (first, "")


def test_a_stuck_server_that_is_down_gives_a_new_choice_and_a_new_cookie(
    balancer: StartBalancer, servers: list[Upstream]
) -> None:
    lb = balancer(tables(servers, cookie="lb"))
    name, cookie = cookie_of(lb)
    next(server for server in servers if server.name == name).close()
    moved, fresh = cookie_of(lb, cookie)
    assert moved != name
    assert fresh.startswith("lb=")
    for _ in range(5):
        assert cookie_of(lb, fresh) == (moved, "")


def test_a_websocket_handshake_gets_and_obeys_the_cookie(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    servers = [upstream(ws.serve_echo, name=f"s{number}") for number in range(4)]
    lb = balancer(tables(servers, cookie="lb"))
    with RawClient(lb.address) as client:
        response = ws.upgrade(client)
        first, cookie = response.header("x-server"), (response.header("set-cookie") or "").split(";")[0]
    assert cookie
    for _ in range(10):
        with RawClient(lb.address) as client:
            response = ws.upgrade(client, headers={"Cookie": cookie})
            assert response.header("x-server") == first
            assert response.header("set-cookie") is None


def test_equal_headers_go_to_the_same_server(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(tables(servers, header="X-Session"))
    chosen = {key: server_of(lb, X_Session=key) for key in map(str, range(20))}
    assert len(set(chosen.values())) > 2
    for key, server in chosen.items():
        assert {server_of(lb, x_session=key) for _ in range(3)} == {server}


def test_equal_query_values_go_to_the_same_server(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(tables(servers, query="sid"))
    chosen = {key: server_of(lb, f"/?sid={key}") for key in map(str, range(20))}
    assert len(set(chosen.values())) > 2
    for key, server in chosen.items():
        assert server_of(lb, f"/other?a=b&sid={key}&c=d") == server


def test_equal_addresses_go_to_the_same_server(balancer: StartBalancer, servers: list[Upstream]) -> None:
    configuration = tables(servers, ip=True)
    configuration["listen"]["public"]["trusted_proxies"] = ["127.0.0.1/32"]
    lb = balancer(configuration)
    assert len({server_of(lb) for _ in range(20)}) == 1
    chosen = {ip: server_of(lb, X_Forwarded_For=ip) for ip in (f"203.0.113.{n}" for n in range(20))}
    assert len(set(chosen.values())) > 2
    for ip, server in chosen.items():
        assert server_of(lb, X_Forwarded_For=ip) == server


def test_a_key_moves_only_when_its_server_is_down(balancer: StartBalancer, servers: list[Upstream]) -> None:
    lb = balancer(tables(servers, header="X-Session"))
    chosen = {key: server_of(lb, X_Session=key) for key in map(str, range(20))}
    servers[2].close()
    for key, server in chosen.items():
        now = server_of(lb, X_Session=key)
        assert now != "s2"
        assert server == "s2" or now == server


def test_a_request_that_meets_a_closed_idle_connection_counts_once(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    def one_each(connection: Connection) -> None:
        connection.read_request()
        connection.send(reply())
        connection.read_request()  # and closes, just as the connection is used again

    server = upstream(one_each)
    lb = balancer(settings([server.address], workers=1, pool={"sticky": {"cookie": "lb"}}))
    lb.wait_control()
    _, cookie = cookie_of(lb)
    assert cookie_of(lb, cookie) == ("ok", "")
    assert server.accepted == 2
    assert Scrape(lb).by("lb_sticky_lookups_total", "result") == {("new",): 1, ("hit",): 1}
