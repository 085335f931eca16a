"""What aiohttp's servers have to say goes into the error log: one line each and at a bounded rate. By itself
aiohttp writes a traceback to standard error for each malformed request that anybody sends."""

from __future__ import annotations

import logging

from workers.contract.errorlog import ErrorLog


class _ToErrorLog(logging.Handler):
    def __init__(self, log: ErrorLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Writes `record`."""
        error = record.exc_info[1] if record.exc_info else None
        # A malformed message is told with what came, over several lines: its first says enough.
        cause = None if error is None else f"{type(error).__name__}: {error}".split("\n\n", 1)[0]
        self._log.warning("http request failed", what=record.getMessage().strip(), error=cause)


def logger(log: ErrorLog) -> logging.Logger:
    """A logger for `aiohttp.web.AppRunner` that nobody else knows of."""
    made = logging.Logger("lb.http")
    made.addHandler(_ToErrorLog(log))
    return made
