"""The dashboards as files: one JSON document each, always the same for the same source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from grafana.source import overview, upstreams, websockets, workers
from grafana.source.model import Json

FOLDER: Final = Path(__file__).parents[1] / "dashboards"


def dashboards() -> dict[str, Json]:
    """Every dashboard, by the name of its file."""
    return {
        "overview.json": overview.dashboard(),
        "websockets.json": websockets.dashboard(),
        "upstreams.json": upstreams.dashboard(),
        "workers.json": workers.dashboard(),
    }


def texts() -> dict[Path, str]:
    """What each file holds."""
    return {FOLDER / name: json.dumps(value, indent=2) + "\n" for name, value in dashboards().items()}


def write() -> None:
    """Writes the files."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
