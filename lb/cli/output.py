"""How commands print JSON and errors."""

from __future__ import annotations

import sys
from typing import Final

import msgspec

EXIT_FAILED: Final = 1


def print_json(value: object) -> None:
    """Prints `value` indented."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_error(error: Exception | str) -> int:
    """Prints one line to standard error; returns the exit code of a command that failed."""
    print(f"lb: {error}", file=sys.stderr)
    return EXIT_FAILED
