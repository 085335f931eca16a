"""A whole dashboard: variables, links, and panels in their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from grafana.source.model import COLUMNS, DATASOURCE, SCHEMA, Json, Panel, Query, Row

TAG: Final = "shardlb"

# What selects the series of the instances, and of the routes, pools and workers, that the variables name.
HOST: Final = 'job=~"$job", instance=~"$instance"'
ROUTE: Final = HOST + ', route=~"$route"'
POOL: Final = HOST + ', pool=~"$pool"'
WORKER: Final = HOST + ', worker=~"$worker"'

EVERY: Final = {"allValue": ".*"}

# The metric whose label values a variable offers; each is there from the first scrape on.
_VALUES: Final = {
    "route": f"label_values(lb_http_requests_in_flight{{{HOST}}}, route)",
    "pool": f"label_values(lb_upstream_queue_length{{{HOST}}}, pool)",
    "worker": f"label_values(lb_worker_connections{{{HOST}}}, worker)",
}


def page(uid: str, title: str, description: str, variables: Sequence[str], rows: Sequence[Row]) -> Json:
    """The dashboard's JSON. `variables` names those beside datasource, job and instance."""
    return {
        "uid": f"shardlb-{uid}",
        "title": f"shardlb / {title}",
        "description": description,
        "tags": [TAG],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_loaded()]},
        "links": [_others()],
        "templating": {"list": list(_variables(variables))},
        "panels": list(_placed(rows)),
    }


def _variables(names: Sequence[str]) -> Iterator[Json]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "includeAll": False,
        "multi": False,
    }
    # No "allValue" for jobs: `up` is a metric of every job, so "All" has to mean those of load balancers.
    yield _variable("job", "label_values(lb_up, job)")
    yield _variable("instance", 'label_values(lb_up{job=~"$job"}, instance)') | EVERY
    for name in names:
        yield _variable(name, _VALUES[name]) | EVERY


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _loaded() -> Json:
    return {
        "name": "Configuration loaded",
        "datasource": DATASOURCE,
        "enable": True,
        "expr": f"lb_config_last_reload_success_timestamp_seconds{{{HOST}}} * 1000",
        "iconColor": "blue",
        "titleFormat": "Configuration loaded: {{instance}}",
        "useValueForTime": "on",
    }


def _others() -> Json:
    return {
        "title": "shardlb",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    """Rows and panels with their numbers and places."""
    number = 0
    top = 0
    for row in rows:
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        top += 1
        for line in _lines(row.panels):
            wider = (COLUMNS - sum(panel.width for panel in line)) // len(line)
            left = 0
            for panel in line:
                number += 1
                place = {"h": panel.height, "w": panel.width + wider, "x": left, "y": top}
                yield _panel(number, panel, place)
                left += panel.width + wider
            top += max(panel.height for panel in line)


def _lines(panels: Sequence[Panel]) -> list[list[Panel]]:
    """As many panels beside each other as fit."""
    lines: list[list[Panel]] = [[]]
    for panel in panels:
        if sum(one.width for one in lines[-1]) + panel.width > COLUMNS:
            lines.append([])
        lines[-1].append(panel)
    return lines


def _panel(number: int, panel: Panel, place: Json) -> Json:
    found: Json = {"id": number, "title": panel.title, "description": panel.description, "gridPos": place}
    if panel.queries:
        found["datasource"] = DATASOURCE
        found["targets"] = [
            _target(chr(ord("A") + index), query) for index, query in enumerate(panel.queries)
        ]
    return found | panel.body


def _target(letter: str, query: Query) -> Json:
    return {
        "refId": letter,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "format": query.format,
        "instant": query.instant,
        "range": not query.instant,
    }
