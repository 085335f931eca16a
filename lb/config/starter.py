"""The file that `lb init` writes."""

from __future__ import annotations

import importlib.resources


def starter() -> str:
    """A configuration that is valid as it is, with what most people want next in comments."""
    return importlib.resources.files("lb.config").joinpath("starter.toml").read_text("utf-8")
