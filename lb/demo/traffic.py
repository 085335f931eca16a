"""A process full of tunnel ends: `python -m lb.demo.traffic`, told what to do on standard input.

Each line there is a JSON object with a `do`; each is answered by a line. The process ends when its standard
input does, so nothing is left over whoever is killed. Tunnels are never opened anew: what breaks stays
broken, and is counted.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from lb.demo.ends import End
from lb.demo.messages import Tally, Terms

TICK: Final = 0.01  # seconds
CONNECTING: Final = 64  # handshakes at a time
_BACKLOG: Final = 1024
_PORTS_PER_ADDRESS: Final = 5_000  # clients from one address of loopback


class Traffic:
    """The ends of this process, on one epoll. `run` serves them until the standard input ends."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._poll = select.epoll()
        self._ends: dict[int, End] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._waiting: collections.deque[tuple[tuple[str, int], Terms]] = collections.deque()
        self._shaking = 0  # clients between connect and the answer
        self._turns: collections.deque[End] = collections.deque()  # whose message is next
        self._slow: list[End] = []
        self._due = 0.0  # messages
        self._closes: list[tuple[float, str]] = []
        self._commands = b""

    # --- for the ends ----------------------------------------------------------------------------

    def watch(self, end: End, events: int) -> None:
        """Asks epoll to tell `end` of `events`."""
        if end.fd in self._ends:
            self._poll.modify(end.fd, events)
        else:
            self._ends[end.fd] = end
            self._poll.register(end.fd, events)

    def opened(self, end: End) -> None:
        """`end` has its tunnel: it takes its turns."""
        self.tally.opened += 1
        self._shaking -= end.side == "c"
        if end.terms.profile != "flood":
            self._turns.append(end)
        if end.slow:
            self._slow.append(end)

    def gone(self, end: End) -> None:
        """`end` is closed next."""
        self._poll.unregister(end.fd)
        del self._ends[end.fd]
        if not end.last:
            self._shaking -= end.side == "c"
        elif end.close_code is not None:
            self._closes.append((time.time(), str(end.close_code)))

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves until the standard input ends."""
        self._poll.register(0, select.EPOLLIN)
        last = time.monotonic()
        while True:
            for fd, events in self._poll.poll(TICK):
                if fd == 0:
                    if not self._on_commands():
                        return
                elif fd in self._listeners:
                    self._accept(self._listeners[fd])
                elif (end := self._ends.get(fd)) is not None:
                    end.on_ready(events)
            now = time.monotonic()
            if now - last >= TICK:
                self._tick(now - last)
                last = now

    def _tick(self, passed: float) -> None:
        while self._waiting and self._shaking < CONNECTING:
            self._connect(*self._waiting.popleft())
        turns = self._turns
        # What was missed while somebody else had the processor is not made up for.
        passed = min(passed, 5 * TICK)
        self._due += passed * len(turns) * (turns[0].terms.rate if turns else 0)
        while self._due >= 1 and turns:
            self._due -= 1
            end = turns.popleft()
            if end.alive and not end.ended:
                turns.append(end)
                end.on_turn()
        for end in self._slow:
            if end.slow:
                end.on_allowance(max(1, int(end.terms.read * passed)))

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                accepted, _ = listener.accept()
                accepted.setblocking(False)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                End(self, accepted, "s", Terms())

    def _connect(self, address: tuple[str, int], terms: Terms) -> None:
        client = socket.socket()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.bind((f"127.0.0.{1 + terms.tunnel // _PORTS_PER_ADDRESS % 250}", 0))
        client.connect_ex(address)
        self._shaking += 1
        End(self, client, "c", terms)

    # --- commands --------------------------------------------------------------------------------

    def _on_commands(self) -> bool:
        data = os.read(0, 65536)
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            fields = json.loads(line)
            act: Callable[..., dict[str, Any]] = getattr(self, f"do_{fields.pop('do')}")
            print(json.dumps(act(**fields)), flush=True)
        return bool(data)

    def do_listen(self, ports: int) -> dict[str, Any]:
        """Serves tunnels on so many free ports of loopback."""
        for _ in range(ports):
            listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._poll.register(listener.fileno(), select.EPOLLIN)
        return {"ports": [listener.getsockname()[1] for listener in self._listeners.values()]}

    def do_open(self, host: str, port: int, first: int, count: int, terms: dict[str, Any]) -> dict[str, Any]:
        """Opens tunnels, with numbers from `first`; `report` says when they are open."""
        common = msgspec.convert(terms, Terms)
        for number in range(first, first + count):
            self._waiting.append(((host, port), msgspec.structs.replace(common, tunnel=number)))
        return {}

    def do_report(self, closes: bool = False) -> dict[str, Any]:
        """What it came to so far. With `closes` also when which Close came."""
        now = time.monotonic()
        ends = [end for end in self._ends.values() if end.last]
        self.tally.longest = max([self.tally.longest, *(end.pause(now) for end in ends)])
        fields = {**self.tally.fields(), "open": len(ends)}
        self.tally.longest = 0.0
        if closes:
            fields["closes"] = self._closes
        return fields

    def do_stop(self) -> dict[str, Any]:
        """No end sends more; each tunnel ends when both ends have all."""
        self._waiting.clear()
        for end in list(self._ends.values()):
            end.on_stop()
        return {}


def main() -> int:
    """Runs until the standard input ends."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.freeze()
    os.set_blocking(0, False)
    Traffic().run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
