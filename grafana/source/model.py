"""The parts of a Grafana dashboard: queries, panels, rows and variables, as the JSON model of Grafana 10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

Json = dict[str, Any]
Thresholds = Sequence[tuple[float | None, str]]  # from which value on, which colour; the first from None

DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS: Final = 24
STAT_HEIGHT: Final = 4
GRAPH_HEIGHT: Final = 8
SCHEMA: Final = 38  # Grafana 10.0's; later versions migrate it when they load it

GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"
NEUTRAL: Final[Thresholds] = ((None, "text"),)
NONE_IS_GOOD: Final[Thresholds] = ((None, GREEN), (1, RED))  # for counts of what must not be
ERRORS: Final[Thresholds] = ((None, GREEN), (0.01, YELLOW), (0.05, RED))  # for shares that failed


class Query(NamedTuple):
    """One PromQL query. `legend` names its series, `{{label}}` stands for a label's value."""

    expression: str
    legend: str = ""
    instant: bool = False
    format: str = "time_series"


class Panel(NamedTuple):
    """A panel without its place; `body` is what goes into the JSON beside title, place and queries."""

    title: str
    description: str
    width: int
    height: int
    queries: tuple[Query, ...]
    body: Json


class Row(NamedTuple):
    """A row with its panels, which are laid out from left to right, line by line."""

    title: str
    panels: tuple[Panel, ...]


