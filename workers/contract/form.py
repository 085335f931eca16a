"""In which of its two forms the data plane runs: `setup.py` may have compiled its hot modules, and with them
the C module of the innermost steps (`workers.contract.native`)."""

from __future__ import annotations

import importlib.util
from typing import Final

COMPILED: Final = "compiled"
INTERPRETED: Final = "interpreted"


def form() -> str:
    """`COMPILED` or `INTERPRETED`. The hot modules and the C module are compiled together or not at all, so
    one speaks for them; it is looked for and not imported."""
    spec = importlib.util.find_spec("workers.io.reactor")
    machine_code = spec is not None and not (spec.origin or "").endswith(".py")
    return COMPILED if machine_code else INTERPRETED
