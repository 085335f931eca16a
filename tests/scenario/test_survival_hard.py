"""Workers that die at the worst moments: with bytes of slow readers, half-closed tunnels, full buffers, and
together with others."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lb.demo.load import Load
from lb.demo.messages import Terms
from tests.conftest import StartBalancer
from tests.harness import LoadBalancer, eventually, processes
from tests.harness.chaos import Ordeal, ledger_entries, tables, whole
from tests.scenario.test_survival import go_on

pytestmark = pytest.mark.scenario

STEADY = Terms(rate=20)
FLOOD = Terms(profile="flood")


@pytest.fixture
def load() -> Iterator[Load]:
    """Clients and servers."""
    with Load() as made:
        yield made


def killed(lb: LoadBalancer, load: Load, kills: int = 2, messages: int = 30) -> None:
    """Kills workers that carry the open tunnels of `load`, and proves that nothing is lost or left."""
    ordeal = Ordeal(lb)
    for _ in range(kills):
        ordeal.wait_held(load.tunnels)
        ordeal.kill()
        go_on(load, messages)
    whole(load.stop())


def test_frames_that_fill_every_buffer(balancer: StartBalancer, load: Load) -> None:
    lb = balancer(tables(load))
    load.open(lb.port, 4, FLOOD)
    killed(lb, load, kills=3)


@pytest.mark.parametrize("reader", ["c", "s"])
def test_bytes_that_wait_for_slow_readers(balancer: StartBalancer, load: Load, reader: str) -> None:
    lb = balancer(tables(load))
    ordeal = Ordeal(lb)
    slow = {
        "c": Terms(profile="flood", slow="c", read=1_000_000),
        "s": Terms(profile="flood", slow="s", read=1_000_000),
    }
    load.open(lb.port, 6, slow[reader])
    killed(lb, load)
    ordeal.assert_nothing_is_left()


@pytest.mark.parametrize("who", ["c", "s"])
def test_half_closed_tunnels(balancer: StartBalancer, load: Load, who: str) -> None:
    lb = balancer(tables(load))
    ordeal = Ordeal(lb)
    half = {"c": Terms(rate=20, half="c"), "s": Terms(rate=20, half="s")}
    load.open(lb.port, 20, half[who])
    go_on(load, 150)  # long after one direction has ended
    killed(lb, load)
    ordeal.assert_nothing_is_left()


def test_a_wedged_worker(balancer: StartBalancer, load: Load) -> None:
    lb = balancer(tables(load, process={"wedged_after": "1s"}))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    ordeal.wait_held(40)
    ordeal.kill(signal.SIGSTOP)
    go_on(load)
    assert lb.status()["restarts"].get("wedged") == 1
    whole(load.stop())
    ordeal.assert_nothing_is_left()


def test_all_workers_at_once(balancer: StartBalancer, load: Load) -> None:
    lb = balancer(tables(load, workers=3))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    for _ in range(2):
        ordeal.wait_held(40)
        pids = lb.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            ordeal.wait_serving(3, without=pid)
        go_on(load)
    whole(load.stop())
    ordeal.assert_nothing_is_left()


def keepers(lb: LoadBalancer) -> list[int]:
    """Pids of the keepers."""
    return [int(worker["keeper_pid"]) for worker in lb.status()["workers"]]


def test_a_keeper_that_is_killed_is_replaced_and_knows_all(balancer: StartBalancer, load: Load) -> None:
    lb = balancer(tables(load))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    ordeal.wait_held(40)
    old = keepers(lb)
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: 0 not in keepers(lb) and not set(old) & set(keepers(lb)), "the keepers are replaced")
    eventually(lambda: sum(len(processes.descriptors(pid)) for pid in keepers(lb)) >= 80, "they hold all")
    killed(lb, load, messages=200)
    ordeal.assert_nothing_is_left()


def test_a_keeper_and_its_worker_lose_their_tunnels_and_nothing_else(
    balancer: StartBalancer, load: Load
) -> None:
    """What can't be had: but both ends are told at once, and nothing of it stays."""
    lb = balancer(tables(load))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    ordeal.wait_held(40)
    victim = ordeal.serving()[0]
    for pid in (int(victim["keeper_pid"]), int(victim["pid"])):
        os.kill(pid, signal.SIGSTOP)
    for pid in (int(victim["keeper_pid"]), int(victim["pid"])):
        os.kill(pid, signal.SIGKILL)
    ordeal.wait_serving(2, without=int(victim["pid"]))
    eventually(lambda: load.account().open == 40 - int(victim["tunnels"]), "its tunnels are gone")
    account = load.stop()
    assert sum(account.closed.values()) == int(victim["tunnels"])
    assert (account.lost, account.duplicated, account.corrupt) == (0, 0, 0)
    ordeal.assert_nothing_is_left()


