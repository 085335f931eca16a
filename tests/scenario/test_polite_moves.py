"""Tunnels that must go are asked politely, in their turn: nobody loses a connection without a word."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import StartBalancer
from tests.harness import LoadBalancer, eventually
from tests.harness.crowd import Crowd, Life, histogram
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

SPREAD = 2.0


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with Crowd() as found:
        yield found


def started(balancer: StartBalancer, crowd: Crowd, *names: str, **options: Any) -> LoadBalancer:
    """A load balancer over servers of these names; those that come again know their server by a cookie."""
    servers = [{"name": name, "address": crowd.serve(name)} for name in names]
    pool = {"sticky": {"cookie": "lb"}, **options.pop("pool", {})}
    options.setdefault("drain", {"hard_stop": "20s", "close_code": 1012, "spread": f"{SPREAD:g}s"})
    lb = balancer(settings(servers, pool=pool, **options))
    lb.wait_control()
    return lb


def drain(lb: LoadBalancer, server: str, to: str = "drain", **how: Any) -> float:
    """What the operator wants of `server`; returns when it was said."""
    said = time.monotonic()
    lb.admin(f"pools/main/servers/{server}", method="PATCH", body={"admin": to, **how})
    return said


def tunnels(lb: LoadBalancer) -> int:
    return sum(int(worker["tunnels"]) for worker in lb.status()["workers"])


def paced(lb: LoadBalancer) -> int:
    """Tunnels that wait for their turn."""
    return sum(int(worker["closing"]) for worker in lb.admin("workers"))


def assert_even(lives: list[Life], start: float, spread: float = SPREAD, slack: float = 1.5) -> None:
    """They were told so evenly: no part of the time has much more, and none is nearly empty."""
    parts = 5
    counts = histogram([life.told for life in lives], start, spread, parts)
    share = len(lives) / parts
    assert all(share / 2.5 <= count <= share * 2.5 for count in counts), counts
    assert lives[-1].told - start < spread + slack


def test_a_drained_server_is_left_evenly_and_nobody_comes_back(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", "b", pool={"sticky": {"cookie": "lb"}, "balance": "round-robin"})
    crowd.join(lb.address, 300, returns=True)
    assert crowd.where() == {"a": 150, "b": 150}
    start = drain(lb, "a")
    assert eventually(lambda: paced(lb), "they wait for their turn") <= 150
    eventually(lambda: crowd.where() == {"b": 300}, "all are on the other server")
    assert len(crowd.ended()) == 150
    assert crowd.codes() == {1012}
    assert not any(life.reset for life in crowd.ended())
    assert_even(crowd.ended(), start)
    eventually(lambda: tunnels(lb) == 300 and paced(lb) == 0, "the figures say so, too")
    view = lb.admin("pools/main/servers/a")
    assert (view["state"], view["tunnels"]) == ("drain", 0)
    assert "asked to move" in view["why"]


def test_ready_again_calls_it_off(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a")
    crowd.join(lb.address, 60)
    drain(lb, "a", spread=20.0)
    eventually(lambda: len(crowd.ended()) >= 3, "some are closed")
    drain(lb, "a", to="ready")
    eventually(lambda: paced(lb) == 0 and tunnels(lb) == crowd.open(), "nobody waits any more")
    left = len(crowd.ended())
    assert left < 60
    crowd.join(lb.address, 5)
    assert (len(crowd.ended()), crowd.open()) == (left, 65 - left)


def test_tunnels_may_be_kept(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", "b")
    (member,) = crowd.join(lb.address, 1, returns=True)
    home = member.life.server
    drain(lb, home, keep_tunnels=True)
    assert paced(lb) == 0
    crowd.join(lb.address, 1, cookie=member.cookie)
    assert crowd.where() == {home: 2}  # a sticky session stays where its tunnels are
    drain(lb, home, spread=0.0)
    eventually(lambda: crowd.open() == 1 and home not in crowd.where(), "they are asked after all")


def test_a_drain_goes_on_when_its_worker_dies(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", "b", pool={"balance": "round-robin"}, workers=1)
    crowd.join(lb.address, 200, returns=True)
    eventually(lambda: lb.admin("workers")[0]["crash_safe"] == 200, "all would outlive their worker")
    drain(lb, "a", spread=4.0)
    eventually(lambda: len(crowd.ended()) >= 20, "some are closed")
    old = lb.kill_worker()
    lb.wait_replaced(0, old)
    eventually(lambda: "a" not in crowd.where(), "none is left there")
    eventually(lambda: crowd.where() == {"b": 200}, "all are on the other server")
    moved = [member.lives[0] for member in crowd.members if member.lives[0].ended]
    assert {(life.server, life.code) for life in moved} == {("a", 1012)}
    assert len(moved) == 100  # those that had just come again were too young to be kept, the others were not
    eventually(lambda: tunnels(lb) == 200 and paced(lb) == 0, "the figures say so, too")


def held(lb: LoadBalancer) -> int:
    return sum(int(worker["tunnels_held"]) for worker in lb.status()["workers"])


@pytest.mark.parametrize("young", [False, True])
def test_an_order_outlives_the_worker_that_got_it(balancer: StartBalancer, crowd: Crowd, young: bool) -> None:
    """Also where it got it before the tunnels were on the ledger."""
    lb = started(balancer, crowd, "a", workers=1)
    crowd.join(lb.address, 60)
    if not young:
        eventually(lambda: held(lb) == 60, "all would outlive their worker")
    command = lb.command("tunnels", "close", "--all", "--spread", "5s", "--code", "4001", "-c", str(lb.file))
    assert command.returncode == 0, command.stderr
    for _ in range(2):  # the successor's successor, too
        eventually(lambda: crowd.ended() and 0 < held(lb) == crowd.open(), "some are closed, others held")
        (pid,) = eventually(lb.worker_pids, "a worker")
        os.kill(pid, signal.SIGKILL)
        lb.wait_replaced(0, pid)
    eventually(lambda: crowd.open() == 0, "all are closed")
    assert crowd.codes() == {4001}
    assert len(crowd.ended()) == 60
    assert not any(life.reset for life in crowd.ended())
    told = [life.told for life in crowd.ended()]
    assert max(histogram(told, told[0], 5.0, 5)) < 36  # nowhere all that were left at once
    eventually(lambda: tunnels(lb) == 0 and paced(lb) == 0, "nobody is left")


@pytest.mark.parametrize(
    ("end", "ordered", "grace"), [("upgrade", 8.0, 60.0), ("upgrade", 300.0, 9.0), ("stop", 5.0, 60.0)]
)
def test_an_order_is_carried_out_as_given_though_its_worker_leaves(
    end: str, ordered: float, grace: float, balancer: StartBalancer, crowd: Crowd
) -> None:
    drained = {"hard_stop": f"{grace:g}s", "spread": "1s"}
    process = {"shutdown_timeout": f"{grace:g}s"}
    lb = started(balancer, crowd, "a", drain=drained, process=process)
    crowd.join(lb.address, 60)
    eventually(lambda: held(lb) == 60, "others could have them")
    order = {"all": True, "code": 4001, "reason": "go", "spread": ordered}
    start = time.monotonic()
    assert lb.admin("tunnels/close", method="POST", body=order)["count"] == 60
    if end == "upgrade":
        assert lb.command("upgrade", "-c", str(lb.file)).returncode == 0
    else:
        lb.send_signal(signal.SIGTERM)
    left = time.monotonic()
    eventually(lambda: crowd.open() == 0, "all are closed")
    assert len(crowd.ended()) == 60
    assert crowd.codes() == {4001}
    assert not any(life.reset for life in crowd.ended())
    if ordered < grace:
        assert_even(crowd.ended(), start, spread=ordered)
    else:
        # As late as the end of the worker allows, and evenly enough.
        assert 3 < crowd.ended()[-1].told - left < grace
        assert crowd.ended()[30].told - left > 1


def test_closes_can_be_spread(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a")
    crowd.join(lb.address, 200)
    command = lb.command("tunnels", "close", "--all", "--spread", "3s", "--code", "4001", "-c", str(lb.file))
    assert command.returncode == 0, command.stderr
    assert command.stdout == "200 tunnels being closed with code 4001 within 3s\n"
    eventually(lambda: len(crowd.ended()) == 200, "all are closed")
    assert crowd.codes() == {4001}
    assert_even(crowd.ended(), crowd.ended()[0].told)  # the command takes its time to start


def test_many_can_be_closed_at_once(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", workers=1)
    (pid,) = lb.worker_pids()
    before = len(lb.descriptors(pid))
    crowd.join(lb.address, 300)
    assert lb.admin("tunnels/close", method="POST", body={"all": True})["count"] == 300
    eventually(lambda: len(crowd.ended()) == 300, "all are closed")
    assert crowd.codes() == {1001}
    eventually(lambda: tunnels(lb) == 0 and paced(lb) == 0, "the figures say so, too")
    eventually(lambda: len(lb.descriptors(pid)) == before, "no descriptor is left")


@pytest.mark.parametrize("how", ["paced-close", "keep"])
def test_what_a_reload_takes_away_is_closed_or_kept(how: str, balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", "b", pool={"on_removed": how, "balance": "round-robin"})
    crowd.join(lb.address, 100, returns=True)
    assert crowd.where() == {"a": 50, "b": 50}
    lb.tables["pool"]["main"]["server"] = lb.tables["pool"]["main"]["server"][1:]
    start = time.monotonic()
    lb.reload()
    if how == "paced-close":
        eventually(lambda: crowd.where() == {"b": 100}, "all are on the other server")
        assert crowd.codes() == {1012}
        assert_even(crowd.ended(), start)
    else:
        assert paced(lb) == 0
        assert crowd.where() == {"a": 50, "b": 50}
        lb.reload()
        assert crowd.where() == {"a": 50, "b": 50}


@pytest.mark.parametrize("how", ["the server", "the route", "keep"])
def test_what_a_reload_brings_back_calls_its_closes_off(
    how: str, balancer: StartBalancer, crowd: Crowd
) -> None:
    drained = {"hard_stop": "20s", "spread": "20s"}
    pool = {"on_removed": "paced-close", "balance": "round-robin"}
    lb = started(balancer, crowd, "a", "b", "c", pool=pool, drain=drained)
    crowd.join(lb.address, 90)
    tables = lb.tables["pool"]["main"]
    servers = tables["server"]
    if how == "the route":
        lb.tables["route"][0]["name"] = "other"
    else:
        tables["server"] = servers[2:]
    lb.reload()
    eventually(lambda: len(crowd.ended()) >= 2, "some are closed")
    if how == "the server":
        tables["server"] = servers[1:]  # b is there again, and a is not
    elif how == "the route":
        lb.tables["route"][0]["name"] = "all"
    else:
        tables["on_removed"] = "keep"
    lb.reload()

    def planned() -> int:
        return crowd.where().get("a", 0) if how == "the server" else 0

    eventually(lambda: paced(lb) == planned() and tunnels(lb) == crowd.open(), "the others stay")
    assert crowd.where()["b"] > 15
    assert planned() > 10 or how != "the server"
    lb.reload()  # nor does another one bring it up again
    eventually(lambda: paced(lb) == planned(), "the others still stay")


def test_a_pool_that_is_gone_is_left_by_its_own_rule(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", pool={"on_removed": "paced-close"})
    crowd.join(lb.address, 20)
    main = lb.tables["pool"].pop("main")
    lb.tables["pool"]["other"] = {"server": [{"name": "x", "address": main["server"][0]["address"]}]}
    lb.tables["route"][0]["pool"] = "other"
    lb.reload()
    eventually(lambda: len(crowd.ended()) == 20, "all are closed")
    assert crowd.codes() == {1012}
    eventually(lambda: tunnels(lb) == 0, "none is left")


def test_a_stop_is_polite_and_in_time(balancer: StartBalancer, crowd: Crowd) -> None:
    process = {"shutdown_timeout": "4s"}
    lb = started(balancer, crowd, "a", process=process)
    crowd.join(lb.address, 100)
    crowd.join(lb.address, 3, answers=False)
    start = time.monotonic()
    lb.stop()
    assert time.monotonic() - start < 8
    eventually(lambda: not crowd.open(), "all have seen the end")
    assert crowd.codes() == {1012}
    assert_even(crowd.ended(), crowd.ended()[0].told, spread=2.2)


def test_a_stop_at_once_does_not_ask(balancer: StartBalancer, crowd: Crowd) -> None:
    drained = {"spread": "60s"}
    lb = started(balancer, crowd, "a", process={"shutdown_timeout": "60s"}, drain=drained)
    crowd.join(lb.address, 5)
    lb.send_signal(signal.SIGTERM)
    eventually(lambda: lb.status()["state"] == "stopping", "it stops")
    start = time.monotonic()
    lb.stop()  # a second signal
    assert time.monotonic() - start < 20


def test_the_master_is_gone_and_tunnels_are_kept_until_the_end(balancer: StartBalancer, crowd: Crowd) -> None:
    drained = {"hard_stop": "6s", "close_code": 1001, "spread": "1s"}
    lb = started(balancer, crowd, "a", drain=drained)
    crowd.join(lb.address, 20)
    start = time.monotonic()
    os.kill(lb.pid, signal.SIGKILL)
    eventually(lambda: len(crowd.ended()) == 20, "all are closed")
    assert crowd.codes() == {1001}
    assert crowd.ended()[0].told - start > 2.5  # half of it at the least
    eventually(lambda: not lb.leftovers(), "nobody is left")
    lb.kill()
    lb.stopped = True


def test_old_tunnels_are_told(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", route={"websocket": {"max_age": "1s"}})
    crowd.join(lb.address, 10)
    eventually(lambda: len(crowd.ended()) == 10, "all are closed")
    assert crowd.codes() == {1012}
    eventually(lambda: tunnels(lb) == 0, "none is left")


def test_silent_tunnels_are_told(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", route={"websocket": {"idle": "1s"}})
    crowd.join(lb.address, 10)
    eventually(lambda: len(crowd.ended()) == 10, "all are closed")
    assert crowd.codes() == {1012}


def test_without_inspection_they_end_at_the_same_pace(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", route={"websocket": {"inspect": False}})
    crowd.join(lb.address, 100)
    start = drain(lb, "a")
    eventually(lambda: len(crowd.ended()) == 100, "all are closed")
    assert crowd.codes() == {1006}  # no frame can be sent where frames are not followed
    assert_even(crowd.ended(), start)


def test_a_new_server_gets_its_share(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", "b", pool={"balance": "round-robin"})
    crowd.join(lb.address, 120, returns=True)
    lb.tables["pool"]["main"]["server"].append({"name": "c", "address": crowd.serve("c")})
    lb.reload()
    arguments = ["--pool", "main", "--to", "c", "--spread", "2s"]
    command = lb.command("tunnels", "move", *arguments, "-c", str(lb.file))
    assert command.stdout == "40 tunnels asked to move: 20 from a, 20 from b\n", command
    eventually(lambda: len(crowd.ended()) == 40 and crowd.open() == 120, "they came again")
    assert crowd.where() == {"a": 40, "b": 40, "c": 40}
    assert crowd.codes() == {1012}
    assert "nothing to move" in lb.command("tunnels", "move", "--pool", "main", "-c", str(lb.file)).stdout


@pytest.mark.parametrize("what", ["upgrade", "more workers", "killed workers"])
def test_workers_that_come_during_a_move_know_where_to(
    what: str, balancer: StartBalancer, crowd: Crowd
) -> None:
    lb = started(balancer, crowd, "a", "b", pool={"balance": "round-robin"}, drain={"hard_stop": "60s"})
    crowd.join(lb.address, 80, returns=True)
    eventually(lambda: held(lb) == 80, "all would outlive their worker")
    lb.tables["pool"]["main"]["server"].append({"name": "c", "address": crowd.serve("c")})
    lb.reload()
    body = {"pool": "main", "to": "c", "spread": 5.0}
    assert lb.admin("tunnels/move", method="POST", body=body)["count"] == 26
    if what == "upgrade":
        assert lb.command("upgrade", "-c", str(lb.file)).returncode == 0
    elif what == "more workers":
        lb.send_signal(signal.SIGTTIN)
    else:
        for slot, pid in enumerate(lb.worker_pids()):
            os.kill(pid, signal.SIGKILL)
            lb.wait_replaced(slot, pid)
    eventually(lambda: len(crowd.ended()) >= 26 and crowd.open() == 80, "they came again")
    assert crowd.where()["c"] == 26


def test_some_are_moved_away_from_one_server(balancer: StartBalancer, crowd: Crowd) -> None:
    lb = started(balancer, crowd, "a", "b", pool={"balance": "round-robin"})
    crowd.join(lb.address, 40, returns=True)
    before = crowd.where()
    body = {"pool": "main", "server": "a", "count": 10, "spread": 0.0, "code": 4100, "reason": "go"}
    assert lb.admin("tunnels/move", method="POST", body=body)["servers"] == {"a": 10}
    after = {"a": before["a"] - 10, "b": before["b"] + 10}
    eventually(lambda: crowd.where() == after, "ten have moved")
    assert crowd.codes() == {4100}
    refused = lb.admin("tunnels/move", method="POST", body={"pool": "main", "to": "z"}, status=422)
    assert refused["detail"] == "the pool main has no server z"
