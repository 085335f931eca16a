"""One end of a tunnel, as `workers.io.ping` looks at it."""

from __future__ import annotations

import termios
from typing import TYPE_CHECKING

from workers.io.tcpinfo import queue

if TYPE_CHECKING:
    from workers.io.pipe import Pipe


class Side:
    """One end of a tunnel: `source` has its words, `sink` carries what it is to read."""

    __slots__ = (
        "awaited", "due", "held", "moments", "sent_at", "sink", "source", "total", "unread", "wanted",
    )  # fmt: skip

    def __init__(self, source: Pipe, sink: Pipe, due: float) -> None:
        self.source = source
        self.sink = sink
        self.due = due  # when it is looked at next
        self.total = -1  # bytes that had come from it when it was looked at last
        self.wanted = False  # whether a Ping waits for the end of a frame
        self.awaited = b""  # payload of the Ping that it has not answered
        self.sent_at = 0  # nanoseconds
        self.unread = (0, 0)  # bytes for it that waited here, and in the kernel, when `reads` was asked last
        self.held = b""  # the beginning of a frame, perhaps our Pong, that was taken from TLS
        self.moments = 0  # how often only the beginning of our Pong was there

    @property
    def can_answer(self) -> bool:
        """Whether a Ping can go out and would be answered: not after an end or a Close of either side."""
        return not any(
            pipe.ended or pipe.tracker is None or pipe.tracker.lost or pipe.tracker.close_code is not None
            for pipe in (self.source, self.sink)
        )

    @property
    def speaks(self) -> bool:
        """Whether something of it has come that we have not read yet."""
        return queue(self.source.source_fd, termios.FIONREAD) > 0

    def reads(self) -> bool:
        """Whether it has read, since this was asked last, of what was sent before a Ping, which it can't have
        seen then."""
        before = self.unread
        self.unread = (len(self.sink.out), queue(self.sink.sink_fd, termios.TIOCOUTQ))
        return any(self.unread) and self.unread != before
