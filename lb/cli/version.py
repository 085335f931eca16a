"""The version of what is installed."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """The distribution's version; "unknown" when run from a tree that is not installed."""
    try:
        return importlib.metadata.version("shardlb")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
