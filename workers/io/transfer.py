"""What both sides of a hand-over have in common: the pair, messages over it, and a bound on every wait."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from workers.contract import messages
from workers.contract.cells import MigrationReason, MigrationResult, WorkerCell
from workers.contract.messages import ChannelError, Message
from workers.contract.tunnels import Handover, receive_handover
from workers.core.wheel import NEVER

if TYPE_CHECKING:
    from workers.io.worker import Worker

PATIENCE: Final = 5.0  # seconds for a step of the other side
_REASONS: Final = {
    "retire": MigrationReason.RETIRE,
    "rebalance": MigrationReason.REBALANCE,
    "upgrade": MigrationReason.UPGRADE,
}


class Transfer:
    """One side. Subclasses implement `heard`, `ended` (the pair broke) and `late` (the other side took too
    long); `over` is called once, when all is settled."""

    __slots__ = ("channel", "deadline", "over", "reason", "worker")

    def __init__(self, worker: Worker, fd: int, reason: str, over: Callable[[Any], None]) -> None:
        """`fd` is this side's end of the pair, and this object's from now on."""
        self.worker = worker
        self.channel = socket.socket(fileno=fd)
        self.channel.setblocking(False)
        self.reason = reason
        self.over = over
        self.deadline = NEVER
        worker.loop.add_reader(fd, self.on_readable)

    def heard(self, message: Handover, fds: list[int]) -> None:
        """A message came; the descriptors are this side's."""
        raise NotImplementedError

    def ended(self, why: str) -> None:
        """Nothing more comes."""
        raise NotImplementedError

    def late(self) -> None:
        """The deadline passed."""
        raise NotImplementedError

    def abort(self, why: str) -> None:
        """This worker can't go on with it."""
        raise NotImplementedError

    def abandon(self) -> None:
        """A callback failed."""
        self.abort("fault in the worker")

    def wait(self) -> None:
        """The other side has `PATIENCE` from now on."""
        self.deadline = self.worker.now + PATIENCE

    def on_readable(self) -> None:
        """Takes in one message."""
        try:
            received = receive_handover(self.channel)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionResetError:
            # The other side closed before it had read all (unix(7)). This is told once, and in front of what
            # it had sent, which is still to be read.
            return
        except ChannelError as error:
            self.abort(str(error))
            return
        except OSError as error:
            self.ended(str(error))
            return
        if received is None:
            self.ended("the other worker closed the pair")
        else:
            self.heard(*received)

    def send(self, message: Message, fds: Iterable[int] = ()) -> bool:
        """Sends it; whether that was possible."""
        try:
            messages.send(self.channel, message, tuple(fds))
        except OSError:
            return False
        return True

    def say(self, message: Message) -> bool:
        """Sends it; `False` where there is no room. Who is gone does not have to hear it."""
        try:
            messages.send(self.channel, message)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def count(self, result: MigrationResult, number: int = 1) -> None:
        """Counts how so many tunnels fared."""
        reason = _REASONS[self.reason]
        cell = WorkerCell.MIGRATIONS + reason * MigrationResult.WIDTH + result
        self.worker.slab.cells[cell] += number

    def close(self) -> None:
        """It is over."""
        self.deadline = NEVER
        self.worker.loop.remove_reader(self.channel.fileno())
        self.channel.close()
        self.over(self)


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors; the two ends of what they are notice nothing, since somebody else has them, too."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
