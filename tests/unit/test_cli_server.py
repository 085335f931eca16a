"""lb server, and the pools in lb status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.admin.views import LastCheck, ServerChange
from lb.cli import main
from lb.cli.server import WrongAction, change_of, server_text
from lb.cli.show import pools_text
from tests.unit.admin_server import AdminServer, pool_view, server_view

Capture = pytest.CaptureFixture[str]
ONE = "pools/web/servers/10.0.0.1%3A80"


@pytest.fixture
def server(socket_folder: str) -> Iterator[AdminServer]:
    with AdminServer(Path(socket_folder, "admin.sock")) as server:
        server.says("GET pools", [pool_view(server_view(), server_view("unix:/run/a.sock", state="down"))])
        yield server


@pytest.mark.parametrize(
    ("actions", "change"),
    [
        ([], None),
        (["drain"], ServerChange(admin="drain")),
        (["weight=0"], ServerChange(weight=0)),
        (["weight=default", "ready"], ServerChange(admin="ready", weight=-1)),
        (["maint", "maint"], ServerChange(admin="maint")),
    ],
)
def test_actions(actions: list[str], change: ServerChange | None) -> None:
    assert change_of(actions) == change


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        (["drian"], "did you mean drain"),
        (["xyz"], "expected ready, drain, maint"),
        (["drain", "ready"], "contradict"),
        (["weight=1", "weight=2"], "contradict"),
        (["weight=-1"], "weight=default"),
        (["weight=1.5"], "whole number"),
        (["weight="], "whole number"),
        (["weight=²"], "whole number"),
        (["weight=99999999"], "expected"),
    ],
)
def test_wrong_actions(actions: list[str], says: str, capsys: Capture) -> None:
    with pytest.raises(WrongAction, match=says):
        change_of(actions)
    assert main(["server", "web/a", *actions]) == 2
    assert capsys.readouterr().err.startswith("lb: ")


def test_a_server_is_shown(server: AdminServer, capsys: Capture) -> None:
    server.says(f"GET {ONE}", server_view())
    assert main(["server", "web/10.0.0.1:80", "--admin", server.address]) == 0
    assert capsys.readouterr().out.startswith("web/10.0.0.1:80: up\n")
    assert main(["server", "web/10.0.0.1:80", "--admin", server.address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "up"
    assert {one.method for one in server.asked} == {"GET"}


def test_several_actions_are_one_change(server: AdminServer, capsys: Capture) -> None:
    server.says(f"PATCH {ONE}", server_view(state="drain", admin="drain"))
    assert main(["server", "web/10.0.0.1:80", "drain", "--admin", server.address, "weight=3"]) == 0
    sent = {"admin": "drain", "weight": 3, "spread": None, "keep_tunnels": False}
    assert server.bodies(f"PATCH {ONE}") == [sent]
    assert capsys.readouterr().out.startswith("web/10.0.0.1:80: drain\n")


@pytest.mark.parametrize(
    ("options", "spread", "keep"), [(["--spread", "1m"], 60.0, False), (["--keep-tunnels"], None, True)]
)
def test_a_drain_moves_tunnels_or_not(
    options: list[str], spread: float | None, keep: bool, server: AdminServer
) -> None:
    server.says(f"PATCH {ONE}", server_view(state="drain", admin="drain"))
    assert main(["server", "web/10.0.0.1:80", "drain", *options, "--admin", server.address]) == 0
    sent = server.bodies(f"PATCH {ONE}")[0]
    assert (sent["spread"], sent["keep_tunnels"]) == (spread, keep)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ready", "--spread", "1m"], "go with drain"),
        (["--keep-tunnels"], "go with drain"),
        (["drain", "--keep-tunnels", "--spread", "1m"], "leave out one of it and --spread"),
        (["drain", "--spread", "25h"], "--spread: at most 24h"),
    ],
)
def test_what_is_said_of_tunnels_goes_with_a_drain(
    arguments: list[str], says: str, server: AdminServer, capsys: Capture
) -> None:
    assert main(["server", "web/10.0.0.1:80", *arguments, "--admin", server.address]) == 2
    assert says in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("web/10.0.0.11:80", "there is no server 'web/10.0.0.11:80'; did you mean web/10.0.0.1:80?"),
        ("wbe/10.0.0.1:80", "did you mean web/10.0.0.1:80?"),
        ("zzzzzz/zzzzz", "lb server lists all"),
        ("webb", "there is no pool 'webb'; did you mean web?"),
    ],
)
def test_the_nearest_name_is_told(name: str, says: str, server: AdminServer, capsys: Capture) -> None:
    assert main(["server", name, "--admin", server.address]) == 1
    assert says in capsys.readouterr().err


def test_what_the_api_refuses_is_told(server: AdminServer, capsys: Capture) -> None:
    server.says(f"PATCH {ONE}", {"title": "Unprocessable", "status": 422, "detail": "too heavy"}, 422)
    assert main(["server", "web/10.0.0.1:80", "weight=9", "--admin", server.address]) == 1
    assert capsys.readouterr().err == "lb: too heavy\n"


def test_all_are_listed(server: AdminServer, capsys: Capture) -> None:
    assert main(["server", "--admin", server.address]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split()[:3] == ["server", "state", "weight"]
    assert [line.split()[:2] for line in listed[1:]] == [
        ["web/10.0.0.1:80", "up"],
        ["web/unix:/run/a.sock", "down"],
    ]
    assert main(["server", "web", "--json", "--admin", server.address]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["10.0.0.1:80", "unix:/run/a.sock"]


def test_a_pool_is_not_drained_by_accident(server: AdminServer, capsys: Capture) -> None:
    assert main(["server", "web", "drain", "--admin", server.address]) == 1
    assert "POOL/SERVER" in capsys.readouterr().err
    assert server.asked == []


def test_the_detail_of_a_server() -> None:
    check = LastCheck(result="status", detail="503 in place of 200-299", at=990.0, seconds=0.012)
    lines = "\n".join(
        server_text(
            server_view(
                state="ejected", why="5 errors in a row", since=900.0, ejected_until=1030.0, last_check=check,
                max_connections=10, backup=True, addresses=("10.0.0.1", "10.0.0.2"), effective_weight=0.25,
            ),
            1000.0,
        )
    )  # fmt: skip
    assert lines.startswith("web/10.0.0.1:80: ejected for 1m 40s (5 errors in a row)\n")
    for words in (
        "for another 30s", "10.0.0.1:80 (10.0.0.1, 10.0.0.2), backup", "1 configured, 0.25 now",
        "at most 10", "status: 503 in place of 200-299 (12 ms, 10s ago", "worker 0: 2",
    ):  # fmt: skip
        assert words in lines


def test_what_others_chose_is_harmless_on_a_terminal() -> None:
    shown = "\n".join(server_text(server_view(why="\x1b]0;title\x07 and \u202e"), 0.0))
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_of_a_large_pool_the_status_shows_what_is_wrong() -> None:
    servers = [server_view(f"10.0.0.{n}:80", state="down" if n == 7 else "up") for n in range(30)]
    lines = pools_text((pool_view(*servers, queued=3),))
    assert [line.split()[0] for line in lines[1:2]] == ["web/10.0.0.7:80"]
    assert lines[2:] == ["pool web: 29 more servers are well", "pool web: 3 requests queue"]
    assert len(pools_text((pool_view(*servers),), every=True)) == 31
