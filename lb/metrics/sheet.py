"""The samples of one scrape, by metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import Metric
from prometheus_client.samples import Sample

from lb.control.rows import Histogram
from lb.metrics.families import FAMILIES, Family
from workers.contract.cells import CONNECT_SECONDS, HANDSHAKE_SECONDS, HTTP_SECONDS, TUNNEL_SECONDS

# The labels of the buckets, by their bounds.
_LE: Final[dict[tuple[float, ...], tuple[str, ...]]] = {
    bounds: (*(repr(bound) for bound in bounds), "+Inf")
    for bounds in (HTTP_SECONDS, HANDSHAKE_SECONDS, CONNECT_SECONDS, TUNNEL_SECONDS)
}


class Sheet:
    """Takes figures by the metric's name, and makes prometheus_client's metrics of them."""

    def __init__(self) -> None:
        self._metrics = {name: _metric(family) for name, family in FAMILIES.items()}

    @property
    def metrics(self) -> Iterable[Metric]:
        """All metrics, also those without samples, in the order of the table."""
        return self._metrics.values()

    def add(self, name: str, value: float, *labels: str) -> None:
        """One sample of the metric `name`; the labels' values are in the order of the table."""
        named = dict(zip(FAMILIES[name].labels, labels, strict=True))
        self._metrics[name].samples.append(Sample(name, named, value))

    def add_each(self, name: str, values: Mapping[str, int], *labels: str) -> None:
        """A sample for each of `values`, whose key is the last label."""
        for last, value in values.items():
            self.add(name, value, *labels, last)

    def add_histogram(self, name: str, histogram: Histogram, *labels: str) -> None:
        """A histogram: its buckets, which become cumulative here, its count and its sum."""
        named = dict(zip(FAMILIES[name].labels, labels, strict=True))
        samples = self._metrics[name].samples
        total = 0
        bucket = name + "_bucket"
        for le, total in zip(_LE[histogram.bounds], accumulate(histogram.counts), strict=True):
            samples.append(Sample(bucket, {"le": le, **named}, total))
        samples.append(Sample(name + "_count", named, total))
        samples.append(Sample(name + "_sum", named, histogram.seconds))


def _metric(family: Family) -> Metric:
    """prometheus_client calls a counter by its name without `_total`, an info without `_info`."""
    name = family.name
    if family.type == "counter":
        name = name.removesuffix("_total")
    elif family.type == "info":
        name = name.removesuffix("_info")
    return Metric(name, family.help, family.type, family.unit)