def test_clients_and_servers_that_leave_while_nobody_serves(balancer: StartBalancer, load: Load) -> None:
    """They go between a worker's death and its successor's first look."""
    lb = balancer(tables(load))
    ordeal = Ordeal(lb)
    load.open(lb.port, 20, STEADY)
    with Load() as other:
        lb.tables["route"].insert(0, {"name": "other", "path": "/chaos", "pool": "other"})
        lb.tables["pool"]["other"] = {"servers": other.addresses}
        lb.reload()
        other.open(lb.port, 20, STEADY)
        ordeal.wait_held(40)
        for pid in lb.worker_pids():
            os.kill(pid, signal.SIGKILL)
        for pid in (load.clients.pid, other.servers.pid):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not ledger_entries(lb), "all tunnels are gone")
        assert other.clients.ask("report")["open"] == 0
        assert load.servers.ask("report")["open"] == 0
    ordeal.assert_nothing_is_left()


def test_workers_that_die_young_leave_nothing(balancer: StartBalancer, load: Load) -> None:
    """Tunnels that are not held yet die with their worker; those that are, live."""
    lb = balancer(tables(load))
    ordeal = Ordeal(lb)
    load.open(lb.port, 60, Terms(rate=2))
    ordeal.kill()
    eventually(lambda: sum(w["tunnels_held"] for w in lb.status()["workers"]) == load.account().open, "held")
    account = load.stop()
    assert account.finished + sum(account.closed.values()) == 60
    assert (account.lost, account.duplicated, account.corrupt) == (0, 0, 0)
    assert set(account.closed) <= {"reset", "eof"}
    ordeal.assert_nothing_is_left()


def test_control_and_workers(balancer: StartBalancer, load: Load) -> None:
    lb = balancer(tables(load))
    ordeal = Ordeal(lb)
    load.open(lb.port, 20, STEADY)
    ordeal.wait_held(20)
    control = lb.control_pid
    os.kill(control, signal.SIGKILL)
    ordeal.kill()
    lb.wait_control(control)
    go_on(load)
    whole(load.stop())
    ordeal.assert_nothing_is_left()


def test_no_process_keeps_descriptors_of_tunnels_that_ended(balancer: StartBalancer, load: Load) -> None:
    """The keepers' duplicates go with the tunnels, not with the keepers."""
    lb = balancer(tables(load))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    ordeal.wait_held(40)
    assert sum(len(processes.descriptors(pid)) for pid in keepers(lb)) >= 2 * 40
    pids = keepers(lb)
    whole(load.stop())
    ordeal.assert_nothing_is_left()
    assert keepers(lb) == pids


def test_a_wedged_keeper(balancer: StartBalancer, load: Load) -> None:
    """It is replaced while its worker lives, and then holds what its predecessor held."""
    lb = balancer(tables(load, workers=1, process={"wedged_after": "1s"}))
    ordeal = Ordeal(lb)
    load.open(lb.port, 40, STEADY)
    ordeal.wait_held(40)
    keeper = lb.status()["workers"][0]["keeper_pid"]
    os.kill(keeper, signal.SIGSTOP)
    eventually(lambda: lb.status()["keeper_restarts"] == {"wedged": 1}, "its end")
    ordeal.wait_held(40)
    ordeal.kill()
    go_on(load)
    whole(load.stop())
    ordeal.assert_nothing_is_left()
