"""The state that one release leaves to the next."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from lb.config import State
from lb.config.state import Row, Rows
from lb.control.messages import Event
from lb.control.spec import Discovery, FoundServer
from lb.master.report import Outcome, ReloadReport
from lb.master.upgrade_state import (
    FORMAT,
    Command,
    CompileState,
    Deployed,
    Listening,
    LockedFile,
    Process,
    StateError,
    UpgradeState,
    compile_state,
    decode,
    pack,
    restored,
    unpack,
)
from workers.contract.messages import MoveTunnels, TunnelFilter
from workers.contract.scoreboard import Capacity


def least() -> UpgradeState:
    """What every state has."""
    return UpgradeState(
        format=FORMAT,
        version="1.0",
        config="/etc/lb/lb.toml",
        served="",
        started=1.5,
        attempt=3,
        compiled=CompileState(),
        listeners=(Listening(address="0.0.0.0:80", fd=7, home=0),),
        command=Command(path="/run/lb/command.sock", fd=9, file=(1, 2)),
        scoreboard=4,
        ledger=5,
        bells=(10, 11),
    )


def full() -> UpgradeState:
    """One with everything."""
    outcome = Outcome(ok=True, generation=3, changes=("workers: 1 -> 2",), at=2.0)
    return msgspec.structs.replace(
        least(),
        compiled=compile_state(state_with_rows()),
        deployed=Deployed(snapshot=b"s", control=b"c", certificates=(("public", "a.pem", b"PEM"),)),
        discovery=Discovery(
            servers={"web": (FoundServer(name="a", address="h:1"),)}, addresses={"h": ("::1",)}
        ),
        listeners=(
            Listening(address="0.0.0.0:80", fd=7, home=0),
            Listening(address="unix:/run/x", fd=8, file=(3, 4)),
        ),
        command=Command(path="/run/lb/command.sock", fd=9, file=(1, 2), waiting=(20,)),
        pid_file=LockedFile(path="/run/lb/lb.pid", fd=12),
        metrics=Listening(address="127.0.0.1:9180", fd=13),
        children=(
            Process(kind="worker", pid=100, fd=14, slot=0, started=2.0),
            Process(kind="worker", pid=101, fd=15, slot=1, phase="leaving", leave_by=99.5),
            Process(kind="keeper", pid=102, fd=16, slot=0),
            Process(kind="control", pid=103, fd=17),
        ),
        restarts={"SIGKILL": 2},
        reloads=ReloadReport(succeeded=1, failed=0, last=outcome, last_success=2.0),
        events=(Event(kind="reload", text="done", at=1.0, fields={"generation": 3}, number=1),),
        event_count=1,
        moves=(
            MoveTunnels(
                request=0,
                where=TunnelFilter(pool="web", server="a"),
                count=0,
                code=1012,
                spread=1.0,
                until=9.5,
                pool="web",
                total=3,
                target="b",
                aim=7,
            ),
        ),
        signal_mask=(1, 2),
    )


def state_with_rows() -> State:
    return State(
        listeners=Rows(taken={"public": Row(0, 1)}),
        routes=Rows(taken={"all": Row(0, 1), "chat": Row(2, 3)}, left={"old": Row(1, 1)}),
        pools=Rows(taken={"web": Row(0, 1)}),
        servers=Rows(taken={("web", "a"): Row(0, 1)}, left={("web", "b"): Row(1, 2), ("x", "a"): Row(2, 1)}),
        sticky_keys=MappingProxyType({"web": b"\x00key\xff"}),
        servers_files=MappingProxyType({"web": "servers.json"}),
    )


@pytest.mark.parametrize("state", [least(), full()])
def test_a_state_comes_back_as_it_was(state: UpgradeState) -> None:
    fd = pack(state)
    try:
        assert unpack(fd) == state
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)


def test_rows_and_owners_come_back() -> None:
    before = state_with_rows()
    after = restored(decode(msgspec.msgpack.encode(full())).compiled, Capacity())
    assert after == before
    assert after.servers.left["web", "b"] == Row(1, 2)


def test_all_descriptors_are_named() -> None:
    assert sorted(full().descriptors()) == [4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 20]


def plain(state: UpgradeState) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(state))
    return decoded


def test_what_a_later_release_adds_is_ignored() -> None:
    data = plain(full())
    data["moons"] = {"phobos": 1}
    data["children"][0]["mood"] = "fine"
    assert decode(msgspec.msgpack.encode(data)) == full()


def test_what_an_earlier_release_did_not_say_has_a_default() -> None:
    """Only these were in the first release of this format: all else must have a default for ever."""
    data = plain(full())
    first = {
        "format",
        "version",
        "config",
        "served",
        "started",
        "attempt",
        "compiled",
        "listeners",
        "command",
    }
    first |= {"scoreboard", "ledger", "bells"}
    assert decode(msgspec.msgpack.encode({name: data[name] for name in first})).children == ()


@pytest.mark.parametrize("number", [0, FORMAT + 1])
def test_another_format_is_refused_by_name(number: int) -> None:
    data = plain(least()) | {"format": number, "bells": "otherwise"}
    with pytest.raises(StateError, match=rf"lb \(1\.0\) has a state of format {number}, .* restart"):
        decode(msgspec.msgpack.encode(data))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa6format\x01", msgspec.msgpack.encode([1, 2])])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(StateError):
        decode(data)


def test_a_descriptor_that_is_not_there_is_refused() -> None:
    with pytest.raises(StateError, match="can't be read"):
        unpack(999_999)
