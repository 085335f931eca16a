"""The event stream: what happens, what happened meanwhile, and what is known no more."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from lb.admin import events
from lb.control.events import KEPT, MAX_LISTENERS
from tests.harness.admin import AdminServer
from tests.harness.control import StandInControl
from tests.harness.waiting import eventually


@pytest.fixture
def admin(socket_folder: str) -> Iterator[AdminServer]:
    with StandInControl() as control, AdminServer(control, socket_folder) as server:
        yield server


class Stream:
    """One who listens; parses as the HTML standard says (section 9.2.6)."""

    def __init__(self, admin: AdminServer, query: str = "", **headers: str) -> None:
        self.connection = admin.connection()
        self.connection.request("GET", f"/api/v1/events{query}", headers=headers)
        self.response: http.client.HTTPResponse = self.connection.getresponse()
        assert self.response.status == 200
        assert self.response.headers["Content-Type"] == "text/event-stream"
        assert self.block() == ["retry: 2000"]

    def block(self) -> list[str]:
        """The lines up to the next empty one; nothing at the end of the stream."""
        lines = []
        while (line := self.response.readline().decode()).strip():
            lines.append(line.rstrip("\n"))
        return lines

    def event(self) -> dict[str, Any]:
        """The next event: its fields, `data` decoded."""
        block = self.block()
        while block and block[0].startswith(":"):
            block = self.block()
        fields: dict[str, Any] = dict(line.split(": ", 1) for line in block)
        if "data" in fields:
            fields["data"] = json.loads(fields["data"])
        return fields

    def ids(self, count: int) -> list[int]:
        return [int(self.event()["id"]) for _ in range(count)]

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def test_events_as_they_happen(admin: AdminServer) -> None:
    admin.event("before")
    stream = Stream(admin)
    admin.event("server-down", 'a "quoted"\nline')
    seen = stream.event()
    assert (seen["id"], seen["event"]) == ("2", "server-down")
    assert seen["data"]["id"] == 2 and seen["data"]["text"] == 'a "quoted"\nline'
    admin.event("reload")
    assert stream.event()["event"] == "reload"
    stream.close()


@pytest.mark.parametrize(
    ("query", "last", "expected"),
    [("?after=0", "", [1, 2, 3]), ("?after=2", "", [3]), ("", "1", [2, 3]), ("?after=0", "2", [3])],
)
def test_what_happened_before_is_told_to_who_asks(
    admin: AdminServer, query: str, last: str, expected: list[int]
) -> None:
    for number in range(3):
        admin.event("worker-serves", str(number))
    stream = Stream(admin, query, **({"Last-Event-ID": last} if last else {}))
    assert stream.ids(len(expected)) == expected
    admin.event("reload")
    assert stream.ids(1) == [4]
    stream.close()


def test_what_is_not_kept_any_more_is_told_as_lost(admin: AdminServer) -> None:
    for _ in range(KEPT + 5):
        admin.event("reload")
    stream = Stream(admin, "?after=2")
    lost = stream.event()
    assert (lost["event"], "id" in lost) == ("lost", False)
    assert stream.ids(2) == [6, 7]
    stream.close()


def test_nothing_is_lost_to_who_comes_back_in_time(admin: AdminServer) -> None:
    for _ in range(KEPT + 5):
        admin.event("reload")
    stream = Stream(admin, "?after=5")
    assert stream.ids(1) == [6]
    stream.close()


def test_a_new_control_process_counts_from_one(admin: AdminServer) -> None:
    admin.event("worker-serves")
    stream = Stream(admin, **{"Last-Event-ID": "5000"})
    assert stream.event()["event"] == "lost"
    assert stream.ids(1) == [1]
    admin.event("reload")
    assert stream.ids(1) == [2]
    stream.close()


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "1" * 30])
def test_an_id_that_is_none_is_refused(admin: AdminServer, given: str) -> None:
    answer = admin.get("events", Last_Event_ID=given)
    assert answer.status == 400 and "Last-Event-ID" in answer.body["detail"]


def test_silence_is_broken_by_comments(admin: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.1)
    monkeypatch.setattr(events, "LOOK", 0.05)
    stream = Stream(admin)
    assert stream.block() == [": still here"]
    stream.close()


def test_who_has_gone_makes_room(admin: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK", 0.05)
    streams = [Stream(admin) for _ in range(MAX_LISTENERS)]
    refused = admin.get("events")
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert "listen already" in refused.body["detail"]
    streams.pop().close()
    eventually(lambda: len(admin.control.events._listeners) < MAX_LISTENERS, "the room is free")
    streams.append(Stream(admin))
    for stream in streams:
        stream.close()
    eventually(lambda: not admin.control.events._listeners, "nobody listens any more")


def test_a_shutdown_ends_the_stream_in_order(admin: AdminServer) -> None:
    stream = Stream(admin)
    admin.event("reload")
    assert stream.ids(1) == [1]
    admin.stop()
    assert stream.event() == {}
    assert stream.response.read() == b""  # the last chunk came: no reset, no cut
    stream.close()


def test_who_does_not_read_is_given_up(admin: AdminServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SLOW", 0.2)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(admin.path)
        client.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        eventually(lambda: admin.control.events._listeners, "it listens")

        def burst() -> None:
            for _ in range(KEPT):
                admin.control.events.add("reload", "x" * 1024)

        def given_up() -> bool:
            admin.call(burst)
            return not admin.control.events._listeners

        eventually(given_up, "the slow one is given up")


def test_a_burst_beyond_the_queue_comes_whole(admin: AdminServer) -> None:
    stream = Stream(admin)

    def burst() -> None:
        for _ in range(600):
            admin.control.events.add("reload", "x")

    admin.call(burst)
    assert stream.ids(600) == list(range(1, 601))
    stream.close()


def test_recent_events(admin: AdminServer) -> None:
    for number in range(5):
        admin.event("reload", str(number))
    assert [event["text"] for event in admin.get("events/recent").body] == ["0", "1", "2", "3", "4"]
    assert [event["id"] for event in admin.get("events/recent?limit=2").body] == [4, 5]
    assert [event["id"] for event in admin.get("events/recent?after=3").body] == [4, 5]
    assert admin.get("events/recent?after=99").body == []
