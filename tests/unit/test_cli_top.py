"""lb top: rates, frames that fit, and the terminal it runs in."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from lb.admin.views import AdmissionView, StatusView
from lb.cli import main
from lb.cli.frame import Shown, draw
from lb.cli.rates import Rates
from tests.harness.waiting import eventually
from tests.unit.admin_server import (
    AdminServer,
    Answer,
    event_view,
    pool_view,
    route_view,
    server_view,
    status_view,
    worker_view,
)
from tests.unit.terminal import ROOT, Terminal

Capture = pytest.CaptureFixture[str]
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"  # the alternate screen


@pytest.fixture
def server(socket_folder: str) -> Iterator[AdminServer]:
    with AdminServer(Path(socket_folder, "admin.sock")) as server:
        server.says("GET status", status_view())
        server.says("GET events/recent", [event_view(1, "generation 1 is served")])
        yield server


# --- rates -----------------------------------------------------------------------------------------------


def later(seconds: float = 2.0, **changed: object) -> StatusView:
    return status_view(**{"time": 1000.0 + seconds, "uptime": 100.0 + seconds, **changed})


def test_rates_are_differences() -> None:
    now = later(
        routes=(route_view(requests=1100, errors=9, client_messages=40, server_bytes=4048),),
        workers=(worker_view(0, requests=520, cpu_seconds=2.5), worker_view(1)),
        pools=(pool_view(server_view(requests=1050, errors=8)),),
    )
    rates = Rates(status_view(), now)
    assert (rates.requests(), rates.errors()) == (50, 1)
    assert (rates.messages(), rates.bytes()) == (15, 1024)
    assert rates.worker(now.workers[0], "requests") == 10
    assert rates.worker(now.workers[0], "cpu_seconds") == 0.5
    assert rates.server(now.pools[0].servers[0], "errors") == 0.5


def test_the_first_look_and_another_master_have_no_rates() -> None:
    for before, now in (
        (None, status_view()),
        (status_view(), later(pid=7)),
        (status_view(), later(uptime=1.0)),
        (status_view(), status_view()),
    ):
        rates = Rates(before, now)
        assert rates.requests() is None
        assert rates.worker(now.workers[0], "requests") is None
        assert rates.server(now.pools[0].servers[0], "requests") is None


def test_what_comes_and_goes_makes_no_jumps() -> None:
    before = status_view(routes=(route_view("old", requests=10**9), route_view()))
    now = later(
        routes=(route_view(requests=1002), route_view("new", requests=10**6)), workers=(worker_view(5),)
    )
    rates = Rates(before, now)
    assert rates.requests() == 1
    assert rates.worker(now.workers[0], "requests") is None


# --- frames ----------------------------------------------------------------------------------------------


def lines(
    view: StatusView, width: int = 80, height: int = 24, *, events: int = 3, trouble: str = ""
) -> list[str]:
    happened = [event_view(number, f"event {number} " + "x" * 100) for number in range(events)]
    shown = Shown(view, Rates(status_view(), view), happened, trouble)
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(draw(shown, width, height))
    return console.export_text().splitlines()


def test_a_frame_has_it_all() -> None:
    text = "\n".join(lines(later(), 120))
    for words in ("OK", "up 1m 42s", "0 req/s", "4 tunnels", "1 ms lag", "web/10.0.0.2:80", "event 2 "):
        assert words in text
    assert text.index("event 2") < text.index("event 1")


def test_tunnels_that_move_or_close_are_told_while_they_do() -> None:
    quiet = lines(later(), 140)[1]
    assert not any(word in quiet for word in ("moved", "closing", "admission"))
    admission = AdmissionView(rate=5.0, burst=1, queue=9, waiting=8, admitted=7, refused=6)
    pool = msgspec.structs.replace(pool_view(server_view()), admission=admission)
    busy = later(
        migrations={"crash": {"ok": 20, "unproved": 99}},
        workers=(worker_view(0, closing=3), worker_view(1, state="caretaking", closing=4)),
        pools=(pool,),
    )
    drawn = lines(busy, 140)
    for words in ("10 moved/s", "7 closing", "8 wait for admission"):
        assert words in drawn[1]
    assert any("caretaking" in line for line in drawn)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (20, 10), (200, 60)])
def test_a_frame_fits(width: int, height: int) -> None:
    crowd = later(
        workers=tuple(worker_view(slot) for slot in range(64)),
        pools=(pool_view(*(server_view(f"server-with-a-long-name-{n}.example.com:8080", why="w" * 90)
                           for n in range(200))),),
        problems=tuple(f"problem {n} " * 20 for n in range(9)),
    )  # fmt: skip
    drawn = lines(crowd, width, height, events=20, trouble="no answer " * 20)
    assert len(drawn) <= height
    assert max(map(len, drawn)) <= width
    assert any(line.startswith("... and ") for line in drawn)


def test_where_it_is_narrow_the_least_important_columns_go() -> None:
    wide, narrow = lines(later(), 140), lines(later(), 50)

    def titles(drawn: list[str], first: str) -> list[str]:
        return next(line for line in drawn if line.split()[:1] == [first]).split()

    assert titles(wide, "worker")[-1] == "config"
    assert titles(wide, "server") == ["server", "state", "active", "tunnels", "req/s", "err/s", "weight",
                                      "conns", "requests"]  # fmt: skip
    assert titles(narrow, "server") == ["server", "state", "active", "tunnels", "req/s"]
    assert any("web/10.0.0.1:80  up" in line for line in narrow)


def test_what_is_wrong_is_seen_first() -> None:
    servers = [server_view(f"10.0.0.{n}:80", state="ejected" if n == 150 else "up") for n in range(200)]
    sick = later(
        pools=(pool_view(*servers),),
        workers=tuple(worker_view(slot, wedged=slot == 30) for slot in range(40)),
        problems=("pool web: 1 of 200 servers are down",),
    )
    drawn = lines(sick)
    assert "DEGRADED" in drawn[0]
    assert drawn[2] == "! pool web: 1 of 200 servers are down"
    first = {line.split()[0]: index for index, line in enumerate(drawn) if line.strip()}
    assert drawn[first["worker"] + 1].split()[2] == "wedged"
    assert drawn[first["server"] + 1].split()[:2] == ["web/10.0.0.150:80", "ejected"]


# --- once, and lines -------------------------------------------------------------------------------------


def test_once_prints_a_frame(server: AdminServer, capsys: Capture) -> None:
    assert main(["top", "--once", "--interval", "100ms", "--admin", server.address]) == 0
    assert "web/10.0.0.1:80" in capsys.readouterr().out
    server.says("GET status", {"title": "Forbidden", "status": 403}, 403)
    assert main(["top", "--once", "--admin", server.address]) == 1
    assert "Forbidden" in capsys.readouterr().err


def test_a_picture_of_a_frame(server: AdminServer, tmp_path: Path) -> None:
    picture = tmp_path / "top.svg"
    assert (
        main(["top", "--once", "--interval", "100ms", "--svg", str(picture), "--admin", server.address]) == 0
    )
    assert picture.read_text().startswith("<svg")
    assert "font-face" not in picture.read_text()


def test_json_is_a_line_every_interval(server: AdminServer) -> None:
    command = [sys.executable, "-m", "lb", "top", "--json", "--interval", "100ms", "--admin", server.address]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["pid"] == 99
        server.says("GET status", {"title": "Restarting", "status": 503}, 503)
        assert "Restarting" in process.stderr.readline()
        server.says("GET status", status_view(pid=100))
        eventually(lambda: json.loads(process.stdout.readline())["pid"] == 100, "it goes on")  # type: ignore[union-attr]
        process.stdout.close()  # as "| head" does
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_a_live_view_needs_a_terminal(server: AdminServer, capsys: Capture) -> None:
    assert main(["top", "--admin", server.address]) == 2
    assert "--once" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0s", "50ms", "2h", "soon", "5"])
def test_an_interval_that_makes_no_sense(text: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["top", "--interval", text])
    assert "--interval" in capsys.readouterr().err


# --- live ------------------------------------------------------------------------------------------------


def live(server: AdminServer, **environment: str) -> Terminal:
    return Terminal("top", "--interval", "100ms", "--admin", server.address, environment=environment)


def restored(terminal: Terminal) -> bool:
    return LEAVE in terminal.shown.rpartition(ENTER)[2] and terminal.modes == terminal.modes_before


@pytest.mark.parametrize("key", ["q", "\x03", "\x04"])
def test_keys_leave_and_the_terminal_is_as_before(key: str, server: AdminServer) -> None:
    with live(server) as terminal:
        terminal.wait_for("web/10.0.0.1:80")
        assert ENTER in terminal.shown
        assert terminal.modes != terminal.modes_before
        terminal.types(key)
        assert terminal.end() == 0
        assert restored(terminal)
        assert "Traceback" not in terminal.shown


def goes_on(server: AdminServer) -> None:
    goal = len(server.asked) + 4
    eventually(lambda: len(server.asked) >= goal, "it asks again")


def test_arrow_keys_are_no_escape(server: AdminServer) -> None:
    with live(server) as terminal:
        terminal.wait_for("web/10.0.0.1:80")
        for sequence in ("\x1b[A", "\x1bOB", "\x1b[5~", "\x1b[1;5C"):
            terminal.types(sequence)
            goes_on(server)
        terminal.types("\x1b")
        assert terminal.end() == 0


def test_a_signal_ends_it_in_order(server: AdminServer) -> None:
    with live(server) as terminal:
        terminal.wait_for("web/10.0.0.1:80")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
        assert restored(terminal)


def test_a_fault_of_its_own_leaves_the_terminal_as_before(server: AdminServer) -> None:
    with live(server) as terminal:
        terminal.wait_for("web/10.0.0.1:80")
        # A time that no calendar has.
        server.says("GET status", status_view(time=1e300))
        assert terminal.end() == 1
        assert restored(terminal)
        assert "Traceback" in terminal.shown


def test_it_goes_on_when_the_control_process_comes_back(server: AdminServer) -> None:
    with live(server) as terminal:
        terminal.wait_for("up 1m 40s")
        server.answers["GET status"] = Answer(status=0)
        terminal.wait_for("no answer from unix:")
        terminal.wait_for("since 1s")
        server.says("GET status", status_view(uptime=300.0, control_pid=5))
        terminal.wait_for("up 5m 0s")
        terminal.types("q")
        assert terminal.end() == 0


def test_it_follows_the_size_of_the_window(server: AdminServer) -> None:
    with live(server) as terminal:
        terminal.wait_for("files")
        terminal.resize(40, 10)
        terminal.process.send_signal(signal.SIGWINCH)
        deadline = time.monotonic() + 30
        while "files" in (last := terminal.shown.rpartition("worker")[2]):
            assert time.monotonic() < deadline, last
            terminal.wait_for("worker")
            terminal.wait_for("server")
        terminal.types("q")
        assert terminal.end() == 0


def test_no_colour_when_it_is_not_wanted(server: AdminServer) -> None:
    for environment, coloured in (({"NO_COLOR": "1"}, False), ({}, True)):
        with live(server, **environment) as terminal:
            terminal.wait_for("serving")
            terminal.types("q")
            assert terminal.end() == 0
            assert ("\x1b[32m" in terminal.shown) is coloured


def test_rich_is_loaded_by_top_alone() -> None:
    code = "import sys, lb.cli; sys.exit('rich' in sys.modules or 'aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=False).returncode == 0