def halves(*panels: Panel) -> tuple[Panel, ...]:
    """Two panels a line."""
    return tuple(panel._replace(width=COLUMNS // 2) for panel in panels)


def rate(metric: str, *selectors: str) -> str:
    """Increase of a counter a second."""
    return f"rate({metric}{{{', '.join(selectors)}}}[$__rate_interval])"


def increase(metric: str, *selectors: str) -> str:
    """Increase of a counter over the time that the dashboard shows."""
    return f"increase({metric}{{{', '.join(selectors)}}}[$__range])"


def share(part: str, whole: str, by: str) -> str:
    """What part of `whole` is `part`, two instant vectors, summed `by` labels; 0 where `part` has none."""
    sum_by = f"sum by ({by})" if by else "sum"
    return f"({sum_by} ({part}) or {sum_by} ({whole}) * 0) / {sum_by} ({whole})"


def quantile(quantile: float, histogram: str, selector: str, by: str = "") -> str:
    """A quantile of a histogram's observations, summed `by` labels."""
    labels = f"le, {by}" if by else "le"
    buckets = rate(f"{histogram}_bucket", selector)
    return f"histogram_quantile({quantile}, sum by ({labels}) ({buckets}))"


def quantiles(histogram: str, selector: str) -> tuple[Query, ...]:
    """Half, nine in ten and 99 in 100 are at most so."""
    return tuple(
        Query(quantile(part, histogram, selector), name)
        for part, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
    )


def stat(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = "short",
    thresholds: Thresholds = NEUTRAL,
    decimals: int | None = None,
    words: Mapping[int, str] | None = None,
    width: int = 3,
) -> Panel:
    """A number of now, over its course."""
    defaults = _defaults(unit, thresholds, decimals)
    if words:
        named = {
            str(value): {"text": word, "index": index} for index, (value, word) in enumerate(words.items())
        }
        defaults["mappings"] = [{"type": "value", "options": named}]
    colored = "value" if thresholds is NEUTRAL else "background"
    options = {
        "colorMode": colored,
        "graphMode": "none" if query.instant or words else "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    }
    body = {"type": "stat", "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options}
    return Panel(title, description, width, STAT_HEIGHT, (query,), body)


def graph(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    stack: bool = False,
    thresholds: Thresholds = (),
    floor: float | None = 0,
    width: int = 8,
) -> Panel:
    """Lines over time; `stack` fills and adds them up, `thresholds` are drawn, the axis begins at `floor`."""
    defaults = _defaults(unit, thresholds or ((None, GREEN),), None)
    defaults["color"] = {"mode": "palette-classic"}
    if floor is not None:
        defaults["min"] = floor
    defaults["custom"] = {
        "drawStyle": "line",
        "fillOpacity": 30 if stack else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stack else "none"},
        "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
    }
    options = {
        "legend": {
            "calcs": ["lastNotNull", "max"],
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    body = {"type": "timeseries", "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options}
    return Panel(title, description, width, GRAPH_HEIGHT, queries, body)


def heatmap(title: str, description: str, histogram: str, selector: str, *, width: int = 8) -> Panel:
    """How many observations fell into each bucket, over time."""
    query = Query(f"sum by (le) ({rate(f'{histogram}_bucket', selector)})", "{{le}}", format="heatmap")
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"show": True, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "s"},
    }
    body = {"type": "heatmap", "fieldConfig": {"defaults": {}, "overrides": []}, "options": options}
    return Panel(title, description, width, GRAPH_HEIGHT, (query,), body)


def timeline(
    title: str, description: str, query: Query, states: Mapping[int, tuple[str, str]], *, width: int = COLUMNS
) -> Panel:
    """A bar for each series whose colour tells its state: `states` has word and colour by value."""
    mapping = {
        str(value): {"text": word, "color": color, "index": index}
        for index, (value, (word, color)) in enumerate(states.items())
    }
    defaults: Json = {
        "color": {"mode": "thresholds"},
        "custom": {"fillOpacity": 80, "lineWidth": 0},
        "mappings": [{"type": "value", "options": mapping}],
        "thresholds": _steps(((None, "text"),)),
    }
    options = {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "tooltip": {"mode": "single", "sort": "none"},
    }
    body = {
        "type": "state-timeline",
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }
    return Panel(title, description, width, GRAPH_HEIGHT, (query,), body)


def table(
    title: str,
    description: str,
    query: Query,
    *,
    columns: Mapping[str, str],
    unit: str = "short",
    thresholds: Thresholds = NEUTRAL,
    width: int = 8,
) -> Panel:
    """The series of now as rows: `columns` has the label and its heading in order, "Value" among them."""
    override = {
        "matcher": {"id": "byName", "options": columns["Value"]},
        "properties": [
            {"id": "unit", "value": unit},
            {"id": "thresholds", "value": _steps(thresholds)},
            {"id": "custom.cellOptions", "value": {"type": "color-text"}},
        ],
    }
    body = {
        "type": "table",
        "fieldConfig": {"defaults": {"custom": {"align": "auto"}}, "overrides": [override]},
        "options": {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True, "sortBy": []},
        "transformations": [
            {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}},
            {
                "id": "organize",
                "options": {
                    "indexByName": {name: index for index, name in enumerate(columns)},
                    "renameByName": dict(columns),
                },
            },
        ],
    }
    return Panel(
        title, description, width, GRAPH_HEIGHT, (query._replace(instant=True, format="table"),), body
    )


def alerts(title: str, description: str, *, width: int = 8) -> Panel:
    """Alerts of this project's rules that are pending or fire."""
    options = {
        "alertInstanceLabelFilter": "",
        "alertName": "Lb",
        "dashboardAlerts": False,
        "groupBy": [],
        "groupMode": "default",
        "maxItems": 20,
        "sortOrder": 3,
        "stateFilter": {"error": True, "firing": True, "noData": False, "normal": False, "pending": True},
        "viewMode": "list",
    }
    return Panel(title, description, width, GRAPH_HEIGHT, (), {"type": "alertlist", "options": options})


def _defaults(unit: str, thresholds: Thresholds, decimals: int | None) -> Json:
    defaults: Json = {
        "color": {"mode": "thresholds"},
        "mappings": [],
        "thresholds": _steps(thresholds),
        "unit": unit,
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return defaults


def _steps(thresholds: Thresholds) -> Json:
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in thresholds]}
