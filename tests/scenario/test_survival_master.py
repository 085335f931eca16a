"""The master is killed: established WebSockets stay with the workers that it leaves behind, and a new master
with the same file serves beside them at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lb.demo.load import Load
from lb.demo.messages import Terms
from tests.conftest import StartBalancer
from tests.harness import eventually, fetch
from tests.harness.chaos import Ordeal, tables, whole
from tests.scenario.test_survival import go_on

pytestmark = pytest.mark.scenario

STEADY = Terms(rate=20)


@pytest.fixture
def load() -> Iterator[Load]:
    """Clients and servers."""
    with Load() as made:
        yield made


def test_a_new_master_serves_beside_the_old_workers(
    balancer: StartBalancer, load: Load, socket_folder: str
) -> None:
    configured = tables(load, drain={"hard_stop": "60s"})
    configured["listen"]["local"] = {"bind": [f"unix:{socket_folder}/local.sock"]}
    lb = balancer(configured)
    ordeal = Ordeal(lb)
    load.open(lb.port, 30, STEADY)
    ordeal.wait_held(30)
    old = lb.kill_master()
    lb.start()  # the pid file, the command socket, the ports and the Unix sockets are to be had
    assert fetch(f"{socket_folder}/local.sock", "/now").status == 200
    assert fetch(lb.address, "/now").status == 200
    lb.wait_control()
    assert lb.admin("status")["workers"]
    with Load() as fresh:
        lb.tables["pool"]["main"]["servers"] = fresh.addresses
        lb.reload()
        fresh.open(lb.port, 20, STEADY)
        assert sum(worker["tunnels"] for worker in lb.status()["workers"]) == 20
        go_on(load)
        go_on(fresh)
        ordeal.wait_held(20)
        ordeal.kill()  # the new master's own are as safe as ever
        go_on(fresh)
        whole(fresh.stop())
    whole(load.stop())
    eventually(lambda: not set(old) & set(lb.leftovers()), "all that the old master left has left")


def test_what_it_leaves_behind_leaves_when_its_tunnels_have_ended(
    balancer: StartBalancer, load: Load
) -> None:
    lb = balancer(tables(load, drain={"hard_stop": "60s"}))
    ordeal = Ordeal(lb)
    load.open(lb.port, 20, STEADY)
    ordeal.wait_held(20)
    lb.kill_master()
    go_on(load)
    whole(load.stop())
    eventually(lambda: not lb.leftovers(), "nobody is left")
    lb.stopped = True


def test_a_worker_that_dies_without_a_master_ends_its_tunnels(balancer: StartBalancer, load: Load) -> None:
    """Nobody would start a successor: both ends are told, and keepers keep nothing that nobody relays."""
    lb = balancer(tables(load, drain={"hard_stop": "60s"}))
    ordeal = Ordeal(lb)
    load.open(lb.port, 20, STEADY)
    ordeal.wait_held(20)
    workers = lb.worker_pids()
    lb.kill_master()
    go_on(load)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: load.account().open == 0, "the clients are told")
    eventually(lambda: load.servers.ask("report")["open"] == 0, "the servers are told")
    eventually(lambda: not lb.leftovers(), "nobody is left")
    lb.stopped = True
