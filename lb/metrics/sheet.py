"""The samples of one scrape, by metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import Metric

from lb.control.rows import Histogram
from lb.metrics.families import FAMILIES, Family
from workers.contract.cells import (
    CONNECT_SECONDS,
    HANDSHAKE_SECONDS,
    HTTP_SECONDS,
    PING_SECONDS,
    TUNNEL_SECONDS,
)

# The labels of the buckets, by their bounds.
LE: Final[dict[tuple[float, ...], tuple[str, ...]]] = {
    bounds: (*(repr(bound) for bound in bounds), "+Inf")
    for bounds in (HTTP_SECONDS, HANDSHAKE_SECONDS, CONNECT_SECONDS, PING_SECONDS, TUNNEL_SECONDS)
}

Labels = tuple[str, ...]


class Page:
    """The samples of one metric, by the values of its labels in the order of the table."""

    __slots__ = ("family", "histograms", "values")

    def __init__(self, family: Family) -> None:
        self.family = family
        self.values: list[tuple[Labels, float]] = []
        self.histograms: list[tuple[Labels, Histogram]] = []


class Sheet:
    """Takes figures by the metric's name."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {name: Page(family) for name, family in FAMILIES.items()}

    def add(self, name: str, value: float, *labels: str) -> None:
        """One sample of the metric `name`."""
        self.pages[name].values.append((labels, value))

    def add_each(self, name: str, values: Mapping[str, int], *labels: str) -> None:
        """A sample for each of `values`, whose key is the last label."""
        page = self.pages[name].values
        for last, value in values.items():
            page.append(((*labels, last), value))

    def add_histogram(self, name: str, histogram: Histogram, *labels: str) -> None:
        """One histogram of the metric `name`."""
        self.pages[name].histograms.append((labels, histogram))

    def metrics(self) -> Iterator[Metric]:
        """prometheus_client's metrics, also those without samples, in the order of the table."""
        for page in self.pages.values():
            yield _metric(page)


def cumulative(histogram: Histogram) -> Iterator[int]:
    """How many observations were at most each bound; the last is how many there were."""
    return accumulate(histogram.counts)


def _metric(page: Page) -> Metric:
    """prometheus_client calls a counter by its name without `_total`, an info without `_info`."""
    family = page.family
    name = family.name
    if family.type in ("counter", "info"):
        name = name.removesuffix("_total").removesuffix("_info")
    metric = Metric(name, family.help, family.type, family.unit)
    for labels, value in page.values:
        metric.add_sample(family.name, dict(zip(family.labels, labels, strict=True)), value)
    for labels, histogram in page.histograms:
        named = dict(zip(family.labels, labels, strict=True))
        counts = tuple(cumulative(histogram))
        for le, count in zip(LE[histogram.bounds], counts, strict=True):
            metric.add_sample(name + "_bucket", {**named, "le": le}, count)
        metric.add_sample(name + "_count", named, counts[-1])
        metric.add_sample(name + "_sum", named, histogram.seconds)
    return metric
