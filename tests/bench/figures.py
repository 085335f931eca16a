"""The rounds of a run, asked by workload and proxy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

PEERS: Final = ("nginx", "haproxy")

Row = Mapping[str, Any]
Choose = Callable[[list[float]], float]


class Figures:
    """All rows of a run."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def rows(self, workload: str) -> list[Row]:
        """The rows of a workload."""
        return [row for row in self._rows if row["workload"] == workload]

    def of(self, workload: str, proxy: str, key: str, choose: Choose = statistics.median) -> float | None:
        """The median of a figure, or what else `choose` takes; None where it was not measured."""
        values = [row[key] for row in self.rows(workload) if row["proxy"] == proxy and key in row]
        return choose(values) if values else None

    def better(self, workload: str, key: str, choose: Choose = statistics.median) -> float | None:
        """The better of the peers' figures."""
        found = [value for peer in PEERS if (value := self.of(workload, peer, key, choose)) is not None]
        return min(found, default=None)

    def proxies(self, workload: str) -> list[str]:
        """Who was measured, in the order of the first round."""
        return list(dict.fromkeys(row["proxy"] for row in self.rows(workload)))
