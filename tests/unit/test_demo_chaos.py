"""`lb demo chaos`: what it shows, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from lb.demo.load import Account
from lb.demo.picture import Picture, Second, line
from lb.demo.stage import Stage, StageError
from lb.master.report import WorkerReport
from tests.harness import processes
from tests.harness.waiting import eventually

ROOT = Path(__file__).parents[2]
_MARK = "SHARDLB_TEST_RUN"


def account(**changes: int | dict[str, int] | float) -> Account:
    fields: dict[str, object] = dict.fromkeys(Account.__struct_fields__, 0)
    fields |= {"closed": {}, "longest": 0.0, "tunnels": 20, "open": 20} | changes
    return Account(**fields)  # type: ignore[arg-type]


def second(now: Account, at: float = 5.0) -> Second:
    worker = WorkerReport(
        slot=1,
        pid=4711,
        state="serving",
        uptime=3.0,
        generation=1,
        connections=20,
        tunnels=20,
        accepted=20,
        requests=20,
        heartbeat_age=0.1,
        listening_sockets=1,
    )
    return Second(at, now, 400.0, 0.25, [worker])


def drawn(picture: Picture, shown: Second, width: int, height: int) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, record=True, highlight=False)
    console.print(picture.draw(shown, width, height))
    return console.export_text()


def test_a_second_is_a_line() -> None:
    assert line(second(account()), "kill -9 worker 1 (pid 4711, 20 tunnels)") == (
        "    5s     20 open      400 msg/s  0 lost  0 duplicated    250 ms longest pause"
        "  kill -9 worker 1 (pid 4711, 20 tunnels)"
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 6), (200, 60), (20, 1)])
def test_the_picture_fits(width: int, height: int) -> None:
    picture = Picture(60.0)
    for at in range(200):
        picture.add(second(account(), float(at)), ["kill -9 worker 1 (pid 4711, 20 tunnels)"])
    lines = drawn(picture, second(account()), width, height).rstrip("\n").split("\n")
    assert len(lines) <= height
    assert all(len(one) <= width for one in lines)


def test_the_picture_says_what_is() -> None:
    picture = Picture(60.0)
    shown = second(account(open=18, lost=3, closed={"reset": 2}, received=1_234_567))
    picture.add(shown, ["lb upgrade", "lb upgrade failed: why"])
    text = drawn(picture, shown, 120, 30)
    assert "18 of 20 tunnels open   3 lost   0 duplicated   0 corrupt   2 closed" in text
    assert "400 messages/s   1.2M messages" in text
    assert "worker 1   pid 4711    serving" in text
    assert "5s  lb upgrade failed: why" in text


def test_what_does_not_start_is_told() -> None:
    with (
        Stage(["nonsense"]) as stage,
        pytest.raises(StageError, match="the load balancer ended with 1") as error,
    ):
        stage.start()
    assert "nonsense" in str(error.value)
    assert not stage.file.parent.exists()


@contextmanager
def shown(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo that runs; and the mark of its processes."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "lb", "demo", "chaos", "--tunnels", "20", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, _MARK: mark},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield process, mark
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        process.stdout.close()
    eventually(lambda: not left(mark), "nothing is left over", 20)


def left(mark: str) -> list[str]:
    """What still runs of a demo."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{_MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found += [entry.name] if processes.alive(int(entry.name)) else []
        except OSError:
            continue
    return found


def test_it_kills_and_nothing_is_lost() -> None:
    with shown("--for", "6s") as (process, _):
        text, _ = process.communicate(timeout=90)
    assert process.returncode == 0, text
    assert "kill -9 worker " in text
    assert " 20 open " in text
    assert "20 ended when told, 0 closed early" in text
    assert text.endswith("nothing was lost\n")


def first_line(process: subprocess.Popen[str]) -> None:
    """Waits until the demo shows something."""
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    while " open " not in (text := process.stdout.readline()):
        assert text and time.monotonic() < deadline


def test_ctrl_c_ends_it_with_a_summary() -> None:
    with shown("--for", "1h") as (process, _):
        first_line(process)
        os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert text.endswith("nothing was lost\n")
    assert "Traceback" not in text


def test_a_reader_that_has_enough_ends_it() -> None:
    with shown("--for", "1h") as (process, _):
        first_line(process)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 0


def test_a_demo_that_is_killed_leaves_nothing() -> None:
    with shown("--for", "1h") as (process, mark):
        first_line(process)
        assert len(left(mark)) > 5
        process.kill()
