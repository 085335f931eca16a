"""Many tunnels through a load balancer, with their clients and servers in processes of their own."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Final

import msgspec

from lb.demo.messages import Tally, Terms

TRAFFIC: Final = "lb.demo.traffic"
_ANSWER: Final = 15.0  # seconds
_LEAVE: Final = 3.0


class LoadError(Exception):
    """A process of the load broke, or a tunnel was not there in time."""


class Crew:
    """One process of `lb.demo.traffic`, or of another module that takes the same commands."""

    def __init__(self, module: str = TRAFFIC) -> None:
        # A session of its own: Ctrl-C in the terminal is not for the load. What goes wrong there is said on
        # standard error, which is this process's.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Sends a command and waits for the answer. Raises `LoadError`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LoadError("a process of the load has ended") from None
        readable, _, _ = select.select([self._process.stdout], [], [], _ANSWER)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            raise LoadError(f"a process of the load did not answer {do!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_LEAVE)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Account(msgspec.Struct, frozen=True):
    """What the load came to. `open` are tunnels that are open now, `pending` messages that were sent and have
    not come yet, `longest` the longest that a message was overdue since the last look, in seconds."""

    tunnels: int
    open: int
    sent: int
    received: int
    received_bytes: int
    pending: int
    lost: int
    duplicated: int
    corrupt: int
    refused: int
    finished: int
    closed: dict[str, int]
    longest: float

    @property
    def whole(self) -> bool:
        """Whether every tunnel that was asked for is open or ended when told, and no message was lost,
        repeated or altered."""
        wrong = self.lost + self.duplicated + self.corrupt + self.refused + sum(self.closed.values())
        ended = self.open or not self.pending
        return not wrong and bool(ended) and self.open + self.finished == self.tunnels

    def __str__(self) -> str:
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(self.closed.items()))
        return (
            f"{self.tunnels:,} tunnels ({self.open:,} open, {self.finished:,} ended when told,"
            f" {sum(self.closed.values())} closed early{f': {codes}' if codes else ''},"
            f" {self.refused} refused, 0 reconnects),"
            f" {self.received:,} messages, {self.received_bytes / 1e6:,.1f} MB:"
            f" {self.lost} lost, {self.duplicated} duplicated, {self.corrupt} corrupt"
        )


class Load:
    """Clients and servers; `clients` and `serving` are the modules that run. `open` tunnels, look at the
    `account`, and `stop`: then every tunnel ends, both of its ends having said that they have all."""

    def __init__(self, servers: int = 2, *, clients: str = TRAFFIC, serving: str = TRAFFIC) -> None:
        self.clients, self.servers = Crew(clients), Crew(serving)
        self.ports: list[int] = self.servers.ask("listen", ports=servers)["ports"]
        self.tunnels = 0

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; tunnels that are open break."""
        self.clients.close()
        self.servers.close()

    @property
    def addresses(self) -> list[str]:
        """Where the servers listen."""
        return [f"127.0.0.1:{port}" for port in self.ports]

    def open(self, port: int, count: int, terms: Terms | None = None, *, within: float = 30.0) -> None:
        """Opens `count` tunnels through 127.0.0.1:`port` and waits for them. Raises `LoadError`."""
        self.start(port, count, terms)
        deadline = time.monotonic() + within
        while (now := self.account()).open < self.tunnels:
            if now.refused or now.closed or time.monotonic() > deadline:
                raise LoadError(f"not all tunnels could be opened: {now}")
            time.sleep(0.05)

    def start(self, port: int, count: int, terms: Terms | None = None) -> None:
        """Begins to open `count` tunnels. All paced tunnels of a load have the rate of the first."""
        self.clients.ask(
            "open",
            host="127.0.0.1",
            port=port,
            first=self.tunnels,
            count=count,
            terms=msgspec.to_builtins(terms or Terms()),
        )
        self.tunnels += count

    def account(self) -> Account:
        """What it came to so far."""
        ours, theirs = self.clients.ask("report"), self.servers.ask("report")
        open_now: int = ours.pop("open")
        theirs.pop("open")
        clients, servers = Tally.of(ours), Tally.of(theirs)
        both = Tally().add(clients).add(servers)
        # Both ends notice that a tunnel broke, each in its way, and perhaps not at once.
        closed = max(clients.closed, servers.closed, key=lambda counter: counter.total())
        return Account(
            tunnels=self.tunnels,
            open=open_now,
            sent=both.sent,
            received=both.received,
            received_bytes=both.received_bytes,
            pending=both.sent - both.received,
            lost=both.lost,
            duplicated=both.duplicated,
            corrupt=both.corrupt,
            refused=clients.refused,
            finished=min(clients.finished, servers.finished),
            closed=closed,
            longest=both.longest,
        )

    def closes(self) -> list[tuple[float, str]]:
        """When (Unix time) clients got which Close code."""
        found = self.clients.ask("report", closes=True)["closes"]
        return [(at, code) for at, code in found]

    def stop(self, within: float = 60.0) -> Account:
        """Ends all traffic exactly: waits until both ends of every tunnel have seen all that was sent, and
        returns the last account. Raises `LoadError` where tunnels don't come to their end."""
        self.clients.ask("stop")
        self.servers.ask("stop")
        deadline = time.monotonic() + within
        while True:
            now = self.account()
            if not now.open and (now.finished + sum(now.closed.values()) >= self.tunnels - now.refused):
                return now
            if time.monotonic() > deadline:
                raise LoadError(f"tunnels don't end: {now}")
            time.sleep(0.05)
