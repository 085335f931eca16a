"""What a running load balancer says at /metrics."""

from __future__ import annotations

from collections import Counter

from prometheus_client import parser

from tests.harness.balancer import LoadBalancer
from tests.harness.client import Response, fetch

Labels = frozenset[tuple[str, str]]


def probe(lb: LoadBalancer, path: str, timeout: float = 30.0) -> Response:
    """One GET where the metrics are served."""
    host, _, port = lb.tables["metrics"]["listen"].rpartition(":")
    return fetch((host, int(port)), path, timeout=timeout)


class Scrape:
    """One scrape."""

    def __init__(self, lb: LoadBalancer) -> None:
        response = probe(lb, "/metrics")
        assert response.status == 200, response
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in parser.text_string_to_metric_families(response.body.decode())
            for sample in family.samples
        }

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of `name` that have these labels."""
        wanted = frozenset(labels.items())
        return sum(
            value for (sample, found), value in self.samples.items() if sample == name and wanted <= found
        )

    def by(self, name: str, *labels: str) -> Counter[tuple[str, ...]]:
        """The samples of `name` that are not zero, summed over all labels but these."""
        found: Counter[tuple[str, ...]] = Counter()
        for (sample, pairs), value in self.samples.items():
            if sample == name and value:
                values = dict(pairs)
                found[tuple(values[label] for label in labels)] += int(value)
        return found
