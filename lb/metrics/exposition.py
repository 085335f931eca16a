"""Metrics as text: the Prometheus text format 0.0.4, or OpenMetrics 1.0.0 where the client asks for it.

prometheus_client's own encoders say the same (a test compares them), at several times the CPU, and whole:
here a scrape is made metric by metric, so that the event loop has other things to do in between.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Metric
from prometheus_client.samples import Sample

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
    """Writes metrics in one format."""

    def __init__(self, *, openmetrics: bool) -> None:
        self.openmetrics = openmetrics
        self._gauges: set[str] = set()
        self._labels: dict[tuple[str, str], str] = {}

    def encode(self, metric: Metric) -> str:
        """`metric` with its HELP, TYPE and, for OpenMetrics, UNIT."""
        lines = [self._head(metric)]
        lines.extend(map(self._sample, metric.samples))
        return "".join(lines)

    def _head(self, metric: Metric) -> str:
        text = _escape(metric.documentation) if self.openmetrics else _escape_help(metric.documentation)
        if self.openmetrics:
            name, kind = self._openmetrics_name(metric)
            unit = f"# UNIT {name} {metric.unit}\n" if metric.unit else ""
            return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{unit}"
        name, kind = metric.name, metric.type
        if kind == "counter":
            name += "_total"
        elif kind == "info":
            name, kind = name + "_info", "gauge"
        return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"

    def _openmetrics_name(self, metric: Metric) -> tuple[str, str]:
        """OpenMetrics calls a counter by its name without `_total`; where that is the name of a gauge already
        (lb_listener_connections), two metrics would have one name: the counter keeps its own, untyped."""
        if metric.type == "gauge":
            self._gauges.add(metric.name)
        if metric.type == "counter" and metric.name in self._gauges:
            return metric.name + "_total", "unknown"
        return metric.name, metric.type

    def _sample(self, sample: Sample) -> str:
        number = repr(float(sample.value))
        labels = sample.labels
        if not labels:
            return f"{sample.name} {number}\n"
        known = self._labels
        text = ",".join([known.get(pair) or self._label(pair) for pair in sorted(labels.items())])
        return f"{sample.name}{{{text}}} {number}\n"

    def _label(self, pair: tuple[str, str]) -> str:
        name, value = pair
        text = self._labels[pair] = f'{name}="{_escape(value)}"'
        return text


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
