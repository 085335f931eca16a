"""A load balancer under a load of numbered messages, what is done to it, and the proof that nothing is left
of that afterwards."""

from __future__ import annotations

import asyncio
import copy
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lb.demo.load import Account, Load
from tests.harness import processes
from tests.harness.balancer import ROOT, LoadBalancer
from tests.harness.gauges import Gauges
from tests.harness.load import Background, HttpLoad
from tests.harness.ports import free_port
from tests.harness.settings import Tables, settings
from tests.harness.waiting import eventually
from workers.contract.entries import State
from workers.contract.ledger import Ledger

BALANCES = ("round-robin", "least-conn", "p2c", "random")
_GROWTH = 8_000_000  # bytes of its own that a process may have gained: allocators keep what was needed


def tables(load: Load, *, workers: int = 2, **more: Any) -> Tables:
    """A configuration in front of `load`, and of HTTP that its servers answer too. Idle connections to these
    end soon, as they are no leak."""
    pool = {"keep_alive": {"idle": "2s"}, **more.pop("pool", {})}
    process = {"shutdown_timeout": "5s", **more.pop("process", {})}
    return settings(load.addresses, workers=workers, process=process, pool=pool, **more)


class Ordeal:
    """What is done to `lb` while `load` runs. Each of the methods returns when it is done and served."""

    def __init__(self, lb: LoadBalancer, seed: int = 1) -> None:
        self.lb = lb
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._tables = copy.deepcopy(lb.tables)
        self._start = Footprint(lb)

    def serving(self) -> list[dict[str, Any]]:
        """The workers that serve, by slot."""
        workers = [worker for worker in self.lb.status()["workers"] if worker["state"] == "serving"]
        return sorted(workers, key=lambda worker: int(worker["slot"]))

    def wait_serving(self, count: int, without: int = 0) -> None:
        """Waits until `count` workers serve, none of which is the process `without`, and no other is left."""

        def settled() -> bool:
            workers = self.lb.status()["workers"]
            states = [worker["state"] for worker in workers]
            return states == ["serving"] * count and without not in [worker["pid"] for worker in workers]

        eventually(settled, f"{count} workers serve", 30)

    def wait_held(self, tunnels: int) -> None:
        """Waits until the keepers have as many tunnels: all of them would outlive their workers."""

        def held() -> bool:
            return sum(int(worker["tunnels_held"]) for worker in self.lb.status()["workers"]) == tunnels

        eventually(held, f"{tunnels} tunnels are held", 30)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Kills a worker at random; its old pid."""
        workers = self.serving()
        pid = int(self.random.choice(workers)["pid"])
        os.kill(pid, number)
        self.wait_serving(len(workers), without=pid)
        self.done[number.name] += 1
        return pid

    def scale(self, workers: int) -> None:
        """A reload with so many workers."""
        self.lb.tables["process"]["workers"] = workers
        self.lb.reload()
        self.wait_serving(workers)
        self.done["scalings"] += 1

    def reload(self) -> None:
        """A reload that changes something else each time."""
        number = self.done["reloads"]
        pool = self.lb.tables["pool"]["main"]
        pool["balance"] = BALANCES[number % len(BALANCES)]
        self.lb.tables["listen"]["public"]["limits"] = {"connections": 40_000 + number}
        if number % 5 == 4:
            self.lb.tables["listen"]["second"] = {"bind": [f"127.0.0.1:{free_port()}"]}
        else:
            self.lb.tables["listen"].pop("second", None)
        self.lb.reload()
        self.done["reloads"] += 1

    def upgrade(self, *, works: bool = True) -> dict[str, Any]:
        """An upgrade in place; what the master says of it."""
        count = len(self.serving())
        outcome: dict[str, Any] = self.lb.ask("upgrade", timeout=60)["upgrade"]
        assert outcome["ok"] is works, f"{outcome}\n{self.lb.stderr}"
        self.wait_serving(count)
        self.done["upgrades" if works else "upgrades refused"] += 1
        return outcome

    def assert_nothing_is_left(self) -> None:
        """With the configuration of the start again, gauges and ledger are empty, and descriptors and memory
        are those of the start."""
        if self.lb.tables != self._tables:
            self.lb.tables = copy.deepcopy(self._tables)
            self.lb.reload()
            self.wait_serving(int(self._tables["process"]["workers"]))
        AllGauges(self.lb).wait_all_zero()
        eventually(lambda: not ledger_entries(self.lb), "the ledger is empty", 10)
        self._start.wait_again()


def release(folder: Path) -> Path:
    """A copy of the packages in `folder`, to be run from there and changed."""
    for package in ("lb", "workers"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@contextmanager
def broken_release(lb: LoadBalancer) -> Iterator[None]:
    """What is on disk meanwhile can't be imported. `lb` runs a `release`."""
    assert lb.code != ROOT
    module = lb.code / "workers" / "main.py"
    good = module.read_text(encoding="utf-8")
    module.write_text(good + "\nraise ImportError('a broken release')\n", encoding="utf-8")
    try:
        yield
    finally:
        module.write_text(good, encoding="utf-8")


