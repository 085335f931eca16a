"""A command in a terminal of its own, as a person sees it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """Runs `lb` with `arguments` in a terminal of 80 by 24; `shown` is all that it wrote so far."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._slave, (24, 80))
        self.modes_before = termios.tcgetattr(self._slave)
        self.shown = ""
        # These would be believed more than the terminal.
        outside = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "lb", *arguments],  # keys make signals there
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            cwd=ROOT,
            env={**outside, "TERM": "xterm-256color", **(environment or {})},
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    @property
    def modes(self) -> list[object]:
        """How the terminal is set now."""
        return termios.tcgetattr(self._slave)

    def types(self, text: str) -> None:
        """Presses keys."""
        os.write(self._master, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Changes the size of the window."""
        termios.tcsetwinsize(self._slave, (lines, columns))

    def wait_for(self, text: str, within: float = 30.0) -> None:
        """Reads until `text` was shown, counted from the last call on."""
        start = len(self.shown)
        deadline = time.monotonic() + within
        while text not in self.shown[start:]:
            left = deadline - time.monotonic()
            assert left > 0, f"not within {within:g} s: {text!r} in\n{self.shown[start:]}"
            self._read(left)

    def end(self, within: float = 30.0) -> int:
        """Reads until it has ended; its exit code."""
        deadline = time.monotonic() + within
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on:\n{self.shown}"
            self._read(0.05)
        self._read(0)
        return self.process.returncode

    def _read(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            self.shown += os.read(self._master, 65536).decode(errors="replace")
