"""Tunnels that outlive their workers, as the master arranges it: keepers, successors, caretakers, hand-overs.

Workers and keepers are stand-ins, and tunnels numbers; that no byte is lost is shown elsewhere.
"""

from __future__ import annotations

import os
import pathlib
import re
import signal
from collections.abc import Iterator

import pytest

from lb.master.report import WorkerReport
from tests.scenario.master_harness import Instance, alive, children, eventually, flag

pytestmark = pytest.mark.scenario


@pytest.fixture
def instance(tmp_path: pathlib.Path) -> Iterator[Instance]:
    made = Instance(tmp_path)
    made.process_keys = {"rebalance": "off"}
    yield made
    made.clean_up()


def reports(instance: Instance) -> dict[int, WorkerReport]:
    return {worker.slot: worker for worker in instance.status().workers}


def state(instance: Instance, slot: int) -> str:
    """Where the process of `slot` stands; empty while there is none."""
    report = reports(instance).get(slot)
    return "" if report is None else report.state


def tunnels(instance: Instance) -> dict[int, int]:
    """By slot, of the workers that serve."""
    return {worker.slot: worker.tunnels for worker in instance.status().workers if worker.state == "serving"}


def keepers(instance: Instance) -> dict[int, int]:
    """The pids, by slot."""
    return {slot: worker.keeper_pid for slot, worker in reports(instance).items()}


def open_tunnels(instance: Instance, slot: int, count: int) -> None:
    """Waits until the keeper has them."""
    before = reports(instance)[slot].tunnels_held
    new = instance.folder / "new"
    new.write_text(str(count))
    new.rename(instance.folder / f"tunnels-{slot}")
    eventually(lambda: reports(instance)[slot].tunnels_held == before + count, "tunnels")


def gone(instance: Instance, *slots: int) -> None:
    eventually(lambda: not {*slots} & {*reports(instance)}, f"the end of {slots}")


def killed(instance: Instance, slot: int) -> None:
    """Kills the worker of `slot` and waits for its successor."""
    before = instance.pids()[slot]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: instance.pids().get(slot, before) != before, "a successor")


