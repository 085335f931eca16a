"""Metrics as text: the Prometheus text format 0.0.4, or OpenMetrics 1.0.0 where the client asks for it.

prometheus_client's own encoders say the same (a test compares them), at several times the CPU, and whole:
here a scrape is made metric by metric, so that the event loop has other things to do in between.
"""

from __future__ import annotations

from typing import Final

from lb.control.rows import Histogram
from lb.metrics.families import FAMILIES, Family
from lb.metrics.sheet import LE, Labels, Page, cumulative

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
EOF: Final = "# EOF\n"  # the last line of OpenMetrics

_OPENMETRICS_VERSIONS: Final = ("", "0.0.1", "1.0.0")
_MAX_ACCEPT: Final = 4096  # characters that are looked at


def wants_openmetrics(accept: str) -> bool:
    """Whether `Accept` (RFC 9110 section 12.5.1) prefers OpenMetrics to text."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in accept[:_MAX_ACCEPT].split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        values = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        if kind in best and (kind == "text/plain" or values.get("version", "") in _OPENMETRICS_VERSIONS):
            best[kind] = max(best[kind], _quality(values.get("q", "1")))
    return (
        best["application/openmetrics-text"] > 0.0
        and best["application/openmetrics-text"] >= best["text/plain"]
    )


def wants_gzip(accept_encoding: str) -> bool:
    """Whether `Accept-Encoding` (RFC 9110 section 12.5.3) names gzip."""
    for item in accept_encoding[:_MAX_ACCEPT].split(","):
        coding, *parameters = (part.strip().lower() for part in item.split(";"))
        values = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        if coding == "gzip":
            return _quality(values.get("q", "1")) > 0.0
    return False


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 <= value <= 1.0 else 0.0


class Encoder:
    """Writes metrics in one format. It remembers what stands before the numbers, so use it again."""

    def __init__(self, *, openmetrics: bool) -> None:
        self.openmetrics = openmetrics
        self._series: dict[tuple[str, Labels], str] = {}
        self._buckets: dict[tuple[str, Labels], tuple[str, ...]] = {}

    def forget(self) -> None:
        """Forgets the labels that were written so far, for when they are others now."""
        self._series.clear()
        self._buckets.clear()

    def encode(self, page: Page) -> str:
        """The metric with its HELP, TYPE and, for OpenMetrics, UNIT."""
        lines = [self._head(page.family)]
        name = page.family.name
        known = self._series
        for labels, value in page.values:
            start = known.get((name, labels)) or self._start(page.family, labels)
            lines.append(f"{start}{float(value)!r}\n")
        for labels, histogram in page.histograms:
            starts = self._buckets.get((name, labels)) or self._bucket_starts(page.family, labels, histogram)
            *buckets, count, total = starts
            observed = 0
            for start, observed in zip(buckets, cumulative(histogram), strict=True):
                lines.append(f"{start}{observed}.0\n")
            lines.append(f"{count}{observed}.0\n{total}{histogram.seconds!r}\n")
        return "".join(lines)

    def _head(self, family: Family) -> str:
        if self.openmetrics:
            name, kind = _openmetrics_name(family)
            unit = f"# UNIT {name} {family.unit}\n" if family.unit else ""
            return f"# HELP {name} {_escape(family.help)}\n# TYPE {name} {kind}\n{unit}"
        word = "gauge" if family.type == "info" else family.type
        return f"# HELP {family.name} {_escape_help(family.help)}\n# TYPE {family.name} {word}\n"

    def _start(self, family: Family, labels: Labels) -> str:
        start = self._series[family.name, labels] = _start(family.name, family.labels, labels)
        return start

    def _bucket_starts(self, family: Family, labels: Labels, histogram: Histogram) -> tuple[str, ...]:
        name = family.name
        starts = self._buckets[name, labels] = (
            *(_start(name + "_bucket", (*family.labels, "le"), (*labels, le)) for le in LE[histogram.bounds]),
            _start(name + "_count", family.labels, labels),
            _start(name + "_sum", family.labels, labels),
        )
        return starts


def _openmetrics_name(family: Family) -> tuple[str, str]:
    """OpenMetrics calls a counter by its name without `_total`. Where that is the name of a gauge already
    (lb_listener_connections), two metrics would have one name: the counter keeps its own, untyped."""
    match family.type:
        case "counter":
            short = family.name.removesuffix("_total")
            return (family.name, "unknown") if short in FAMILIES else (short, "counter")
        case "info":
            return family.name.removesuffix("_info"), "info"
    return family.name, family.type


def _start(name: str, names: Labels, values: Labels) -> str:
    pairs = ",".join(f'{key}="{_escape(value)}"' for key, value in zip(names, values, strict=True))
    return f"{name}{{{pairs}}} " if pairs else f"{name} "


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
