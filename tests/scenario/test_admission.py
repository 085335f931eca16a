"""Reconnect storms: handshakes reach the servers at a bounded rate, in a fair order; none is forgotten."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, fetch, open_clients, reply
from tests.harness import websocket as ws
from tests.harness.figures import Scrape
from tests.harness.gauges import Gauges
from tests.harness.settings import settings
from workers.contract.cells import PoolCell
from workers.core.admission import MARGIN

pytestmark = pytest.mark.scenario


class Door:
    """A server that notes the targets of the handshakes that reach it, in their order."""

    def __init__(self) -> None:
        self.came: list[str] = []

    def __call__(self, connection: Connection) -> None:
        while (head := connection.read_head()) is not None:
            if not head.get("upgrade"):
                connection.send(reply())
                continue
            self.came.append(head.first_line.split(b" ")[1].decode())
            ws.accept(connection, head)
            ws.echo_frames(connection)
            return


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes the clients that it is given."""
    with ExitStack() as stack:
        yield stack


def start(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, workers: int = 1, **admission: int
) -> LoadBalancer:
    pool = {"sticky": {"cookie": "lb"}, "admission": admission}
    drain = {"hard_stop": "30s"}
    return balancer(settings([upstream(door).address], workers=workers, pool=pool, drain=drain))


def knock(lb: LoadBalancer, stack: ExitStack, target: str = "/", **headers: str) -> RawClient:
    """A client that has asked for a WebSocket, and has no answer yet."""
    client = stack.enter_context(RawClient(lb.address, timeout=20))
    client.send(ws.handshake_bytes(target, headers=headers)[0])
    return client


def cookie_of(lb: LoadBalancer) -> str:
    """The sticky cookie, from a request that is no handshake: those are not counted."""
    return (fetch(lb.address).header("set-cookie") or "").split(";")[0]


def set_rate(lb: LoadBalancer, **admission: int) -> None:
    lb.tables["pool"]["main"]["admission"] = admission
    lb.reload()


def use_up(lb: LoadBalancer, stack: ExitStack) -> None:
    """Takes all there is at once, so that the next one waits."""
    first = knock(lb, stack, "/first")
    assert first.read_response().status == 101


def wait_until_in(gauges: Gauges, door: Door, number: int) -> None:
    """Waits until so many wait, or have had their turn."""
    eventually(lambda: gauges.read()["admission"] + len(door.came) >= number, f"{number} are there")


def test_a_storm_is_let_through_at_the_rate_of_all_workers_together(
    balancer: StartBalancer, upstream: StartUpstream, door: Door
) -> None:
    lb = start(balancer, upstream, door, workers=2, rate=40, burst=10, queue=200)
    gauges = Gauges(lb)
    before = time.monotonic()
    with open_clients(lb.address, 80) as storm:
        for client in storm:
            client.send(ws.handshake_bytes()[0])
        for client in storm:
            assert client.read_response().status == 101
            # Never more than a burst (and a token for each worker), and the rate since then.
            assert len(door.came) <= 10 + 2 + 40 * (time.monotonic() - before)
        assert gauges.count_of_pools(PoolCell.ADMITTED) == 80
        gauges.wait(admission=0, tunnels=80)
    gauges.wait_all_zero()
    assert gauges.count_of_pools(PoolCell.ADMISSION_REFUSED) == 0


def test_what_is_no_handshake_does_not_wait(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=1, queue=10)
    use_up(lb, clients)
    knock(lb, clients, "/late")
    Gauges(lb).wait(admission=1)
    for _ in range(20):
        assert fetch(lb.address).status == 200


@pytest.mark.parametrize("kind", ["cookie", "header", "query"])
def test_returners_go_before_newcomers_each_in_the_order_of_coming(
    kind: str, balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=1, queue=20)
    cookie = cookie_of(lb)
    if kind != "cookie":
        lb.tables["pool"]["main"]["sticky"] = {kind: "sid"}
        lb.reload()
    known = {"Cookie": cookie} if kind == "cookie" else {"sid": "me"} if kind == "header" else {}
    use_up(lb, clients)
    gauges = Gauges(lb)
    waiting = []
    backs = [f"/back{number}{'?sid=me' if kind == 'query' else ''}" for number in (1, 2)]
    for name in ("/new1", "/new2", "/new3", *backs):
        headers = known if name in backs else {"Cookie": "lb=forged"}
        waiting.append(knock(lb, clients, name, **headers))
        wait_until_in(gauges, door, len(waiting) + 1)
    passed = len(door.came)
    set_rate(lb, rate=5, burst=1, queue=20)  # one after the other, so that the servers see them in order
    assert [client.read_response().status for client in waiting] == [101] * 5
    # (Some may have had their turn before all were there.)
    left = [name for name in (*backs, "/new1", "/new2", "/new3") if name not in door.came[:passed]]
    assert len(left) > 2
    assert door.came[passed:] == left