def test_each_worker_has_a_keeper_with_nothing_but_its_own(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 1, 3)
    killed(instance, 0)
    pids = keepers(instance)
    assert len({*pids.values()} - {0}) == 2
    for slot, pid in pids.items():
        assert pathlib.Path(f"/proc/{pid}/comm").read_text() == f"lb-keeper-{slot}\n"
        held = sorted(os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd"))
        kinds = sorted(re.sub(r"\[\d+\]", "", target) for target in held)
        expected = ["/dev/null", "/memfd:lb-ledger (deleted)", "socket:", "socket:"]
        assert kinds == sorted([*expected, str(instance.error_path), str(instance.output_path)])


def test_a_successor_takes_the_tunnels_over(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 0, 200)
    before = keepers(instance)
    for _ in range(3):
        killed(instance, 0)
        eventually(lambda: tunnels(instance) == {0: 200, 1: 0}, "the tunnels")
    assert keepers(instance) == before
    assert instance.status().restarts == {"SIGKILL": 3}
    assert "restored=200" in instance.errors


def test_successors_that_die_over_it_are_not_for_ever(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 0, 5)
    with flag(instance, "crash-reclaim"):
        os.kill(instance.pids()[0], signal.SIGKILL)
        eventually(lambda: "worker after worker died" in instance.errors, "the end of patience")
    eventually(lambda: tunnels(instance) == {0: 0, 1: 0}, "a worker without them")
    open_tunnels(instance, 0, 5)  # there is a keeper again
    killed(instance, 0)
    eventually(lambda: tunnels(instance) == {0: 5, 1: 0}, "the tunnels")


def test_a_keeper_that_dies_is_replaced_and_told_everything(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 1, 70)
    before = keepers(instance)
    os.kill(before[1], signal.SIGKILL)
    eventually(lambda: keepers(instance)[1] not in (0, before[1]), "another keeper")
    eventually(lambda: reports(instance)[1].tunnels_held == 70, "that holds them")
    killed(instance, 1)
    eventually(lambda: tunnels(instance) == {0: 0, 1: 70}, "the tunnels")
    assert "keeper ended" in instance.errors


def test_a_keeper_that_stands_still_is_replaced_while_its_worker_lives(instance: Instance) -> None:
    instance.process_keys["wedged_after"] = "1s"
    instance.start()
    open_tunnels(instance, 1, 70)
    before = keepers(instance)
    os.kill(before[1], signal.SIGSTOP)
    eventually(lambda: keepers(instance)[1] not in (0, before[1]), "another keeper")
    eventually(lambda: reports(instance)[1].tunnels_held == 70, "that holds them")
    killed(instance, 1)
    eventually(lambda: tunnels(instance) == {0: 0, 1: 70}, "the tunnels")
    assert "keeper is wedged" in instance.errors
    assert instance.status().keeper_restarts == {"wedged": 1}
    assert keepers(instance)[0] == before[0]


def test_worker_and_keeper_that_die_together_are_replaced(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 0, 10)
    worker, keeper = instance.pids()[0], keepers(instance)[0]
    os.kill(instance.pid, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    os.kill(instance.pid, signal.SIGCONT)
    eventually(lambda: instance.pids().get(0, worker) != worker, "a successor")
    eventually(lambda: keepers(instance)[0] not in (0, keeper), "another keeper")
    assert tunnels(instance) == {0: 0, 1: 0}
    open_tunnels(instance, 0, 10)


def test_a_keeper_that_does_not_settle_is_ended(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 0, 10)
    keeper = keepers(instance)[0]
    with flag(instance, "no-settle"):
        killed(instance, 0)
    assert "keeper is late" in instance.errors
    assert not alive(keeper)
    assert tunnels(instance) == {0: 0, 1: 0}
    assert instance.ask()["slot"] in (0, 1)


def test_a_retired_workers_tunnels_go_to_its_siblings_evenly(instance: Instance) -> None:
    instance.workers = 4
    instance.start()
    for slot, count in {0: 300, 1: 100, 3: 500}.items():
        open_tunnels(instance, slot, count)
    keeper = keepers(instance)[3]
    instance.signal(signal.SIGTTOU)
    eventually(lambda: tunnels(instance) == {0: 300, 1: 300, 2: 300}, "evenness")
    gone(instance, 3)
    eventually(lambda: not alive(keeper), "the keeper's end")
    assert "tunnels moved" in instance.errors
    assert instance.status().restarts == {}


def test_a_reload_with_fewer_workers_moves_tunnels_too(instance: Instance) -> None:
    instance.workers = 3
    instance.start()
    for slot in range(3):
        open_tunnels(instance, slot, 90)
    instance.workers = 1
    instance.write()
    assert instance.reload().ok
    eventually(lambda: tunnels(instance) == {0: 270}, "all in one")
    gone(instance, 1, 2)


def test_reloads_and_hand_overs_at_the_same_time(instance: Instance) -> None:
    instance.workers = 4
    instance.start()
    for slot in range(4):
        open_tunnels(instance, slot, 100)
    for workers in (2, 4, 1, 3, 2):
        instance.workers = workers
        instance.write()
        assert instance.reload().ok
        eventually(lambda: sum(tunnels(instance).values()) == 400, "all tunnels")
    eventually(lambda: len(reports(instance)) == 2, "two workers")
    assert sum(tunnels(instance).values()) == 400


def test_a_taker_that_dies_leaves_the_tunnels_with_the_giver(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 1, 50)
    taker = instance.pids()[0]
    with flag(instance, "no-answer"):
        instance.signal(signal.SIGTTOU)
        eventually(lambda: instance.status().workers_wanted == 1, "the change")
        eventually(lambda: len(os.listdir(f"/proc/{taker}/fd")) > 12, "the pair with the taker")
    os.kill(taker, signal.SIGKILL)
    eventually(lambda: tunnels(instance) == {0: 50}, "the tunnels with the taker's successor")
    assert "hand-over of tunnels broke off" in instance.errors
    gone(instance, 1)


def test_a_worker_that_dies_while_it_leaves_has_a_caretaker(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 1, 80)
    with flag(instance, "sticky"):
        leaver = instance.pids()[1]
        instance.signal(signal.SIGTTOU)
        eventually(lambda: state(instance, 1) == "leaving", "the retirement")
        os.kill(leaver, signal.SIGKILL)
        eventually(lambda: all(one.pid != leaver for one in reports(instance).values()), "its end")
        eventually(lambda: state(instance, 1) == "leaving", "a caretaker that has what is left")
        assert reports(instance)[1].tunnels == 80
        assert reports(instance)[1].listening_sockets == 0
        assert {instance.ask()["slot"] for _ in range(10)} == {0}
        assert instance.status().workers_wanted == 1
    eventually(lambda: tunnels(instance) == {0: 80}, "the tunnels with the sibling")
    gone(instance, 1)
    assert "takes over what is left" in instance.errors


def test_a_slot_with_tunnels_in_nobodys_hands_is_not_given_away(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 1, 20)
    keeper = keepers(instance)[1]
    with flag(instance, "sticky"):
        leaver = instance.pids()[1]
        instance.signal(signal.SIGTTOU)
        eventually(lambda: state(instance, 1) == "leaving", "the retirement")
        os.kill(keeper, signal.SIGSTOP)
        os.kill(leaver, signal.SIGKILL)
        gone(instance, 1)
        instance.signal(signal.SIGTTIN)
        eventually(lambda: len(instance.pids()) == 2, "another worker")
        os.kill(keeper, signal.SIGCONT)
        assert set(instance.pids()) == {0, 2}
    eventually(lambda: sum(tunnels(instance).values()) == 20, "the tunnels with siblings")
    gone(instance, 1)


def test_a_slot_has_one_keeper_at_a_time(instance: Instance) -> None:
    instance.start()
    before = keepers(instance)[1]
    os.kill(before, signal.SIGSTOP)
    instance.signal(signal.SIGTTOU)
    gone(instance, 1)
    instance.signal(signal.SIGTTIN)
    eventually(lambda: 1 in instance.pids(), "a worker in its place")
    assert alive(before)
    assert keepers(instance)[1] == 0
    eventually(lambda: keepers(instance)[1] != 0, "a keeper when the other has gone")
    assert not alive(before)
    open_tunnels(instance, 1, 5)


def test_a_successor_that_is_retired_on_its_way_up_becomes_a_caretaker(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 1, 30)
    with flag(instance, "late"):
        os.kill(instance.pids()[1], signal.SIGKILL)
        eventually(lambda: state(instance, 1) == "starting", "a successor on its way")
        instance.signal(signal.SIGTTOU)
        eventually(lambda: instance.status().workers_wanted == 1, "the retirement")
    eventually(lambda: tunnels(instance) == {0: 30}, "the tunnels with the sibling")
    gone(instance, 1)
    assert instance.status().restarts == {"SIGKILL": 1}


def test_what_drifts_apart_is_evened_out(instance: Instance) -> None:
    instance.process_keys = {}
    instance.start()
    open_tunnels(instance, 0, 120)
    eventually(lambda: tunnels(instance) == {0: 60, 1: 60}, "evenness")
    instance.signal(signal.SIGTTIN)
    open_tunnels(instance, 0, 240)
    eventually(lambda: len(instance.pids()) == 3, "three workers")
    eventually(lambda: max(tunnels(instance).values()) - min(tunnels(instance).values()) <= 50, "evenness")
    assert sum(tunnels(instance).values()) == 360


def test_nobody_is_left_at_the_end(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 0, 40)
    killed(instance, 1)
    processes = children(instance.pid)
    assert len(processes) == 5  # two workers, two keepers, control
    instance.signal(signal.SIGTERM)
    assert instance.wait() == 0
    assert not any(map(alive, processes))


def test_what_a_dead_worker_left_has_an_end_in_order_where_lb_stops(instance: Instance) -> None:
    """Stopped while the keeper puts things in order: somebody has to close the tunnels."""
    instance.start()
    open_tunnels(instance, 0, 40)
    keeper = keepers(instance)[0]
    os.kill(keeper, signal.SIGSTOP)
    os.kill(instance.pids()[0], signal.SIGKILL)
    gone(instance, 0)
    instance.signal(signal.SIGTERM)
    gone(instance, 0, 1)
    os.kill(keeper, signal.SIGCONT)
    assert instance.wait() == 0
    assert "restored=40" in instance.errors
    assert not alive(keeper)


def test_a_successor_gets_what_is_left_before_it_is_stopped(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 0, 40)
    with flag(instance, "late"):
        os.kill(instance.pids()[0], signal.SIGKILL)
        eventually(lambda: state(instance, 0) == "starting", "a successor on its way")
        instance.signal(signal.SIGTERM)
        gone(instance, 1)
    assert instance.wait() == 0
    assert "restored=40" in instance.errors


def test_a_successor_that_does_not_come_up_is_not_waited_for_beyond_the_grace(instance: Instance) -> None:
    instance.process_keys["shutdown_timeout"] = "1s"
    instance.start()
    open_tunnels(instance, 0, 40)
    with flag(instance, "late"):
        os.kill(instance.pids()[0], signal.SIGKILL)
        eventually(lambda: state(instance, 0) == "starting", "a successor on its way")
        instance.signal(signal.SIGTERM)
        assert instance.wait() == 0
    assert "restored" not in instance.errors


def test_a_second_signal_waits_for_no_successor(instance: Instance) -> None:
    instance.start()
    open_tunnels(instance, 0, 40)
    keeper = keepers(instance)[0]
    os.kill(keeper, signal.SIGSTOP)
    os.kill(instance.pids()[0], signal.SIGKILL)
    gone(instance, 0)
    instance.signal(signal.SIGTERM)
    gone(instance, 0, 1)
    instance.signal(signal.SIGTERM)
    assert instance.wait() == 0
    assert "restored" not in instance.errors


def test_keepers_notice_that_the_master_died(instance: Instance) -> None:
    instance.start()
    pids = keepers(instance).values()
    os.kill(instance.pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, pids)), "their end")
