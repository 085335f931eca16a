"""The bench's tables: medians, ratios to the better of the peers, and nothing that was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench import machine, report
from tests.bench.figures import Figures
from tests.bench.measure import Setting

MACHINE = {
    "processor": "Test",
    "cores": 2,
    "memory_mib": 1024,
    "kernel": "6.1",
    "file_limit": 1024,
    "lb": "0.1.0",
    "compiled": False,
    "generator": "interpreted",
    "python": "3.11",
    "nginx": "1.22",
    "haproxy": None,
}


def rows(workload: str, proxy: str, key: str, *values: float) -> list[dict[str, Any]]:
    """A row for each round."""
    return [
        {"workload": workload, "proxy": proxy, "round": number, key: value}
        for number, value in enumerate(values)
    ]


def result(*parts: list[dict[str, Any]], notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a run gives."""
    return {
        "machine": MACHINE,
        "date": "2026-01-01",
        "rounds": 3,
        "seconds": 1.0,
        "rows": [row for part in parts for row in part],
        "notes": list(notes),
    }


def line(text: str, start: str) -> list[str]:
    """The cells of the only line of a table that begins with `start`."""
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_medians_and_the_ratio_to_the_better_peer() -> None:
    text = report.markdown(
        result(
            rows("http-small", "lb", "cpu_us", 30, 20, 40),
            rows("http-small", "nginx", "cpu_us", 20, 20, 22),
            rows("http-small", "haproxy", "cpu_us", 25, 10, 24),
        )
    )
    assert line(text, "http-small")[1:7] == ["30.0", "20.0", "24.0", "1.50", "2.00", "1.40"]


def test_what_was_not_measured_is_a_dash() -> None:
    text = report.markdown(
        result(rows("ws-small", "lb", "cpu_us", 10), rows("ws-small", "nginx", "cpu_us", 8))
    )
    assert line(text, "ws-small")[1:5] == ["10.0", "8.00", "-", "1.25"]


def test_who_was_not_fully_loaded_is_told_beside_the_figure() -> None:
    text = report.markdown(
        result(
            rows("ws-small", "lb", "cpu_us", 10),
            rows("ws-small", "lb", "busy", 0.99),
            rows("ws-small", "nginx", "cpu_us", 8),
            rows("ws-small", "nginx", "busy", 0.834),
        )
    )
    assert "| ws-small | 10.0 | 8.00 (83%) | - | 1.25 |" in text
    assert "| ws-small | 99% | 83% | - |" in text


def test_a_load_that_rests_by_itself_loads_nobody_fully() -> None:
    text = report.markdown(
        result(rows("http-rate", "lb", "cpu_us", 10), rows("http-rate", "lb", "busy", 0.2))
    )
    assert "| http-rate | 10.0 | - |" in text


def test_without_peers_there_is_no_ratio() -> None:
    text = report.markdown(result(rows("ws-small", "lb", "cpu_us", 10)))
    assert line(text, "ws-small")[1:6] == ["10.0", "-", "-", "-", "-"]


def test_what_has_no_rows_has_no_line() -> None:
    text = report.markdown(result(rows("ws-small", "lb", "cpu_us", 10)))
    assert "http-small" not in text
    assert "###" in text and text.count("###") == 1


def test_lb_with_itself() -> None:
    text = report.markdown(
        result(
            rows("routes", "one route", "cpu_us", 20, 22),
            rows("routes", "500 routes", "cpu_us", 21, 23.1),
        )
    )
    assert line(text, "routes: 500 routes")[2] == "1.05"
    assert line(text, "routes: one route")[2] == "1.00"


def test_the_machine_and_what_is_missing() -> None:
    text = report.machine_line(MACHINE)
    assert "Test, 2 cores" in text
    assert "interpreted" in text
    assert "nginx 1.22; not installed: haproxy." in text


def test_notes_are_there() -> None:
    assert "- broken\n" in report.markdown(result(notes=("broken",)))


def test_the_tables_go_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_between(document, "new\n")
    text = document.read_text()
    assert "old" not in text
    assert text.index("before") < text.index("new") < text.index("after")
    report.write_between(document, "newer\n")
    assert document.read_text().count(report.BEGIN) == 1


def test_a_document_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no place"):
        report.write_between(document, "new\n")
    assert document.read_text() == "nothing here\n"


def test_figures_choose() -> None:
    figures = Figures(rows("start", "nginx", "ms", 5, 3, 9) + rows("start", "haproxy", "ms", 4, 4, 4))
    assert figures.of("start", "nginx", "ms") == 5
    assert figures.better("start", "ms", min) == 3
    assert figures.of("start", "lb", "ms") is None
    assert figures.proxies("start") == ["nginx", "haproxy"]


def test_the_document_has_a_place_for_the_tables() -> None:
    text = (Path(report.__file__).parents[2] / "docs" / "performance.md").read_text()
    assert text.index(report.BEGIN) < text.index(report.END)


def test_what_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert machine.version("haproxy") is None
    with pytest.raises(FileNotFoundError, match="haproxy is not installed; its package is called haproxy"):
        machine.program_path("haproxy")


def test_only_what_fails_of_lb_is_a_failure() -> None:
    setting = Setting(machine.cores(), 0, 1, 1.0, 1024, lambda _: None)
    setting.failed("ws-small", "nginx", OSError("broken"))
    assert (setting.notes, setting.failures) == (["ws-small, nginx: not measured: broken"], [])
    setting.failed("ws-small", "lb", OSError("broken"))
    assert setting.failures == ["ws-small"]


def test_few_files_mean_fewer_connections() -> None:
    setting = Setting(machine.cores(), 0, 1, 1.0, 1024, lambda _: None)
    assert (setting.connections(64), setting.connections(5000)) == (64, 362)
