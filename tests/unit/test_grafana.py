"""Dashboards and rules: current, complete, and about metrics that there are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.source.files import FOLDER, texts
from lb.metrics.families import FAMILIES

ROOT = FOLDER.parent
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
RULES = [
    rule
    for path in sorted((ROOT / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"]: rule for rule in RULES if "record" in rule}
PROMETHEUS_OWN = {"up"}
PANELS = {"row", "stat", "timeseries", "heatmap", "state-timeline", "table", "alertlist"}  # none is angular
QUOTED = re.compile(r'"[^"]*"')
METRIC = re.compile(r"\b(?:[a-z_]+:)?lb_\w+(?::\w+)?|\bup(?=\{)")
SELECTOR = re.compile(r"((?:[a-z_]+:)?lb_\w+(?::\w+)?)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
VARIABLE = re.compile(r"\$\{?(\w+)\}?")
BUILT_IN = {"__rate_interval", "__range", "__interval", "__all", "1"}


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    """Of panels, annotations and variables."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that are no rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


EXPRESSIONS = [query for dashboard in DASHBOARDS.values() for query in queries(dashboard)] + [
    rule["expr"] for rule in RULES
]


def labels_of(metric: str) -> set[str]:
    """The labels that a metric of the load balancer has, with those that Prometheus adds."""
    family = FAMILIES.get(metric) or FAMILIES[re.sub(r"_(bucket|count|sum)$", "", metric)]
    histogram = {"le"} if metric.endswith("_bucket") else set()
    return {*family.labels, *histogram, "job", "instance"}


def known(metric: str) -> bool:
    """Whether there is such a metric."""
    if metric in FAMILIES:
        return FAMILIES[metric].type != "histogram"
    base = FAMILIES.get(re.sub(r"_(bucket|count|sum)$", "", metric))
    return metric in RECORDED | dict.fromkeys(PROMETHEUS_OWN) or (
        base is not None and base.type == "histogram"
    )


# --- the dashboards ----------------------------------------------------------------------------------


def test_the_files_are_those_that_the_source_makes() -> None:
    expected = texts()
    assert {path.name for path in expected} == set(DASHBOARDS)
    for path, text in expected.items():
        assert path.read_text() == text, f"{path.name} is old: run python -m grafana.source"


def test_no_two_dashboards_have_one_uid_or_title() -> None:
    for key in ("uid", "title"):
        found = Counter(dashboard[key] for dashboard in DASHBOARDS.values())
        assert max(found.values()) == 1, found


@pytest.mark.parametrize("name", DASHBOARDS)
def test_numbers_titles_and_queries_are_used_once(name: str) -> None:
    dashboard = DASHBOARDS[name]
    for values in (
        [panel["id"] for panel in dashboard["panels"]],
        [panel["title"] for panel in dashboard["panels"]],
        [variable["name"] for variable in dashboard["templating"]["list"]],
    ):
        assert len(values) == len(set(values)), Counter(values).most_common(3)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_panel_says_what_it_answers(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        assert panel["type"] in PANELS, panel["title"]
        assert "?" in panel["description"], panel["title"]
        assert panel.get("targets") or panel["type"] == "alertlist", panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_figures_have_units_and_the_right_data_source(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_lie_beside_each_other_in_the_grid(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_line_is_filled(name: str) -> None:
    widths: Counter[int] = Counter()
    for panel in DASHBOARDS[name]["panels"]:
        widths[panel["gridPos"]["y"]] += panel["gridPos"]["w"]
    assert set(widths.values()) == {24}, widths


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_variable_is_there_and_used(name: str) -> None:
    dashboard = DASHBOARDS[name]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {found for query in queries(dashboard) for found in VARIABLE.findall(query)} - BUILT_IN
    assert used | {"datasource"} == variables
    for panel in panels(dashboard):
        for target in panel.get("targets", ()):
            assert '=~"$job", instance=~"$instance"' in target["expr"], panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_legends_name_labels_that_the_query_leaves(name: str) -> None:
    for panel in panels(DASHBOARDS[name]):
        for target in panel.get("targets", ()):
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert re.search(rf"\b{label}\b", target["expr"]), (panel["title"], label)


# --- the queries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", EXPRESSIONS)
def test_queries_name_metrics_and_labels_that_there_are(query: str) -> None:
    metrics = METRIC.findall(QUOTED.sub('""', query))
    assert metrics, query
    assert [metric for metric in metrics if not known(metric)] == []
    for metric, selector in SELECTOR.findall(query):
        if metric not in RECORDED:
            named = set(LABEL.findall(QUOTED.sub('""', selector)))
            assert named <= labels_of(metric), (metric, named - labels_of(metric))


def test_no_metric_is_forgotten() -> None:
    """Each is on a dashboard, but the one that says nothing by itself."""
    shown = {
        re.sub(r"_(bucket|count|sum)$", "", metric)
        for dashboard in DASHBOARDS.values()
        for query in queries(dashboard)
        for metric in METRIC.findall(QUOTED.sub('""', query))
    }
    assert set(FAMILIES) - shown == {"lb_config_generation"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_all_jobs_are_those_of_load_balancers(name: str) -> None:
    """`up` is a metric of every job."""
    for variable in DASHBOARDS[name]["templating"]["list"]:
        assert ("allValue" in variable) == (variable["name"] not in ("datasource", "job"))


# --- the rules ---------------------------------------------------------------------------------------


def test_each_rule_has_a_name_of_its_own() -> None:
    names = Counter(rule.get("alert") or rule["record"] for rule in RULES)
    assert max(names.values()) == 1, names


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_names_are_level_metric_operation(name: str) -> None:
    level, metric, operation = name.split(":")
    assert set(level.split("_")) <= {"job", "instance", "route", "pool"}
    assert metric.startswith("lb_")
    assert operation


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_alerts_say_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Lb[A-Z][A-Za-z]+", alert["alert"])
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description", "action"}
    for text in alert["annotations"].values():
        assert len(text) > 10, alert["alert"]
    for clause in alert["expr"].strip().split("\nand\n"):
        assert re.search(r" (<=?|>=?) [0-9.]+$", clause), clause


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_alerts_are_tested_to_fire_and_not_to(alert: dict[str, Any]) -> None:
    """promtool runs these tests, in tests/interop/test_prometheus.py."""
    checks = [
        check
        for path in (ROOT / "rules/tests").glob("*.yml")
        for test in yaml.safe_load(path.read_text())["tests"]
        for check in test["promql_expr_test"]
        if f'alertname="{alert["alert"]}"' in check["expr"]
    ]
    assert {bool(check["exp_samples"]) for check in checks} == {True, False}


def test_increases_of_counts_are_not_compared_with_counts() -> None:
    """increase() estimates, so that one event can be 1.02: a threshold of 1 would be met by one or two."""
    for alert in ALERTS:
        for threshold in re.findall(r"increase\(.*> ([0-9.]+)$", alert["expr"], re.MULTILINE):
            assert threshold in ("0", "5") or threshold.endswith(".5"), alert["alert"]


# --- the provisioning --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "provisioning").rglob("*.yml")), ids=lambda path: path.name)
def test_provisioning_is_of_version_one(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert document["apiVersion"] == 1
    assert document.get("datasources") or document.get("providers")
