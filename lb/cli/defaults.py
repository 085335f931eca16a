"""The configuration file that is used when none is named."""

from __future__ import annotations

import pathlib
from typing import Final

DEFAULT_FILES: Final = (
    pathlib.Path("lb.toml"),
    pathlib.Path("config/lb.toml"),
    pathlib.Path("/etc/lb/lb.toml"),
)


def default_file() -> pathlib.Path | None:
    """The first of `DEFAULT_FILES` that is there."""
    return next((path for path in DEFAULT_FILES if path.is_file()), None)
