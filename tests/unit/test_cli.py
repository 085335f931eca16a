"""The command line: what each command prints and returns."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from lb.cli import main
from lb.cli.main import COMMANDS
from lb.cli.show import outcome_text, status_text
from lb.cli.text import duration
from lb.master import places
from lb.master.report import (
    ListenerReport,
    Outcome,
    ReloadReport,
    StatusReport,
    WorkerReport,
)

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert f"example: lb {name}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command.help in " ".join(shown.split()) for command in COMMANDS.values())


@pytest.mark.parametrize(("typed", "meant"), [("relaod", "lb reload"), ("chekc", "lb check")])
def test_an_unknown_command_is_guessed(typed: str, meant: str, capsys: Capture) -> None:
    assert main([typed]) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_a_command_like_nothing_points_to_the_help(capsys: Capture) -> None:
    assert main(["xyzzy"]) == 2
    assert "lb --help" in capsys.readouterr().err


def test_init_writes_a_file_that_passes_check(tmp_path: pathlib.Path, capsys: Capture) -> None:
    path = tmp_path / "lb.toml"
    assert main(["init", str(path)]) == 0
    assert f"lb check {path}" in capsys.readouterr().out
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out.endswith("ok\n")


def test_init_overwrites_only_when_forced(tmp_path: pathlib.Path, capsys: Capture) -> None:
    path = tmp_path / "lb.toml"
    path.write_text("precious")
    assert main(["init", str(path)]) == 1
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert main(["init", str(path), "--force"]) == 0
    assert path.read_text() != "precious"


def test_init_says_why_it_cant_write(capsys: Capture) -> None:
    assert main(["init", "/nonexistent/lb.toml"]) == 1
    assert "can't be written" in capsys.readouterr().err


def test_check_prints_every_error(tmp_path: pathlib.Path, capsys: Capture) -> None:
    path = tmp_path / "lb.toml"
    path.write_text('[process]\nworkrs = 2\nshutdown_timeout = "soon"\n')
    assert main(["check", str(path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("lb.toml:2" in line and "workers" in line for line in lines)
    assert any("lb.toml:3" in line for line in lines)


def test_check_finds_errors_in_the_file_and_in_those_it_names_at_once(
    tmp_path: pathlib.Path, capsys: Capture
) -> None:
    path = tmp_path / "lb.toml"
    path.write_text(
        'listen.s = { bind = [":8443"], tls = { certs = ["nope/*.pem"] } }\n'
        'route = [{ pool = "web" }]\n'
        'pool.web = { servers = ["10.0.0.1:80"], tls = { ca = "missing.pem" } }\n'
        'access_log.format = "jsno"\n'
    )
    assert main(["check", str(path)]) == 1
    report = capsys.readouterr().err
    assert all(word in report for word in ("nope/*.pem", "missing.pem", "jsno"))


def test_check_as_json(tmp_path: pathlib.Path, capsys: Capture) -> None:
    path = tmp_path / "lb.toml"
    path.write_text("[process]\nworkrs = 2\n")
    assert main(["check", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert any(problem["line"] == 2 for problem in report["problems"])
    main(["init", str(path), "--force"])
    capsys.readouterr()
    assert main(["check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_diff_shows_what_a_reload_would_touch(tmp_path: pathlib.Path, capsys: Capture) -> None:
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    main(["init", str(old)])
    new.write_text(old.read_text() + '\n[drain]\nhard_stop = "1m"\n')
    capsys.readouterr()
    assert main(["diff", str(old), str(old)]) == 0
    assert capsys.readouterr().out == "no differences\n"
    assert main(["diff", str(old), str(new)]) == 0
    assert "drain.hard_stop" in capsys.readouterr().out
    assert main(["diff", str(old), str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["path"] == "drain.hard_stop"
    assert main(["diff", str(old), str(tmp_path / "missing.toml")]) == 1
    assert "missing.toml" in capsys.readouterr().err


def test_run_without_a_file_says_what_to_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run"]) == 1
    assert "lb init" in capsys.readouterr().err


NEEDS_LB = ["reload", "status", "stop", "server", "tunnels", "top"]


@pytest.mark.parametrize("name", NEEDS_LB)
def test_nobody_there(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "folder", lambda: tmp_path / "run")
    given = [name, "--once"] if name == "top" else [name]
    assert main(given) == 1
    assert "no lb runs here" in capsys.readouterr().err
    assert main([*given, "--admin", f"unix:{tmp_path}/command.sock"]) == 1
    assert " answers at " in capsys.readouterr().err
    assert main([*given, "-c", str(tmp_path / "missing.toml")]) == 1
    assert "missing.toml" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in NEEDS_LB if name != "stop"])
def test_an_address_that_makes_no_sense(name: str, capsys: Capture) -> None:
    given = [name, "--once"] if name == "top" else [name]
    assert main([*given, "--admin", "over the rainbow"]) == 1
    assert "expected unix:/path, host:port" in capsys.readouterr().err


@pytest.mark.parametrize("admin", ["localhost:1", "unix:/run/lb/admin.sock"])
def test_the_admin_api_cant_stop(admin: str, capsys: Capture) -> None:
    assert main(["stop", "--admin", admin]) == 2
    assert "command socket" in capsys.readouterr().err


def worker(slot: int, **changed: object) -> WorkerReport:
    fields: dict[str, object] = {
        "slot": slot,
        "pid": 100 + slot,
        "state": "serving",
        "uptime": 90.0,
        "generation": 3,
        "connections": 10,
        "tunnels": 5,
        "accepted": 100,
        "requests": 1000,
        "heartbeat_age": 0.1,
        "listening_sockets": 1,
    }
    return WorkerReport(**{**fields, **changed})  # type: ignore[arg-type]


def status(**changed: object) -> StatusReport:
    listener = ListenerReport(
        name="public", bind=("[::]:443",), tls=True, connections=20, accepted=200, rejected=1
    )
    fields: dict[str, object] = {
        "version": "1.0",
        "form": "compiled",
        "pid": 99,
        "config": "/etc/lb/lb.toml",
        "uptime": 3 * 86400 + 3700,
        "state": "serving",
        "generation": 3,
        "workers": (worker(0), worker(1)),
        "workers_wanted": 2,
        "listeners": (listener,),
        "reloads": ReloadReport(succeeded=2, failed=0),
        "restarts": {},
    }
    return StatusReport(**{**fields, **changed})  # type: ignore[arg-type]


def test_the_verdict_comes_first() -> None:
    verdict = "OK: 2 of 2 workers serving, up 3d 1h (pid 99, lb 1.0, compiled)\n"
    assert status_text(status()).startswith(verdict)
    assert "(pid 99, lb 1.0)" in status_text(status(form="")), "as older releases answer"
    assert status_text(status(workers=(worker(0),))).startswith("DEGRADED: 1 of 2 workers")
    assert status_text(status(state="stopping")).startswith("STOPPING: ")


def test_trouble_stands_out() -> None:
    failed = Outcome(ok=False, generation=3, error="lb.toml:7: pool: unknown key", at=1.0)
    text = status_text(
        status(
            workers=(worker(0, heartbeat_age=12.0), worker(1)),
            reloads=ReloadReport(succeeded=2, failed=1, last=failed),
            restarts={"wedged": 1, "SIGKILL": 2},
        )
    )
    assert "LAST RELOAD FAILED" in text
    assert "lb.toml:7: pool: unknown key" in text
    assert "silent for 12s" in text
    assert "worker restarts: 2 SIGKILL, 1 wedged" in text


def test_outcomes_say_what_changed_or_why_nothing_did() -> None:
    done = Outcome(ok=True, generation=4, changes=("pool.web.servers: + 10.0.0.1:80",), seconds=0.5)
    assert "  pool.web.servers: + 10.0.0.1:80" in outcome_text(done)
    assert "no key changed" in outcome_text(Outcome(ok=True, generation=4))
    failed = outcome_text(Outcome(ok=False, generation=3, error="why"))
    assert "generation 3 serves on" in failed
    assert failed.endswith("why")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.9, "59s"), (60, "1m 0s"), (3661, "1h 1m"), (90000, "1d 1h"), (864000, "10d 0h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_who_reads_may_stop_reading() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lb", "check", "config/lb.toml"],
            cwd=pathlib.Path(__file__).parents[2],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=30,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
