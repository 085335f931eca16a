"""The trial of a new release, as who runs it sees it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from lb.master.loop import Loop
from lb.master.upgrade_attempt import MAX_OUTPUT, Attempt, Pipe, TrialReport
from lb.master.upgrade_launch import VARIABLE, Launch
from lb.master.upgrade_state import pack
from tests.harness import eventually, processes
from tests.harness.processes import own_descriptors
from tests.unit.test_upgrade_state import least

REPORT = f"fd = int(os.environ['{VARIABLE}'].rpartition(':')[2])"


def attempt(folder: Path, code: str, deadline: float = 30.0) -> TrialReport:
    """What comes of the trial of a release that does `code`."""
    release = folder / "lb"
    release.write_text(f"#!{sys.executable}\nimport os, sys, time\n{code}\n")
    release.chmod(0o755)
    return run(Launch(("python",), str(release), (), str(folder)), deadline)


def run(launch: Launch, deadline: float = 30.0) -> TrialReport:
    def bug(error: Exception) -> None:
        raise error

    loop = Loop(bug)
    reports: list[TrialReport] = []

    def done(report: TrialReport) -> None:
        reports.append(report)
        loop.stop()

    def look() -> None:
        trial.reap()
        if not reports:
            loop.later(0.01, look)

    board, ledger = os.memfd_create("board"), os.memfd_create("ledger")
    state = msgspec.structs.replace(least(), scoreboard=board, ledger=ledger)
    packed = pack(state)
    trial = Attempt(loop, done, deadline)
    before = own_descriptors()
    try:
        trial.start(launch, packed, state)
        loop.later(0.0, look)  # it may be over already, and a stop counts for a loop that runs
        loop.run()
        assert own_descriptors() == before
    finally:
        for fd in (board, ledger, packed):
            os.close(fd)
        loop.close()
    (report,) = reports
    return report


def test_a_trial_that_could_take_over_says_so(tmp_path: Path) -> None:
    code = f"""{REPORT}; os.write(fd, b'{{"ok": true, "version": "2.0"}}'); print("noise")"""
    assert attempt(tmp_path, code) == TrialReport(ok=True, version="2.0")


def test_it_has_what_it_needs_and_nothing_more(tmp_path: Path) -> None:
    code = f"""{REPORT}
os.write(fd, b'{{"ok": true, "version": "%d"}}' % len(os.listdir("/proc/self/fd")))"""
    # The standard three, packed state, report, scoreboard, ledger, and that of the listing.
    assert attempt(tmp_path, code).version == "8"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def", "the new release does not start (exit-1): SyntaxError: invalid syntax"),
        ("import no_such_thing", "(exit-1): ModuleNotFoundError: No module named 'no_such_thing'"),
        ("sys.exit(3)", "the new release does not start (exit-3)"),
        ("os.kill(os.getpid(), 9)", "the new release does not start (SIGKILL)"),
        (f"{REPORT}; os.write(fd, b'what?')", "the new release does not start (exit-0)"),
        (f"""{REPORT}; os.write(fd, b'{{"ok": false, "error": "no"}}'); print("x")""", "no"),
    ],
)
def test_a_broken_release_says_why(tmp_path: Path, code: str, expected: str) -> None:
    report = attempt(tmp_path, code)
    assert not report.ok
    assert report.error.partition("\n")[0].endswith(expected)


def test_a_release_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"""
if os.fork() == 0:
    with open({str(note)!r} + "x", "w") as file: print(os.getpid(), file=file)
    os.rename({str(note)!r} + "x", {str(note)!r})
    time.sleep(100)
while not os.path.exists({str(note)!r}): time.sleep(0.01)
print("waiting for Godot", flush=True)
time.sleep(100)"""
    report = attempt(tmp_path, code, deadline=1.0)
    assert report.error == "the new release did not get ready within 1s: waiting for Godot"
    pid = int(note.read_text())
    eventually(lambda: not processes.alive(pid), "its child is gone")


def test_what_outlives_it_can_not_hold_the_master_up() -> None:
    """What it has left running may write faster than anybody reads."""
    loop = Loop(print)
    pipe = Pipe(loop, 10)
    fcntl.fcntl(pipe.writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(pipe.writing, b"x" * (1 << 20))
    other = os.dup(pipe.fd)
    try:
        pipe.close()
        assert pipe.data == b"x" * 10
        assert len(os.read(other, 1 << 20)) >= 1 << 19, "the rest is left"
    finally:
        os.close(other)
        loop.close()


def test_it_ends_with_the_master(tmp_path: Path) -> None:
    release = tmp_path / "lb"
    release.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(100)\n")
    release.chmod(0o755)
    code = f"""
import os, msgspec, time
from lb.master.loop import Loop
from lb.master.upgrade_attempt import Attempt
from lb.master.upgrade_launch import Launch
from lb.master.upgrade_state import pack
from tests.unit.test_upgrade_state import least
state = msgspec.structs.replace(least(), scoreboard=os.memfd_create("a"), ledger=os.memfd_create("b"))
trial = Attempt(Loop(print), print)
trial.start(Launch(("python",), {str(release)!r}, (), "/"), pack(state), state)
print(trial.pid, flush=True)
time.sleep(100)"""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as master:
        assert master.stdout is not None
        pid = int(master.stdout.readline())
        # (Until it executes the release, its command line is that of its master.)
        command = Path(f"/proc/{pid}/cmdline")
        eventually(lambda: command.read_bytes().split(b"\0")[1] == str(release).encode(), "it runs")
        master.kill()
    eventually(lambda: not processes.alive(pid), "the trial is gone")


def test_what_it_prints_is_kept_within_bounds(tmp_path: Path) -> None:
    report = attempt(tmp_path, 'print("x" * 1_000_000); print("the end"); sys.exit(1)')
    assert report.error.startswith("the new release does not start (exit-1): the end\n")
    assert len(report.error) < 2 * MAX_OUTPUT


def test_a_release_that_can_not_be_executed_says_why(tmp_path: Path) -> None:
    report = run(Launch(("python",), str(tmp_path / "gone"), (), str(tmp_path)))
    assert report.error == f"{tmp_path}/gone is not there any more"


def test_signals_of_the_master_do_not_reach_it(tmp_path: Path) -> None:
    """It is in a group of its own, and the signals are as for any process that starts."""
    code = f"""{REPORT}
import signal
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
own = os.getpgid(0) == os.getpid()
os.write(fd, b'{{"ok": true, "version": "%d %d"}}' % (len(blocked), own))"""
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert attempt(tmp_path, code).version == "0 1"
