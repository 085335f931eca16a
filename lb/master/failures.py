"""What ends the master before or instead of serving, and the exit codes that a service manager sees."""

from __future__ import annotations

from typing import Final

EXIT_CONFIG: Final = 1  # the configuration is wrong
EXIT_USAGE: Final = 2  # argparse's own
EXIT_START: Final = 3  # port in use, missing permission, another instance
EXIT_BOOT: Final = 4  # the workers never became ready


class StartError(Exception):
    """The load balancer can't start. `str()` is the one line for the operator, `code` the exit code."""

    def __init__(self, message: str, code: int = EXIT_START) -> None:
        super().__init__(message)
        self.code = code


class BindError(StartError):
    """An address can't be listened on."""


def reason(error: OSError) -> str:
    """The system's words for `error`, lower case, without number and file name."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