def test_a_returner_takes_the_last_place_of_a_newcomer(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=1, queue=1)
    cookie = cookie_of(lb)
    gauges = Gauges(lb)

    def try_it() -> bool:
        use_up(lb, clients)
        newcomer = knock(lb, clients, "/new")
        gauges.wait(admission=1)
        returner = knock(lb, clients, "/back", Cookie=cookie)
        refused = newcomer.read_response().status == 503
        assert returner.read_response().status == 101 or not refused
        return refused

    # It may have had its turn just before.
    assert any(try_it() for _ in range(5))


def test_what_exceeds_the_queue_is_told_when_to_come_back(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=1, queue=3)
    lb.wait_control()
    asked = [knock(lb, clients, f"/{number}") for number in range(12)]
    gauges = Gauges(lb)
    eventually(lambda: gauges.count_of_pools(PoolCell.ADMISSION_REFUSED), "some are refused")
    set_rate(lb, rate=1000, burst=100, queue=3)
    answers = [client.read_response() for client in asked]
    refused = [answer for answer in answers if answer.status == 503]
    assert 1 <= len(refused) <= 8
    assert {answer.status for answer in answers} == {101, 503}
    for answer in refused:
        assert 1 <= int(answer.header("retry-after") or "") <= 5
        assert "connect at once" in answer.text
    lb.wait_access(len(refused), reason="admission_full", status=503)
    assert gauges.count_of_pools(PoolCell.ADMISSION_REFUSED) == len(refused)
    handshakes = Scrape(lb).by("lb_websocket_handshakes_total", "result")
    assert handshakes["refused",] == len(refused)
    gauges.wait(admission=0)
    # The connection goes on: it may ask for something else.
    again = next(client for client, answer in zip(asked, answers, strict=True) if answer.status == 503)
    assert again.request("/").status == 200


def test_without_a_queue_nobody_waits(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=2, queue=0)
    asked = [knock(lb, clients) for _ in range(10)]
    assert {client.read_response().status for client in asked} == {101, 503}
    Gauges(lb).wait(admission=0)


def test_who_leaves_frees_the_place(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=1, queue=50)
    use_up(lb, clients)
    gauges = Gauges(lb)
    with ExitStack() as leavers:
        for number in range(30):
            knock(lb, leavers, f"/leaver{number}")
        eventually(lambda: gauges.read()["admission"] >= 25, "they wait")
    gauges.wait(admission=0, in_flight=0)
    lb.wait_access(25, reason="client_closed")
    assert len(door.came) < 10
    # The one behind them does not wait for their turns.
    assert knock(lb, clients, "/stayer").read_response().status == 101


@pytest.mark.parametrize("change", ["unbound", "pool gone", "other servers"])
def test_who_waits_goes_on_after_a_reload(
    change: str, balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, workers=2, rate=1, burst=1, queue=200)
    other = Door()
    spare = upstream(other).address
    for _ in range(2):
        use_up(lb, clients)
    asked = [knock(lb, clients) for _ in range(100)]
    gauges = Gauges(lb)
    eventually(lambda: gauges.read()["admission"] >= 90, "they wait")
    tables: dict[str, Any] = lb.tables["pool"]
    if change == "unbound":
        del tables["main"]["admission"]
    elif change == "pool gone":
        tables["spare"] = {"servers": [spare]}
        del tables["main"]
        lb.tables["route"][0]["pool"] = "spare"
    else:
        tables["main"]["servers"] = [spare]
        tables["main"]["admission"] = {"rate": 1000, "burst": 10, "queue": 200}
    lb.reload()
    assert [client.read_response().status for client in asked] == [101] * 100
    gauges.wait(admission=0, tunnels=102)
    assert len(other.came) >= (90 if change == "other servers" else 0)
    clients.close()
    gauges.wait_all_zero()


