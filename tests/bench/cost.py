"""What a tree of processes costs: CPU time to the nanosecond, and memory."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tests.harness.processes import children

_TICK = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """`root` and all its descendants that run."""
    found = [root]
    for pid in found:
        found += children(pid)
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU time of all threads of `pid`, also ended ones (clock_getcpuclockid(3)); 0: it's gone."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def memory(pids: list[int]) -> int:
    """Proportional set size of all, in bytes: memory that several share is counted once."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found = re.search(r"^Pss:\s*([0-9]+) kB", text, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total


@dataclass(frozen=True)
class Spent:
    """CPU seconds of a tree between two moments."""

    total: float
    user: float  # of `total`, as far as the kernel's ticks tell
    seconds: float  # that passed
    used: float  # share of the proxy's cores that was used, by anybody
    cores: int

    @property
    def share(self) -> float:
        """Share of the proxy's cores that it used itself."""
        return self.total / self.seconds / self.cores

    @property
    def foreign(self) -> float:
        """Share of the proxy's cores that others used."""
        return max(0.0, self.used - self.share)


class Meter:
    """Measures from its making on."""

    def __init__(self, root: int, cores: set[int]) -> None:
        self._root = root
        self._cores = cores
        self._began = time.perf_counter()
        self._before = self._look()
        self._core = self._busy()

    def _look(self) -> dict[int, tuple[float, float]]:
        return {pid: (cpu(pid), _user(pid)) for pid in tree(self._root)}

    def _busy(self) -> float:
        """Seconds that the proxy's cores were not idle."""
        total = 0.0
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._cores:
                times = [int(field) for field in fields[:8]]
                total += (sum(times) - times[3] - times[4]) / _TICK
        return total

    def read(self) -> Spent:
        """What was spent since."""
        seconds = time.perf_counter() - self._began
        after = self._look()
        zero = (0.0, 0.0)
        total = sum(spent - self._before.get(pid, zero)[0] for pid, (spent, _) in after.items())
        user = sum(spent - self._before.get(pid, zero)[1] for pid, (_, spent) in after.items())
        cores = max(1, len(self._cores))
        used = (self._busy() - self._core) / cores / seconds
        return Spent(total, min(user, total), seconds, used, cores)


def _user(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(text[text.rindex(")") + 2 :].split()[11]) / _TICK


def wait_quiet(root: int, within: float = 3.0) -> None:
    """Waits until the tree rests: what earlier load left behind is done."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        before = {pid: cpu(pid) for pid in tree(root)}
        time.sleep(0.08)
        if sum(cpu(pid) - spent for pid, spent in before.items()) < 0.004:
            return
