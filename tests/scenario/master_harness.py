"""Starts masters over stand-in workers, waits for conditions, and ends what it started by its pid."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from lb.cli.client import ask
from lb.master.report import Outcome, Request, StatusReport

Value = TypeVar("Value")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def eventually(condition: Callable[[], Value | None], what: str, deadline: float = 30.0) -> Value:
    """The first true value of `condition`; fails when there is none within `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g}s: {what}")
        time.sleep(0.01)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


class Instance:
    """One load balancer over stand-ins in `folder`, with the pid file that keeps it apart from others."""

    def __init__(self, folder: pathlib.Path, *, workers: int = 2, prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.config = folder / "lb.toml"
        self.port = free_port()
        self.workers = workers
        self.prefix = tuple(prefix)
        self.arguments: tuple[str, ...] = ("-m", "tests.scenario.standin")
        self.binds = [f"127.0.0.1:{self.port}"]
        self.process_keys: dict[str, object] = {}
        self.extra = ""
        self.pool = ""
        self.server = "127.0.0.1:9"
        self.error_path = folder / "stderr"
        self.output_path = folder / "stdout"
        self.seen: set[int] = set()
        self.master: subprocess.Popen[bytes] | None = None

    # --- configuration ---------------------------------------------------------------------------------

    def write(self) -> None:
        """Writes the configuration as the attributes say."""
        keys = {"workers": self.workers, "pid_file": "lb.pid", **self.process_keys}
        process = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        text = f"[process]\n{process}[listen.public]\nbind = {json.dumps(self.binds)}\n{self.extra}\n"
        text += (
            f'[[route]]\nname = "all"\npool = "web"\n[pool.web]\nservers = ["{self.server}"]\n{self.pool}\n'
        )
        replacement = self.folder / "lb.toml.new"
        replacement.write_text(text)
        replacement.rename(self.config)

    # --- life ------------------------------------------------------------------------------------------

    def launch(self, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts the master without waiting for it."""
        command = [*self.prefix, sys.executable, *self.arguments, str(self.config)]
        with self.error_path.open("wb") as error, self.output_path.open("wb") as output:
            self.master = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error,
                start_new_session=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
            )
        return self.master

    def start(self, environment: dict[str, str] | None = None) -> Instance:
        """Writes, launches and waits until it is ready."""
        self.write()
        self.launch(environment)
        eventually(lambda: "ready: " in self.errors or self.exited, f"ready\n{self.errors}")
        assert not self.exited, self.errors
        self.status()
        return self

    def fail(self, environment: dict[str, str] | None = None) -> int:
        """Writes and launches what can't start; returns the exit code."""
        self.write()
        return self.launch(environment).wait(20)

    @property
    def exited(self) -> bool:
        return self.master is None or self.master.poll() is not None

    @property
    def errors(self) -> str:
        return self.error_path.read_text() if self.error_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.master is not None
        return self.master.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, deadline: float = 30.0) -> int:
        """Waits for the master's end."""
        assert self.master is not None
        return self.master.wait(deadline)

    def clean_up(self) -> None:
        """Ends the master and every worker that was seen."""
        if self.master is not None:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                self.seen |= children(self.master.pid)
            if self.master.poll() is None:
                self.master.kill()
            self.master.wait(10)
        for pid in self.seen:
            if alive(pid) and os.fsencode(self.config) in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    # --- asking ----------------------------------------------------------------------------------------

    def status(self) -> StatusReport:
        """`lb status`."""
        report = ask(Request(command="status"), self.config, None).status
        assert report is not None
        self.seen |= {worker.pid for worker in report.workers}
        return report

    def reload(self) -> Outcome:
        """`lb reload`, which waits for the outcome."""
        outcome = ask(Request(command="reload"), self.config, None).outcome
        assert outcome is not None
        return outcome

    def pids(self) -> dict[int, int]:
        """Worker pids by slot, of those that serve."""
        return {worker.slot: worker.pid for worker in self.status().workers if worker.state == "serving"}

    def ask(self, port: int | None = None) -> dict[str, Any]:
        """One connection's answer."""
        with socket.create_connection(("127.0.0.1", port or self.port), 5) as connection:
            return answer(connection)


def children(pid: int) -> set[int]:
    """The children of `pid`."""
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return set(map(int, text.split()))


def answer(connection: socket.socket) -> dict[str, Any]:
    """What a stand-in says on `connection`."""
    connection.settimeout(10)
    with connection.makefile("rb") as file:
        line = file.readline()
    assert line, "closed without an answer"
    value: dict[str, Any] = json.loads(line)
    return value


@contextlib.contextmanager
def queued(port: int, count: int = 40) -> Iterator[list[socket.socket]]:
    """`count` connections that nobody has accepted yet (the stand-ins are told to be slow)."""
    connections = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def flag(instance: Instance, name: str) -> Iterator[None]:
    """The stand-ins are told `name` inside."""
    path = instance.folder / name
    path.touch()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
