"""The real `lb run` as a test drives it: configuration, readiness, reload, status, orderly end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lb.master import places
from tests.harness import processes
from tests.harness.client import Address, fetch
from tests.harness.settings import Tables
from tests.harness.toml import dumps
from tests.harness.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
_MARK = "SHARDLB_TEST_RUN"


class LoadBalancer:
    """One running load balancer in a folder of its own.

    `stop` (also through the `balancer` fixture) asserts an orderly end: exit status 0, no traceback, no
    fault of a worker (which costs a connection, and nobody else notices), no process left over.
    """

    def __init__(
        self,
        folder: Path,
        tables: Tables,
        *,
        file_limit: int | None = None,
        code: Path = ROOT,
        program: Sequence[str] = (sys.executable, "-m", "lb"),
    ) -> None:
        """`program` is what the operator calls `lb`."""
        self.folder = folder
        self.code = code  # the folder of the packages that it runs
        self.tables = tables
        self.file = folder / "lb.toml"
        self.stderr_file = folder / "stderr.log"
        self.access_file = folder / "access.log"
        # Socket paths end at 107 bytes, and pytest's folders can be longer.
        self._sockets = Path(tempfile.mkdtemp(prefix="lb-"))
        self._mark = uuid.uuid4().hex
        self._environment = {**os.environ, _MARK: self._mark, "PYTHONPATH": str(code)}
        self._file_limit = file_limit
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self.stopped = False
        self.faulty = False  # whether faults of workers belong to the test

    # --- the configuration -----------------------------------------------------------------------

    def write(self) -> None:
        """Writes `tables` to the file; nothing is reloaded."""
        self.tables["process"].setdefault("pid_file", f"{self._sockets}/lb.pid")
        self.tables.setdefault("access_log", {"path": str(self.access_file)})
        self.file.write_text(dumps(self.tables), encoding="utf-8")

    @property
    def address(self) -> Address:
        """Where the listener `public` listens first."""
        return self.address_of("public")

    def address_of(self, listener: str) -> Address:
        """Where `listener` listens first."""
        bind: str = self.tables["listen"][listener]["bind"][0]
        if bind.startswith("unix:"):
            return bind.removeprefix("unix:")
        host, _, port = bind.rpartition(":")
        return host.strip("[]") or "127.0.0.1", int(port)

    @property
    def port(self) -> int:
        """The TCP port of the listener `public`."""
        return int(self.tables["listen"]["public"]["bind"][0].rpartition(":")[2])

    @property
    def metrics_url(self) -> str:
        """http://host:port of the metrics; they are served there from `wait_control` on."""
        return f"http://{self.tables['metrics']['listen']}"

    @property
    def metrics_address(self) -> tuple[str, int]:
        """Host and port of the metrics."""
        host, _, port = self.tables["metrics"]["listen"].rpartition(":")
        return host, int(port)

    @property
    def admin_path(self) -> str:
        """Path of the admin API's Unix socket, where `[admin]` doesn't say otherwise."""
        command = places.beside_pid_file(Path(self.tables["process"]["pid_file"]))
        return str(places.admin_beside(command))

    # --- the process -----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The master's."""
        assert self._process is not None
        return self._process.pid

    def start(self, within: float = 60.0) -> LoadBalancer:
        """Starts `lb run` and waits until it says READY=1 to its supervisor."""
        self.write()
        path = f"{self._sockets}/notify-{uuid.uuid4().hex[:8]}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(path)
            notify.settimeout(0.1)
            self._spawn({**self._environment, "NOTIFY_SOCKET": path})
            deadline = time.monotonic() + within
            while not self._said_ready(notify):
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise AssertionError(f"lb did not become ready:\n{self.stderr}")
        self.stopped = False
        return self

    def _spawn(self, environment: dict[str, str]) -> None:
        command = [*self._program, "run", "-c", str(self.file)]
        if self._file_limit is not None:
            command = ["prlimit", f"--nofile={self._file_limit}:{self._file_limit}", *command]
        with self.stderr_file.open("ab") as stderr, (self.folder / "stdout.log").open("ab") as stdout:
            self._process = subprocess.Popen(
                command,
                stderr=stderr,
                stdout=stdout,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=self.code,
            )

    @staticmethod
    def _said_ready(notify: socket.socket) -> bool:
        try:
            return b"READY=1" in notify.recv(4096).split(b"\n")
        except TimeoutError:
            return False

    def worker_pids(self) -> list[int]:
        """Pids of the workers, by slot."""
        workers = self.status()["workers"]
        return [int(worker["pid"]) for worker in sorted(workers, key=lambda worker: int(worker["slot"]))]

    @property
    def control_pid(self) -> int:
        """Pid of the control process; 0 while there is none."""
        return int(self.status()["control_pid"])

    def wait_control(self, old: int = 0, within: float = 30.0) -> int:
        """Waits for a control process other than `old` that serves, and returns its pid."""

        def fresh() -> int:
            pid = self.control_pid
            serves = f'event="control process serves" pid={pid}\n' in self.stderr
            return pid if pid != old and serves else 0

        return eventually(fresh, "a control process serves", within)

    def kill_worker(self, slot: int = 0) -> int:
        """Kills the worker in `slot` with SIGKILL and returns the pid that it had."""
        pid = self.worker_pids()[slot]
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_master(self) -> list[int]:
        """Kills the master alone, with SIGKILL; the pids of what it leaves behind."""
        assert self._process is not None
        left = [pid for pid in self.leftovers() if pid != self.pid]
        self._process.kill()
        self._process.wait(10)
        return left

    def wait_replaced(self, slot: int, old: int, within: float = 30.0) -> int:
        """Waits until `slot` has a pid other than `old`, and returns it."""

        def fresh() -> int:
            pids = self.worker_pids()
            return pids[slot] if len(pids) > slot and pids[slot] not in (0, old) else 0

        return eventually(fresh, f"worker {slot} is replaced", within)

    def descriptors(self, pid: int) -> dict[int, str]:
        """The open descriptors of `pid`."""
        return processes.descriptors(pid)

    # --- commands --------------------------------------------------------------------------------

    def command(self, *arguments: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs `lb` with `arguments` and captures what it prints."""
        return subprocess.run(
            [*self._program, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self._environment,
            cwd=self.code,
            check=False,
        )

    def ask(self, command: str, timeout: float = 30.0) -> dict[str, Any]:
        """Sends `command` to the command socket, as `lb` does, without the start of another Python."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(places.beside_pid_file(Path(self.tables["process"]["pid_file"]))))
            connection.sendall(json.dumps({"command": command}).encode() + b"\n")
            received = b""
            while data := connection.recv(65536):
                received += data
        reply: dict[str, Any] = json.loads(received)
        assert not reply.get("error"), reply
        return reply

    def admin(self, path: str, *, method: str = "GET", body: object = None, status: int = 200) -> Any:
        """The decoded answer of the admin API below /api/v1/; asserts its status."""
        response = fetch(
            self.admin_path,
            f"/api/v1/{path}",
            method=method,
            host="localhost",
            headers={} if method == "GET" else {"Content-Type": "application/json"},
            body=None if body is None else json.dumps(body).encode(),
        )
        assert response.status == status, response
        return json.loads(response.body)

    def reload(self, *, check: bool = True) -> dict[str, Any]:
        """Writes `tables`, reloads and returns the outcome; asserts success, or failure if not `check`."""
        self.write()
        outcome: dict[str, Any] = self.ask("reload")["outcome"]
        assert outcome["ok"] is check, f"{outcome}\n{self.stderr}"
        return outcome

    def status(self) -> dict[str, Any]:
        """What `lb status --json` prints."""
        report: dict[str, Any] = self.ask("status")["status"]
        return report

    def send_signal(self, number: signal.Signals) -> None:
        """Sends `number` to the master."""
        os.kill(self.pid, number)

    # --- logs ------------------------------------------------------------------------------------

    @property
    def stderr(self) -> str:
        """All that the processes wrote to stderr so far."""
        return self.stderr_file.read_text(encoding="utf-8") if self.stderr_file.exists() else ""

    def access_lines(self) -> list[dict[str, Any]]:
        """The complete lines of the JSON access log."""
        if not self.access_file.exists():
            return []
        text = self.access_file.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in complete.splitlines()]

    def wait_access(self, count: int = 1, within: float = 30.0, **fields: object) -> list[dict[str, Any]]:
        """Waits for `count` access log lines that have all of `fields`, and returns them."""

        def matching() -> list[dict[str, Any]]:
            lines = [line for line in self.access_lines() if all(line.get(k) == v for k, v in fields.items())]
            return lines if len(lines) >= count else []

        return eventually(matching, f"{count} access log lines with {fields}", within)

    # --- the end ---------------------------------------------------------------------------------

    def leftovers(self) -> list[int]:
        """Pids of every process of this load balancer, found by a mark in the environment."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0") and processes.alive(int(entry.name)):
                found.append(int(entry.name))
        return found

    def stop(self, *, number: signal.Signals = signal.SIGTERM, within: float = 30.0) -> None:
        """Ends the load balancer by `number` and asserts that all of it ended in order."""
        if self.stopped or self._process is None:
            return
        self.stopped = True
        try:
            if self._process.poll() is None:
                self._process.send_signal(number)
            try:
                status = self._process.wait(within)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"lb did not stop within {within:g} s:\n{self.stderr}") from None
            assert status == 0, f"lb ended with {status}:\n{self.stderr}"
            assert "Traceback" not in self.stderr, self.stderr
            assert self.faulty or "fault in the worker" not in self.stderr, self.stderr
            eventually(lambda: not self.leftovers(), "no process is left over")
        finally:
            self.kill()

    @contextlib.contextmanager
    def running(self) -> Iterator[LoadBalancer]:
        """Starts, and stops with all assertions at the end of the block."""
        self.start()
        try:
            yield self
            self.stop()
        finally:
            self.kill()
            self.remove_sockets()

    def kill(self) -> None:
        """Kills whatever of this load balancer still runs."""
        for pid in self.leftovers():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self._process is not None:
            self._process.wait(10)

    def remove_sockets(self) -> None:
        """Removes the folder of the command socket."""
        shutil.rmtree(self._sockets, ignore_errors=True)
