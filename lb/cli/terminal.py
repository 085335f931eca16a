"""The keyboard of the terminal while something is shown live, and its way back to normal."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from types import FrameType, TracebackType
from typing import Any, Final

ENDED: Final = "\x04"  # Ctrl-D, and what stands for a terminal that is gone
_ESCAPE: Final = "\x1b"
_PAUSE: Final = 0.05  # seconds
_SEQUENCE: Final = 32  # characters of the longest sequence
_CONTROL_CHARACTERS: Final = 6
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


class Keys:
    """Single keys, unechoed, while it is entered; the terminal is as before afterwards, also after an
    exception or a signal that ends the process. Without a terminal as standard input there are no keys."""

    def __init__(self) -> None:
        self._terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._before: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Keys:
        for number in _ENDING:
            self._handlers[number] = signal.signal(number, _end)
        if self._terminal >= 0:
            self._before = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal, termios.TCSANOW)
            changed = termios.tcgetattr(self._terminal)
            # A stop by Ctrl-Z would leave the shell on the alternate screen.
            changed[_CONTROL_CHARACTERS][termios.VSUSP] = b"\0"
            termios.tcsetattr(self._terminal, termios.TCSANOW, changed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            # What was typed meanwhile was not meant for the shell.
            termios.tcsetattr(self._terminal, termios.TCSAFLUSH, self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> str:
        """The key that is pressed within `seconds`; "" when there is none. Keys that send several characters,
        such as the arrows, count as none."""
        if self._terminal < 0:
            select.select([], [], [], seconds)
            return ""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return ""
        try:
            key = os.read(self._terminal, 1).decode("latin-1") or ENDED
            # What follows an escape without a pause is not typed: the terminal sent it.
            if key == _ESCAPE and select.select([self._terminal], [], [], _PAUSE)[0]:
                os.read(self._terminal, _SEQUENCE)
                return ""
            return key
        except OSError:  # the terminal is gone
            return ENDED


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
