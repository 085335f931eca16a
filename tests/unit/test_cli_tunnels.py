"""lb tunnels: listing page by page, and closing with care."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.admin.views import Closed, Moved, TunnelPage
from lb.cli import main
from tests.unit.admin_server import AdminServer, tunnel_view
from tests.unit.terminal import Terminal

Capture = pytest.CaptureFixture[str]


def page(*numbers: int, total: int, cursor: str = "", missing: tuple[int, ...] = ()) -> TunnelPage:
    return TunnelPage(tunnels=tuple(map(tunnel_view, numbers)), total=total, cursor=cursor, missing=missing)


@pytest.fixture
def server(socket_folder: str) -> Iterator[AdminServer]:
    with AdminServer(Path(socket_folder, "admin.sock")) as server:
        server.says("POST tunnels/close", Closed(count=3, missing=()))
        yield server


def run(server: AdminServer, *arguments: str) -> int:
    return main(["tunnels", *arguments, "--admin", server.address])


# --- list ------------------------------------------------------------------------------------------------


def test_they_are_listed(server: AdminServer, capsys: Capture) -> None:
    server.says("GET tunnels", page(1, 2, total=2))
    assert run(server) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["age", "idle"]
    assert first.split() == ["5m", "0s", "2s", "2.0", "KiB", "100", "B", "4/5", "yes", "192.0.2.1", "all",
                             "web/10.0.0.1:80", "0-100-1"]  # fmt: skip
    assert second.endswith("0-100-2")
    assert server.asked[0].target == "tunnels?limit=100"


def test_no_tunnels(server: AdminServer, capsys: Capture) -> None:
    server.says("GET tunnels", page(total=0))
    assert run(server, "list") == 0
    assert capsys.readouterr().out == "no tunnels\n"


def test_uninspected_tunnels_have_no_messages(server: AdminServer, capsys: Capture) -> None:
    view = tunnel_view(1, client_messages=-1, server_messages=-1)
    server.says("GET tunnels", TunnelPage(tunnels=(view,), total=1, cursor="", missing=()))
    assert run(server) == 0
    assert " -  " in capsys.readouterr().out


def test_filters_go_to_the_api(server: AdminServer) -> None:
    server.says("GET tunnels", page(total=0))
    assert run(server, "--route", "r", "--pool=p", "--server", "s", "--client", "c", "--older", "5m",
               "--idle", "1m30s", "--worker", "0", "--limit", "7") == 0  # fmt: skip
    assert (
        server.asked[0].target
        == "tunnels?route=r&pool=p&server=s&client=c&older=300.0&idle=90.0&worker=0&limit=7"
    )


def test_pages_are_followed_up_to_the_limit(server: AdminServer, capsys: Capture) -> None:
    server.says("GET tunnels?limit=3", page(1, 2, total=9, cursor="a"))
    server.says("GET tunnels?limit=1&cursor=a", page(3, total=9, cursor="b"))
    assert run(server, "--limit", "3") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "and 6 more; --all lists all, --limit N so many"
    assert [one.target for one in server.asked] == ["tunnels?limit=3", "tunnels?limit=1&cursor=a"]


def test_all_pages_are_followed_and_all_missing_workers_are_told(
    server: AdminServer, capsys: Capture
) -> None:
    server.says("GET tunnels?limit=1000", page(1, total=3, cursor="a", missing=(2,)))
    server.says("GET tunnels?limit=1000&cursor=a", page(total=3, cursor="b", missing=(1, 2)))
    server.says("GET tunnels?limit=1000&cursor=b", page(2, 3, total=3))
    assert run(server, "--all", "--json") == 1
    captured = capsys.readouterr()
    listed = json.loads(captured.out)
    assert [tunnel["id"] for tunnel in listed["tunnels"]] == ["0-100-1", "0-100-2", "0-100-3"]
    assert (listed["missing"], listed["cursor"]) == ([1, 2], "")
    assert "worker 1, 2 did not answer" in captured.err


# --- close -----------------------------------------------------------------------------------------------


def test_close_by_id(server: AdminServer, capsys: Capture) -> None:
    assert run(server, "close", "0-100-1", "--code", "1012", "0-100-2", "--reason", "bye") == 0
    (sent,) = server.bodies("POST tunnels/close")
    assert (sent["ids"], sent["code"], sent["reason"]) == (["0-100-1", "0-100-2"], 1012, "bye")
    assert not sent["all"]
    assert capsys.readouterr().out == "3 tunnels being closed with code 1012\n"


def test_close_by_filter(server: AdminServer, capsys: Capture) -> None:
    assert run(server, "close", "--older", "1h", "--pool", "web", "--json") == 0
    (sent,) = server.bodies("POST tunnels/close")
    assert (sent["older"], sent["pool"], sent["all"]) == (3600.0, "web", False)
    assert json.loads(capsys.readouterr().out) == {"count": 3, "missing": []}


def test_close_all(server: AdminServer) -> None:
    assert run(server, "close", "--all") == 0
    assert server.bodies("POST tunnels/close")[0]["all"] is True


def test_close_over_a_time(server: AdminServer, capsys: Capture) -> None:
    assert run(server, "close", "--pool", "web", "--spread", "1m30s") == 0
    assert server.bodies("POST tunnels/close")[0]["spread"] == 90.0
    assert "within 90s" in capsys.readouterr().out


def test_move(server: AdminServer, capsys: Capture) -> None:
    server.says("POST tunnels/move", Moved(count=5, servers={"a": 2, "b": 3}, missing=()))
    arguments = ["--pool", "web", "--server", "a", "--to", "c", "--count", "5", "--spread", "0s"]
    assert run(server, "move", *arguments) == 0
    assert server.bodies("POST tunnels/move") == [
        {"pool": "web", "server": "a", "to": "c", "count": 5, "spread": 0.0, "code": None, "reason": ""}
    ]
    assert capsys.readouterr().out == "5 tunnels asked to move: 2 from a, 3 from b\n"


def test_nothing_to_move(server: AdminServer, capsys: Capture) -> None:
    server.says("POST tunnels/move", Moved(count=0, servers={}, missing=(1,)))
    assert run(server, "move", "--pool", "web") == 1
    said = capsys.readouterr()
    assert said.out.startswith("nothing to move")
    assert "worker 1 did not answer" in said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["close"], "--all to close every tunnel"),
        (["close", "--all", "--pool", "web"], "leave"),
        (["close", "--worker", "1", "--pool", "web"], "--worker goes with lb tunnels list, not with close"),
        (["close", "--limit", "1", "--pool", "web"], "--limit goes with lb tunnels list"),
        (["close", "--code", "999", "0-1-1"], "--code: expected"),
        (["close", "x"], "slot-pid-number"),
        (["close", "--reason", "x" * 200, "0-1-1"], "--reason"),
        (["move"], "needs --pool"),
        (["move", "--pool", "web", "--all"], "--all goes with lb tunnels list or close, not with move"),
        (["move", "--pool", "web", "0-1-1"], "ids goes with lb tunnels close, not with move"),
        (["move", "--pool", "web", "--spread", "2d"], "--spread: expected"),
        (["close", "--to", "web-2", "--pool", "web"], "--to goes with lb tunnels move, not with close"),
        (["--spread", "5s"], "--spread goes with lb tunnels close or move, not with list"),
        (["colse"], "expected list, close or move"),
        (["list", "0-100-1"], "lb tunnels close"),
        (["--code", "1012"], "lb tunnels close"),
    ],
)
def test_wrong_use_asks_nothing(
    arguments: list[str], says: str, server: AdminServer, capsys: Capture
) -> None:
    assert run(server, *arguments) == 2
    assert says in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--route", ""],
        ["--older", "5"],
        ["--idle", "soon"],
        ["--limit", "0"],
        ["--worker", "-1"],
        ["--code", "x"],
    ],
)
def test_values_that_make_no_sense(arguments: list[str], server: AdminServer, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        run(server, "close", *arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(("key", "code", "closes"), [("y\n", 0, 1), ("\n", 1, 0), ("no\n", 1, 0)])
def test_a_person_is_asked(key: str, code: int, closes: int, server: AdminServer) -> None:
    server.says("GET tunnels", page(1, total=12))
    with Terminal("tunnels", "close", "--older", "5m", "--admin", server.address) as terminal:
        terminal.wait_for("close 12 tunnels (older 5m) with code 1001? [y/N]")
        assert server.bodies("POST tunnels/close") == []
        terminal.types(key)
        assert terminal.end() == code
    assert len(server.bodies("POST tunnels/close")) == closes


def test_a_person_may_say_yes_before(server: AdminServer) -> None:
    with Terminal("tunnels", "close", "--all", "--yes", "--admin", server.address) as terminal:
        assert terminal.end() == 0
        assert "[y/N]" not in terminal.shown
    assert len(server.bodies("POST tunnels/close")) == 1