def whole(account: Account) -> None:
    """Asserts that nothing was lost."""
    assert account.whole, account


class AllGauges(Gauges):
    """The gauges of all slots, those that upgrades use too."""

    def __init__(self, lb: LoadBalancer) -> None:
        super().__init__(lb)
        self._workers = self._board.capacity.workers


def ledger_entries(lb: LoadBalancer) -> Counter[str]:
    """How many entries of the ledger are in which state, all slots together; FREE ones left out."""
    found: Counter[str] = Counter()
    with _ledger(lb) as ledger:
        for slot in range(ledger.slots):
            states = ledger.states(slot)
            counts = Counter(states[::2].tolist())
            states.release()
            for state, count in counts.items():
                if state != State.FREE:
                    found[State(state).name] += count
    return found


@contextmanager
def _ledger(lb: LoadBalancer) -> Iterator[Ledger]:
    with processes.memory_of(lb.pid, "lb-ledger") as fd:
        yield Ledger.attach(fd)


class Footprint:
    """Descriptors and memory of each kind of process, as they are now."""

    def __init__(self, lb: LoadBalancer) -> None:
        self._lb = lb
        lb.wait_control()
        self._before = self._measure()

    def _measure(self) -> dict[str, tuple[int, int]]:
        """Descriptors and bytes of the largest process of each kind."""
        status = self._lb.status()
        pids = {"master": [self._lb.pid], "control": [int(status["control_pid"])], "worker": [], "keeper": []}
        for worker in status["workers"]:
            pids["worker"].append(int(worker["pid"]))
            if worker["keeper_pid"]:
                pids["keeper"].append(int(worker["keeper_pid"]))
        return {
            kind: (
                max(_descriptors(pid) for pid in some),
                max(processes.resident_bytes(pid) for pid in some),
            )
            for kind, some in pids.items()
            if some
        }

    def wait_again(self) -> None:
        """Waits until no kind of process has more descriptors, or much more memory, than at the start."""
        now: dict[str, tuple[int, int]] = {}

        def again() -> bool:
            now.clear()
            try:
                now.update(self._measure())
            except FileNotFoundError:  # a process that left meanwhile
                return False
            # Forked anew, a process begins with all that the master had imported by then.
            born_with = self._before["master"][1]
            return all(
                fds <= self._before.get(kind, (fds, 0))[0]
                and (kind not in self._before or size <= max(self._before[kind][1], born_with) + _GROWTH)
                for kind, (fds, size) in now.items()
            )

        try:
            eventually(again, "as at the start", 10)
        except AssertionError:
            raise AssertionError(f"descriptors and bytes were {self._before}, and are {now}") from None


def _descriptors(pid: int) -> int:
    """How many descriptors `pid` has, listening sockets left out: the queue of a slot that is retired is
    served by its siblings, so one for each slot that was ever used stays."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    return sum(target not in listening for target in processes.descriptors(pid).values())


class Http:
    """What HTTP clients saw. A request on a kept connection that crossed its end is sent again by any client
    (RFC 9112 section 9.3.1)."""

    def __init__(self, load: HttpLoad) -> None:
        self._load = load

    @property
    def done(self) -> int:
        """Requests with the right answer."""
        return self._load.done

    @property
    def lost(self) -> list[str]:
        """Requests that failed."""
        return [failure for failure in self._load.failures if "0 bytes read" not in failure]

    @property
    def crossed(self) -> int:
        """Requests that any client would have sent again."""
        return len(self._load.failures) - len(self.lost)


@contextmanager
def http_load(port: int) -> Iterator[Http]:
    """Steady HTTP requests through `port` meanwhile."""
    load = HttpLoad(port, connections=8, pause=0.02)
    with Background() as background:
        running = asyncio.run_coroutine_threadsafe(load.run(), background.loop)
        try:
            yield Http(load)
        finally:
            background.loop.call_soon_threadsafe(load.stop)
            running.result(60)
