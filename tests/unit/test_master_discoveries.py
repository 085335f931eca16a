"""What was found is served at most once a second, the newest of it, and again where it failed."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import pytest

from lb.control.spec import DiscoverSpec, Discovery, FoundServer
from lb.master import discoveries
from lb.master import plan as plans
from lb.master.discoveries import Discoveries, merge
from lb.master.loop import Loop
from lb.master.report import Outcome
from lb.master.wishes import Reply
from workers.contract.errorlog import ErrorLog

FILE = """
[listen.public]
bind = ["127.0.0.1:1"]
[[route]]
pool = "web"
[pool.web]
servers = ["127.0.0.1:9"]
"""


def fail(error: Exception) -> None:
    raise error


class Bench:
    """Discoveries, and a reloader that does as the test says."""

    def __init__(self, folder: pathlib.Path) -> None:
        (folder / "lb.toml").write_text(FILE)
        plan = plans.first(folder / "lb.toml")
        control = plan.control.__class__(
            generation=1, config_path="", config_text="", discover=(DiscoverSpec(pool="web", file="/f"),)
        )
        self.plan = dataclasses.replace(plan, control=control)
        self.loop = Loop(fail)
        self.log = os.memfd_create("log")
        self.asked: list[tuple[Discovery, Reply]] = []
        self.answered = 0
        self.events: list[tuple[str, str]] = []
        self.discoveries = Discoveries(
            self.loop, ErrorLog("master", self.log), lambda: self.plan, self, self.happened, retry=0.05
        )

    def discover(self, discovery: Discovery, reply: Reply) -> None:
        self.asked.append((discovery, reply))

    def happened(self, kind: str, text: str, **_fields: str | int | float) -> None:
        self.events.append((kind, text))

    def turn(self, seconds: float = 0.02) -> None:
        self.loop.later(seconds, self.loop.stop)
        self.loop.run()

    def answer(self, *, error: str = "", changes: tuple[str, ...] = ()) -> None:
        """The reloader is done with the last that it was asked."""
        self.answered += 1
        discovery, reply = self.asked[-1]
        if not error:
            self.plan = dataclasses.replace(self.plan, discovery=discovery)
        reply(Outcome(ok=not error, generation=2, error=error, changes=changes))

    def close(self) -> None:
        self.loop.close()
        os.close(self.log)


@pytest.fixture
def bench(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(discoveries, "LEAST_DISTANCE", 0.1)
    made = Bench(tmp_path)
    yield made
    made.close()


def found(*names: str) -> Discovery:
    servers = tuple(FoundServer(name=name, address=f"{name}:80") for name in names)
    return Discovery(servers={"web": servers})


def test_the_first_is_served_at_once_and_more_together(bench: Bench) -> None:
    bench.discoveries.found(found("a"))
    bench.turn(0.001)
    assert [discovery for discovery, _ in bench.asked] == [found("a")]
    bench.answer(changes=("web: a is there",))
    bench.discoveries.found(found("b"))
    bench.discoveries.found(found("c"))
    bench.turn(0.02)
    assert len(bench.asked) == 1
    bench.turn(0.15)
    assert [discovery for discovery, _ in bench.asked] == [found("a"), found("c")]


def test_what_is_served_already_is_nothing_new(bench: Bench) -> None:
    bench.discoveries.found(found("a"))
    bench.turn()
    bench.answer(changes=("web: a is there",))
    bench.discoveries.found(found("a"))
    bench.turn(0.15)
    assert len(bench.asked) == 1
    assert bench.events == [("discovered", "web: a is there")]


def test_a_failure_is_told_and_tried_again(bench: Bench) -> None:
    bench.discoveries.found(found("a"))
    bench.turn()
    bench.answer(error="worker 0 refused it\nfor a reason")
    assert bench.events == [("discovery-failed", "what was discovered can't be served: worker 0 refused it")]
    bench.turn(0.1)
    assert [discovery for discovery, _ in bench.asked] == [found("a"), found("a")]
    bench.answer()
    bench.turn(0.1)
    assert len(bench.asked) == 2


def test_many_changes_are_one_line(bench: Bench) -> None:
    bench.discoveries.found(found("a"))
    bench.turn()
    bench.answer(changes=tuple(f"web: {number} is there" for number in range(9)))
    ((_, text),) = bench.events
    assert text.endswith("web: 4 is there; and 4 more")


# --- what stays ----------------------------------------------------------------------------------------


def test_what_is_not_found_again_keeps_its_last_answer() -> None:
    pools, hosts = frozenset({"web"}), frozenset({"one", "two"})
    before = Discovery(servers=found("a").servers, addresses={"one": ("10.0.0.1",)})
    merged = merge(before, Discovery(addresses={"two": ("10.0.0.2",)}), pools, hosts)
    assert merged.servers == found("a").servers
    assert merged.addresses == {"one": ("10.0.0.1",), "two": ("10.0.0.2",)}
    assert merge(merged, Discovery(servers={"web": ()}), pools, hosts).servers == {"web": ()}


def test_pools_that_discover_no_more_are_left_out() -> None:
    assert merge(found("a"), Discovery(), frozenset(), frozenset()).servers == {}
    assert merge(Discovery(), found("a"), frozenset(), frozenset()).servers == {}


def test_names_that_come_and_go_leave_nothing_behind() -> None:
    kept, pools = Discovery(), frozenset({"web"})
    for number in range(100):
        name = f"pod-{number}"
        now = Discovery(servers=found(name).servers, addresses={name: ("10.0.0.1",), "db": ("10.0.0.2",)})
        kept = merge(kept, now, pools, frozenset({"db"}))
    assert kept.addresses == {"pod-99": ("10.0.0.1",), "db": ("10.0.0.2",)}


# --- names with other addresses all the time -----------------------------------------------------------


def resolved(*addresses: str) -> Discovery:
    return Discovery(servers=found("a").servers, addresses={"a": addresses})


def test_a_name_that_changes_all_the_time_is_followed_at_growing_distances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("lb.master.discoveries.time.monotonic", lambda: now[0])
    rotations, waits = discoveries.Rotations(), []
    one, two = resolved("10.0.0.1"), resolved("10.0.0.2")
    for _ in range(8):
        due = max(now[0], rotations.due(one, two))
        waits.append(due - now[0])
        now[0] = due
        rotations.note(one, two)
    assert waits == [0, 1, 2, 4, 8, 16, 30, 30]
    assert rotations.due(one, Discovery(servers=found("b").servers, addresses=two.addresses)) <= now[0]
    fresh = Discovery(servers=one.servers, addresses={**one.addresses, "c": ("10.0.0.3",)})
    assert rotations.due(one, fresh) <= now[0]  # it had none before
    now[0] += 61
    rotations.note(one, two)
    assert rotations.due(two, one) == now[0] + 1


def test_a_rotating_name_is_not_served_each_time(bench: Bench) -> None:
    for number in range(30):
        bench.discoveries.found(resolved(f"10.0.0.{number}"))
        bench.turn(0.05)
        if len(bench.asked) > bench.answered:
            bench.answer(changes=("a is another",))
    assert 3 <= len(bench.asked) <= 8  # at 0.1 s each: 15
    bench.discoveries.found(found("a", "b"))  # another server does not wait
    bench.turn(0.15)
    assert bench.asked[-1][0].servers == found("a", "b").servers


def test_events_about_what_was_found_leave_room_for_others(bench: Bench) -> None:
    for number in range(20):
        bench.discoveries._last = -1.0
        bench.discoveries.found(found(f"a{number}"))
        bench.turn(0.001)
        bench.answer(changes=("web: another is there",))
    assert len(bench.events) == 10


# --- what can't be served ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discovery", "why"),
    [
        (found(*map(str, range(4097))), "4097 servers were found, and there is room for 4096"),
        (Discovery(addresses={"a": ("10.0.0.1",) * 257}), "a has 257 addresses: more than 256 of one name"),
        (Discovery(addresses={"a": ("10.0.0.1", "x")}), "a is x, which is no IP address"),
        (
            Discovery(addresses={f"a{i}": ("10.0.0.1",) * 256 for i in range(257)}),
            "more than 65536 addresses were found",
        ),
    ],
)
def test_what_can_never_be_served_is_not_tried(bench: Bench, discovery: Discovery, why: str) -> None:
    for _ in range(2):
        bench.discoveries.found(discovery)
        bench.turn(0.1)
    assert bench.asked == []
    assert bench.events == [("discovery-failed", f"what was discovered can't be served: {why}")]  # once


def test_a_fault_is_not_tried_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one counts for the loop, which ends the master where there are too many."""
    monkeypatch.setattr(discoveries, "_LONGEST_RETRY", 0.01)
    bench.discoveries.found(found("a"))
    for _ in range(8):
        bench.turn(0.05)
        if len(bench.asked) > bench.answered:
            bench.answer(error="fault in lb: KeyError()")
    assert len(bench.asked) == 5
    assert len(bench.events) == 1
    bench.discoveries.found(found("b"))
    bench.turn(0.15)
    assert len(bench.asked) == 6
