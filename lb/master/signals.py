"""Signals as data: the handlers only enqueue, the loop reads them (style, rule 13)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Final

# To the master, and ignored by its children: Ctrl-C and a service manager's kill reach the whole group.
CONTROL: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
_ENQUEUED: Final = (*CONTROL, signal.SIGCHLD)
# Makes a worker write the stacks of its threads to standard error; nothing else sends this signal.
DUMP_STACKS: Final = signal.SIGRTMIN


def _enqueue(_number: int, _frame: FrameType | None) -> None:
    """Does nothing: the wakeup descriptor holds the number already."""


class SignalQueue:
    """Takes the process's signals over. `fd` is readable when some wait; `read` returns them."""

    def __init__(self) -> None:
        self.fd, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A full pipe holds thousands of signals that were not read yet: one more says nothing new.
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in _ENQUEUED:
            signal.signal(number, _enqueue)

    def read(self) -> list[signal.Signals]:
        """The signals that came since the last call, in order."""
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in data]

    def close(self) -> None:
        """Ignores further control signals: what comes now comes too late to matter."""
        for number in CONTROL:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self._wakeup)


@contextlib.contextmanager
def blocked() -> Iterator[Callable[[], None]]:
    """Blocks all signals around a fork. The child, which never leaves the block, calls what it gets here
    once its own dispositions are set."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield restore
    finally:
        restore()


def reset_in_child() -> None:
    """In the forked child, with signals blocked: the master's handlers and wakeup descriptor are not
    its own (a signal to the child would be read by the master)."""
    signal.set_wakeup_fd(-1)
    for number in CONTROL:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def watch(queue: SignalQueue, handlers: Mapping[signal.Signals, Callable[[], None]]) -> Callable[[int], None]:
    """A loop callback that reads `queue` and calls each handler once, however often its signal came."""

    def ready(_events: int) -> None:
        for number in dict.fromkeys(queue.read()):
            handler = handlers.get(number)
            if handler is not None:
                handler()

    return ready