def test_a_shorter_queue_keeps_those_who_came_first(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=1, queue=50)
    use_up(lb, clients)
    gauges = Gauges(lb)
    asked = []
    for number in range(10):
        asked.append(knock(lb, clients, f"/{number}"))
        wait_until_in(gauges, door, number + 2)
    set_rate(lb, rate=1, burst=1, queue=4)
    set_rate(lb, rate=1000, burst=100, queue=4)
    statuses = [client.read_response().status for client in asked]
    assert statuses == sorted(statuses)
    assert 4 <= statuses.count(101) < 10
    gauges.wait(admission=0)


def test_a_worker_that_stops_sends_those_who_wait_elsewhere(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=1, queue=50)
    use_up(lb, clients)
    gauges = Gauges(lb)
    asked = [knock(lb, clients) for _ in range(5)]
    eventually(lambda: gauges.read()["admission"] >= 3, "they wait")
    lb.send_signal(signal.SIGTERM)
    answers = [client.read_response() for client in asked]
    refused = [answer for answer in answers if answer.status == 503]
    assert len(refused) >= 2
    assert all(answer.header("connection") == "close" for answer in refused)
    lb.wait_access(len(refused), reason="shutting_down")
    gauges.wait(admission=0)


@pytest.mark.parametrize(("how", "storm"), [("fewer workers", 60), ("upgrade", 120)])
def test_a_worker_that_others_follow_admits_all_who_wait(
    how: str, storm: int, balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, workers=2, rate=20, burst=2, queue=200)
    gauges = Gauges(lb)
    lb.wait_control()
    before = time.monotonic()
    asked = [knock(lb, clients) for _ in range(storm)]
    eventually(lambda: gauges.read()["admission"] >= storm - 20, "they wait")
    if how == "upgrade":
        assert lb.command("upgrade", "-c", str(lb.file)).returncode == 0
    else:
        lb.send_signal(signal.SIGTTOU)
    for client in asked:
        assert client.read_response().status == 101
        # Who is new or leaves has a burst of its own, the rate is that of all.
        assert len(door.came) <= 3 * 2 + 4 + 20 * (time.monotonic() - before)
    assert gauges.count_of_pools(PoolCell.ADMISSION_REFUSED) == 0
    late = knock(lb, clients)
    assert late.read_response().status == 101


def test_who_still_waits_when_the_worker_must_go_is_told(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    admission = {"rate": 1, "burst": 1, "queue": 200}
    pool = {"sticky": {"cookie": "lb"}, "admission": admission}
    drain = {"hard_stop": "4s"}
    lb = balancer(settings([upstream(door).address], workers=2, pool=pool, drain=drain))
    gauges = Gauges(lb)
    asked = [knock(lb, clients) for _ in range(40)]
    eventually(lambda: gauges.read()["admission"] >= 35, "they wait")
    lb.send_signal(signal.SIGTTOU)
    left = lb.wait_access(5, reason="shutting_down")
    assert all(line["status"] == 503 for line in left)
    set_rate(lb, rate=1000, burst=100, queue=200)
    answers = [client.read_response() for client in asked]
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {101, 503}
    assert all(answer.header("connection") == "close" for answer in refused)
    # They got their answers towards the end of the time: some had their turn before.
    assert min(line["duration"] for line in left) > 1.5


def test_nobody_waits_for_ever_behind_returners(
    balancer: StartBalancer, upstream: StartUpstream, door: Door, clients: ExitStack
) -> None:
    lb = start(balancer, upstream, door, rate=1, burst=1, queue=2)
    cookie = cookie_of(lb)
    use_up(lb, clients)
    gauges = Gauges(lb)
    # A place for itself and one for a returner; there is always one of those.
    returner = knock(lb, clients, "/back", Cookie=cookie)
    newcomer = knock(lb, clients, "/new")
    began = time.monotonic()
    gauges.wait(admission=2)
    while time.monotonic() - began < MARGIN + 2 - 0.5:
        assert returner.read_response().status == 101
        returner = knock(lb, clients, "/back", Cookie=cookie)
    answer = newcomer.read_response()
    if answer.status == 503:
        lb.wait_access(reason="admission_timeout", status=503)
        assert int(answer.header("retry-after") or "") >= 1
    assert answer.status == 503
