"""The version of what is installed."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """The distribution's version; "unknown" when run from a tree that is not installed."""
    try:
        return importlib.metadata.version("shardlb")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def named(version: str, form: str) -> str:
    """What is shown of a release: "lb 1.2, compiled"; `form` is that of its hot modules, or empty."""
    return f"lb {version}, {form}" if form else f"lb {version}"
