"""The command `lb`."""

from lb.cli.main import main

__all__ = ["main"]
