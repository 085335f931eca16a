"""Readiness for systemd (sd_notify(3)): a few datagrams to the socket in $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable


class Notifier:
    """Does nothing where systemd didn't ask to be told."""

    def __init__(self, address: str | None, on_error: Callable[[OSError], None]) -> None:
        """`address` is the value of $NOTIFY_SOCKET."""
        self.address = address or ""
        self._on_error = on_error

    @classmethod
    def from_environment(cls, on_error: Callable[[OSError], None]) -> Notifier:
        """Takes the variable out of the environment: children shall not speak for us."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None), on_error)

    def ready(self, status: str) -> None:
        """Everything serves."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. Type=notify-reload wants the time, too."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The graceful stop begins."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self.address:
            return
        # "@" stands for the abstract namespace.
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(text.encode(), address)
        except OSError as error:
            self._on_error(error)
