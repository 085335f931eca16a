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
    before = Discovery(servers=found("a").servers, addresses={"one": ("10.0.0.1",)})
    merged = merge(before, Discovery(addresses={"two": ("10.0.0.2",)}), frozenset({"web"}))
    assert merged.servers == found("a").servers
    assert merged.addresses == {"one": ("10.0.0.1",), "two": ("10.0.0.2",)}
    assert merge(merged, Discovery(servers={"web": ()}), frozenset({"web"})).servers == {"web": ()}


def test_pools_that_discover_no_more_are_left_out() -> None:
    assert merge(found("a"), Discovery(), frozenset()).servers == {}
