"""The events of the control process: what is kept and passed on is bounded."""

from __future__ import annotations

import msgspec

from lb.control.events import EventLog
from lb.control.messages import Event
from lb.control.quota import Quota
from workers.contract.messages import MAX_BYTES


def test_an_event_of_any_size_can_be_passed_on() -> None:
    """What a file or a name server says becomes a part of events."""
    passed_on: list[Event] = []
    log = EventLog(passed_on.append)
    wide = "\U0001f310" * 100_000
    event = log.add(
        "k" * 999, wide, reason=wide, number=10**30, rest="\udcff", **{f"f{i}": wide for i in range(99)}
    )
    assert passed_on[0].fields == event.fields
    assert len(msgspec.msgpack.encode(event)) < MAX_BYTES // 2
    assert (len(event.text), len(str(event.fields["reason"])), len(event.fields)) == (1024, 200, 16)
    assert event.fields["rest"] == "?"


def test_an_ordinary_event_stays_as_it_is() -> None:
    event = EventLog().add("server-up", "app: a is up", pool="app", after=1.5, checks=3)
    assert (event.kind, event.text) == ("server-up", "app: a is up")
    assert event.fields == {"pool": "app", "after": 1.5, "checks": 3}


def test_a_quota_has_room_at_once_and_then_now_and_then() -> None:
    now = [0.0]
    quota = Quota(2, 60.0, clock=lambda: now[0])
    assert [quota.take("a") for _ in range(4)] == ["a", "a", None, None]
    now[0] = 59.0
    assert quota.take("b") is None
    now[0] = 61.0
    assert quota.take("c") == "c (and 3 more such events before)"
    assert quota.take("d") is None
    now[0] = 999.0
    assert [quota.take("e") for _ in range(3)] == ["e (and 1 more such events before)", "e", None]
