"""What handles the traffic: one process per worker, and a keeper beside each."""

from __future__ import annotations

import importlib.util


def is_compiled() -> bool:
    """Whether the hot modules are machine code (`setup.py`) rather than interpreted; the source is one."""
    spec = importlib.util.find_spec("workers.io.reactor")
    return spec is not None and not (spec.origin or "").endswith(".py")
