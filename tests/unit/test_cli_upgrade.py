"""lb upgrade: what it prints and returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lb.cli import main
from lb.master.report import Reply, UpgradeOutcome
from tests.unit.test_cli_status import CommandSocket

Capture = pytest.CaptureFixture[str]
Says = Callable[[Reply], str]


@pytest.fixture
def master(socket_folder: str) -> Iterator[Says]:
    """Makes a command socket that gives this reply, and the configuration file that leads to it."""
    made: list[CommandSocket] = []

    def says(reply: Reply) -> str:
        made.append(CommandSocket(Path(socket_folder, "lb.command.sock"), reply))
        config = Path(socket_folder, "lb.toml")
        config.write_text('process.pid_file = "lb.pid"\n')
        return str(config)

    yield says
    for command in made:
        command.close()
        assert [asked["command"] for asked in command.asked] == ["upgrade"]


def test_success_says_from_where_to_where(master: Says, capsys: Capture) -> None:
    outcome = UpgradeOutcome(ok=True, before="1.0", after="2.0", executed=True, seconds=1.5)
    assert main(["upgrade", "-c", master(Reply(upgrade=outcome, pid=42))]) == 0
    assert capsys.readouterr().out.startswith("upgraded from 1.0 to 2.0 in 1.50s; pid 42 as before")


def test_a_failed_trial_says_that_nothing_has_changed(master: Says, capsys: Capture) -> None:
    outcome = UpgradeOutcome(ok=False, before="1.0", error="it does not start: no\nmore")
    assert main(["upgrade", "-c", master(Reply(upgrade=outcome, pid=42))]) == 1
    shown = capsys.readouterr()
    assert shown.err == (
        "upgrade failed, nothing has changed and 1.0 serves on: it does not start: no\nmore\n"
    )
    assert shown.out == ""


def test_a_release_that_runs_and_does_not_serve_is_not_called_unchanged(
    master: Says, capsys: Capture
) -> None:
    outcome = UpgradeOutcome(ok=False, before="1.0", after="2.0", executed=True, error="no workers")
    assert main(["upgrade", "-c", master(Reply(upgrade=outcome, pid=42))]) == 1
    assert capsys.readouterr().err == "2.0 has taken the place of 1.0, but no workers\n"


def test_json_is_the_outcome(master: Says, capsys: Capture) -> None:
    outcome = UpgradeOutcome(ok=False, before="1.0", error="no")
    assert main(["upgrade", "--json", "-c", master(Reply(upgrade=outcome, pid=42))]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ok"], printed["before"], printed["executed"]) == (False, "1.0", False)


def test_a_refusal_is_told(master: Says, capsys: Capture) -> None:
    assert main(["upgrade", "-c", master(Reply(error="an upgrade goes on: try again"))]) == 1
    assert capsys.readouterr().err == "lb: an upgrade goes on: try again\n"


def test_the_admin_api_can_not_upgrade(capsys: Capture) -> None:
    assert main(["upgrade", "--admin", "127.0.0.1:9181"]) == 2
    assert "wants the command socket" in capsys.readouterr().err
