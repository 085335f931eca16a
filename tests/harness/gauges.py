"""The scoreboard's gauges as anybody may read them who has its memory: what a leak shows in first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tests.harness import processes
from tests.harness.balancer import LoadBalancer
from tests.harness.waiting import eventually
from workers.contract.cells import PoolCell, RouteCell, ServerCell, WorkerCell
from workers.contract.scoreboard import Scoreboard

ROWS = 16  # as many of each kind are read; a test has fewer


def scoreboard_of(pid: int) -> Scoreboard:
    """The scoreboard of the master `pid`, mapped here, too."""
    with processes.memory_of(pid, "lb-scoreboard") as fd:
        return Scoreboard.attach(fd)


class Gauges:
    """Maps the scoreboard of a running load balancer."""

    def __init__(self, lb: LoadBalancer) -> None:
        self._board = scoreboard_of(lb.pid)
        self._workers = int(lb.tables["process"]["workers"])

    def read(self) -> Counter[str]:
        """Each gauge that is not zero, summed over all workers, routes and servers."""
        found: Counter[str] = Counter()
        for number in range(self._workers):
            slab = self._board.slab(number)
            cells = slab.cells
            for row in range(ROWS):
                route, server = slab.route_base(row), slab.server_base(row)
                found["in_flight"] += cells[route + RouteCell.IN_FLIGHT]
                found["route_tunnels"] += cells[route + RouteCell.TUNNELS]
                found["active"] += cells[server + ServerCell.ACTIVE]
                found["server_tunnels"] += cells[server + ServerCell.TUNNELS]
                # Idle connections to servers are no exchange's: they may stay.
                found["upstreams"] += cells[server + ServerCell.CONNECTIONS] - cells[server + ServerCell.IDLE]
                found["waiting"] += cells[server + ServerCell.WAITING]
                found["queued"] += cells[slab.pool_base(row) + PoolCell.QUEUED]
                found["admission"] += cells[slab.pool_base(row) + PoolCell.ADMISSION_QUEUED]
            found["connections"] += cells[WorkerCell.CONNECTIONS]
            found["tunnels"] += cells[WorkerCell.TUNNELS]
        return Counter({name: value for name, value in found.items() if value})

    def count(self, cell: ServerCell) -> int:
        """The sum of `cell` over all workers and servers."""
        slabs = [self._board.slab(number) for number in range(self._workers)]
        return sum(slab.cells[slab.server_base(row) + cell] for slab in slabs for row in range(ROWS))

    def count_of_pools(self, cell: PoolCell) -> int:
        """The sum of `cell` over all workers and pools."""
        slabs = [self._board.slab(number) for number in range(self._workers)]
        return sum(slab.cells[slab.pool_base(row) + cell] for slab in slabs for row in range(ROWS))

    def wait(self, **expected: int) -> None:
        """Waits until the gauges named are as `expected`."""
        self._wait(lambda found: all(found[name] == value for name, value in expected.items()), str(expected))

    def wait_all_zero(self) -> None:
        """Waits until no exchange, tunnel or connection is left anywhere."""
        self._wait(lambda found: not found, "all zero")

    def _wait(self, condition: Callable[[Counter[str]], bool], what: str) -> None:
        try:
            eventually(lambda: condition(self.read()), what)
        except AssertionError:
            raise AssertionError(f"the gauges should be {what}, and are {dict(self.read())}") from None
