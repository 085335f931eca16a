"""A private load balancer for `lb demo chaos`: free ports of loopback, a folder of its own, and what is done
to it."""

from __future__ import annotations

import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from lb.cli.client import Unreachable, ask
from lb.master.report import Request, StatusReport, WorkerReport

MOST_WORKERS: Final = 3
_START: Final = 20.0  # seconds
_STOP: Final = 15.0
_ANSWER: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_BALANCES: Final = ("least-conn", "round-robin", "p2c", "random")
_CONFIG: Final = """\
# Written by lb demo chaos, and removed at its end.
[process]
workers = {workers}
pid_file = "lb.pid"
shutdown_timeout = "5s"
[listen.public]
bind = ["127.0.0.1:{port}"]
[metrics]
listen = "127.0.0.1:{metrics}"
[access_log]
path = "off"
[[route]]
pool = "demo"
[pool.demo]
servers = [{servers}]
balance = "{balance}"
"""


class StageError(Exception):
    """The load balancer of the demo does not run; `str()` is for the user."""


class Stage:
    """`lb run` over `servers`, from `start` to `close`."""

    def __init__(self, servers: Sequence[str]) -> None:
        self._servers = servers
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="lb-chaos-"))
        self.file = self._folder / "lb.toml"
        self._errors = self._folder / "errors"
        self.port, self._metrics = _free_ports(2)
        self._reloads = 0
        self.workers = 2
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: StatusReport | None = None

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The master's."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it serves. Raises `StageError`."""
        self._write()
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lb", "run", "-c", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + _START
        while len(self.serving()) < self.workers:
            self.require_alive()
            if time.monotonic() > deadline:
                raise StageError(f"the load balancer does not serve within {_START:g} s:\n{self._said()}")
            time.sleep(0.05)

    def require_alive(self) -> None:
        """Raises `StageError` where the load balancer has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise StageError(f"the load balancer ended with {self._process.returncode}:\n{self._said()}")

    def _said(self) -> str:
        return self._errors.read_text("utf-8", "replace")[-2000:]

    def close(self) -> None:
        """Ends it, and removes its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- what is seen ----------------------------------------------------------------------------

    def status(self) -> StatusReport | None:
        """What `lb status` says; while nobody answers (an upgrade is at that point) what it last said."""
        try:
            reply = ask(Request(command="status"), self.file, None, _ANSWER)
        except Unreachable:
            return self._seen
        self._seen = reply.status or self._seen
        return self._seen

    def serving(self) -> list[WorkerReport]:
        """The workers that serve."""
        status = self.status()
        return [worker for worker in status.workers if worker.state == "serving"] if status else []

    # --- what is done ----------------------------------------------------------------------------

    def kill(self, worker: WorkerReport) -> None:
        """kill -9."""
        os.kill(worker.pid, signal.SIGKILL)

    def resize(self, more: bool) -> None:
        """One worker more, or fewer; also in the file, which a reload or an upgrade reads."""
        self.workers += 1 if more else -1
        self._write()
        os.kill(self.pid, signal.SIGTTIN if more else signal.SIGTTOU)

    def reload(self) -> subprocess.Popen[bytes]:
        """Changes the configuration and runs `lb reload`."""
        self._reloads += 1
        self._write()
        return self.command("reload")

    def command(self, name: str) -> subprocess.Popen[bytes]:
        """Runs `lb NAME` as anybody would."""
        return subprocess.Popen(
            [sys.executable, "-m", "lb", name, "-c", str(self.file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def balance(self) -> str:
        """The balance that the file names now."""
        return _BALANCES[self._reloads % len(_BALANCES)]

    def _write(self) -> None:
        servers = ", ".join(f'"{address}"' for address in self._servers)
        text = _CONFIG.format(
            workers=self.workers,
            port=self.port,
            metrics=self._metrics,
            servers=servers,
            balance=self.balance,
        )
        self.file.write_text(text, encoding="utf-8")


def _free_ports(count: int) -> list[int]:
    """So many TCP ports of loopback that nobody has bound."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


_prctl: Callable[..., int] = ctypes.CDLL(None).prctl


def _end_with_parent() -> None:
    """The load balancer of a demo that is killed shall not run on."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
