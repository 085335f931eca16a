"""The access log's way out: a bounded queue and one writer thread a worker.

The event loop appends a finished line and goes on; the thread collects what came within a moment and writes
it at once. Whatever becomes of the file (full disk, blocked pipe, closed reader), it costs lines, which are
counted and told in the error log, and never traffic.

Several workers write to the same open file. To a regular file (opened with O_APPEND) a batch is one write.
To anything else a write is at most PIPE_BUF bytes, of whole lines, so that lines never tear. Neither sets
O_NONBLOCK, which would alter a terminal that is shared with a shell.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from workers.contract.errorlog import ErrorLog
from workers.contract.sink import ATOMIC, Sink
from workers.core.logline import LineFormat, line_format

MAX_LINES: Final = 65_536  # waiting in the queue
MAX_BYTES: Final = 16 * 1024 * 1024
BATCH: Final = 256 * 1024  # bytes of one write to a file
LINGER: Final = 0.02  # seconds that the thread collects lines before it writes
RETRY: Final = 0.5  # seconds between two tries on a file that fails or a pipe that is full
REPORT: Final = 1.0  # seconds between two reports of lost lines


class AccessLog:
    """One worker's access log. Make it in the worker: it starts a thread, which a fork would lose.

    The hot path is ``if log.wanted(): log.write(log.format.exchange(...))``.
    """

    __slots__ = (
        "_accepted", "_closing", "_deadline", "_errors", "_failure", "_queue", "_refused", "_reported",
        "_reported_at", "_room", "_sample", "_share", "_sink", "_sleeping", "_swap", "_swap_lock", "_thread",
        "_torn", "_unwritten", "_wake", "_written", "format",
    )  # fmt: skip

    def __init__(self, fd: int, errors: ErrorLog, format: str = "json", sample: float = 1.0) -> None:
        """Takes `fd` over (0 to 2 are left open at the end). `sample` is the share of exchanges that is
        logged, 0 to 1. Raises `OSError` when `fd` is not open, `KeyError` for an unknown format."""
        self.format: LineFormat = line_format(format)
        self._errors = errors
        self._sink = Sink(fd)
        self._sample = sample
        self._share = 0.0
        self._queue: deque[bytes] = deque()
        # Each counter has one writing thread, so none needs a lock.
        self._room = MAX_BYTES
        self._accepted = 0  # bytes ever queued: the loop's
        self._written = 0  # bytes ever taken off: the thread's
        self._refused = 0  # lines lost for want of room: the loop's
        self._unwritten = 0  # lines lost in writing: the thread's
        self._reported = 0
        self._reported_at = 0.0
        self._torn = False
        self._sleeping = False
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = 0.0
        self._failure = ""
        self._swap: Sink | None = None
        self._swap_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    # --- the event loop's side

    @property
    def dropped(self) -> int:
        """Lines lost so far; only grows. The worker's tick copies it to the scoreboard."""
        return self._refused + self._unwritten

    def wanted(self) -> bool:
        """Whether the next exchange is to be logged: evenly spread, `sample` of them all."""
        self._share += self._sample
        if self._share >= 1.0:
            self._share -= 1.0
            return True
        return False

    def reconfigure(self, format: str, sample: float) -> None:
        """Serves another configuration from now on. Raises `KeyError` for an unknown format."""
        self.format = line_format(format)
        self._sample = sample

    def write(self, line: bytes) -> None:
        """Queues one finished line (at most PIPE_BUF bytes, line feed included). Never waits or raises; a
        line for which there is no room is counted."""
        queue = self._queue
        if self._accepted - self._written > self._room or len(queue) >= MAX_LINES or len(line) > ATOMIC:
            self._refused += 1
            return
        self._accepted += len(line)
        queue.append(line)
        # The thread sets it before it looks at the queue for the last time, so no line is overlooked.
        if self._sleeping:
            self._sleeping = False
            self._wake.set()

    def reopen(self, fd: int) -> None:
        """Takes `fd` over and writes to it from the next batch on; the old one is closed then.
        Raises `OSError` when `fd` is not open."""
        with self._swap_lock:
            superseded, self._swap = self._swap, Sink(fd)
        if superseded is not None:
            _close(superseded.fd)
        self._wake.set()

    def finish(self, timeout: float) -> None:
        """Ends the log without waiting: what is queued has `timeout` seconds to get out. Later lines are
        dropped and counted."""
        self._room = -1
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._wake.set()

    def close(self, timeout: float = 1.0) -> None:
        """Ends the log and waits for that, little longer than `timeout` seconds whatever the file does."""
        self.finish(timeout)
        self._thread.join(timeout + 0.1)
        if self._thread.is_alive():
            # The disk hangs. The thread can't be ended, but it doesn't keep the process either.
            self._errors.error("the access log could not be ended", lines=len(self._queue))

    # --- the thread's side

    def _run(self) -> None:
        while not (self._closing.is_set() and (not self._queue or time.monotonic() >= self._deadline)):
            self._take_swap()
            if self._queue:
                self._write_batch()
            else:
                self._sleep()
            self._report()
        self._end()

    def _sleep(self) -> None:
        self._wake.clear()
        self._sleeping = True
        if not self._queue and self._swap is None and not self._closing.is_set():
            # Lost lines are told even when no other follows.
            self._wake.wait(REPORT if self.dropped != self._reported else None)
        self._sleeping = False
        # One wake-up for all lines of a moment: waking costs the event loop more than writing does.
        self._closing.wait(LINGER)

    def _write_batch(self) -> None:
        for part in self._parts():
            done, failure = self._write_whole(part)
            if failure:
                self._unwritten += part.count(b"\n", done)
                self._torn = done > 0 and part[done - 1] != 0x0A
                self._failure = failure
                self._closing.wait(RETRY)
                return

    def _parts(self) -> Iterator[bytes]:
        """Takes off what is queued now, in whole lines, as much at a time as one write may carry."""
        limit = BATCH if self._sink.is_file else ATOMIC
        lines: list[bytes] = []
        size = 0
        for _ in range(len(self._queue)):
            if size + len(self._queue[0]) > limit:
                yield b"".join(lines)
                lines, size = [], 0
            line = self._queue.popleft()
            lines.append(line)
            size += len(line)
            self._written += len(line)
        if lines:
            yield b"".join(lines)

    def _write_whole(self, data: bytes) -> tuple[int, str]:
        """Writes `data`; says how much of it was written, and what went wrong where that is not all."""
        done = 0
        while done < len(data):
            try:
                if self._torn:
                    # An error cut a line off; without this the next one would stick to it.
                    self._torn = self._sink.write(b"\n") != 1
                done += self._sink.write(data[done:] if done else data)
            except BlockingIOError:
                if not self._wait_for_room():
                    return done, "nobody reads"
            except OSError as error:
                return done, error.strerror or type(error).__name__
        return done, ""

    def _wait_for_room(self) -> bool:
        """Waits for a full pipe. False when there is no time left, or a new file to go on with."""
        while not self._sink.wait(LINGER if self._closing.is_set() else RETRY):
            self._report()
            if self._swap is not None or (self._closing.is_set() and time.monotonic() >= self._deadline):
                return False
        return True

    def _take_swap(self) -> None:
        with self._swap_lock:
            swap, self._swap = self._swap, None
        if swap is not None:
            _close(self._sink.fd)
            self._sink = swap
            self._torn = False

    def _report(self, *, at_once: bool = False) -> None:
        dropped, now = self.dropped, time.monotonic()
        if dropped == self._reported or (now - self._reported_at < REPORT and not at_once):
            return
        reason = self._failure or "the queue is full"
        self._errors.warning("access log lines were lost", lines=dropped - self._reported, reason=reason)
        self._reported, self._reported_at, self._failure = dropped, now, ""

    def _end(self) -> None:
        if self._queue:
            self._failure = self._failure or "no time was left"
            self._unwritten += len(self._queue)
            self._queue.clear()
        self._report(at_once=True)
        self._take_swap()
        _close(self._sink.fd)


def _close(fd: int) -> None:
    """Closes a log's descriptor, but not the process's own standard ones."""
    if fd > 2:
        # A delayed write error (NFS) has cost lines that were counted as written: nothing else can be done.
        with contextlib.suppress(OSError):
            os.close(fd)
