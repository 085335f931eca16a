"""What a check found, and how the errors on its way are told apart."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Final, NamedTuple

from workers.contract.cells import CheckResult

# These say that we are short of something, which is nobody's fault but ours.
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})


class Finding(NamedTuple):
    """How a check ended; `detail` says it for people."""

    result: CheckResult
    detail: str = ""


class CheckFailed(Exception):
    """The server did not pass; `finding` says why."""

    def __init__(self, result: CheckResult, detail: str) -> None:
        super().__init__(detail)
        self.finding = Finding(result, detail)


class NotChecked(Exception):
    """The check could not be made for want of descriptors or memory here: it says nothing of the server."""


def explain(error: BaseException) -> str:
    """`error` in the system's words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    if isinstance(error, socket.gaierror):
        return f"its name is not resolved: {error.strerror}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def not_connected(error: OSError) -> CheckFailed:
    """No connection came about. Raises `NotChecked` where that is our own want."""
    if error.errno in _OURS and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        raise NotChecked(explain(error)) from error
    return CheckFailed(CheckResult.CONNECT, f"no connection: {explain(error)}")


def no_tls(error: Exception) -> CheckFailed:
    """The connection stands, and TLS failed on it."""
    return CheckFailed(CheckResult.TLS, f"TLS failed: {explain(error)}")


def broken(error: Exception, stage: str) -> CheckFailed:
    """The connection broke while the check was at `stage`.."""
    if isinstance(error, ssl.SSLError):
        return no_tls(error)  # TLS 1.3 tells a client only now that it should have shown a certificate
    return CheckFailed(CheckResult.PROTOCOL, f"the connection broke while {stage}: {explain(error)}")
