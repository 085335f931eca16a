"""The event loop of a worker: epoll, and what little a data plane needs besides.

Why not asyncio or uvloop here: libuv tests a descriptor with a pair of epoll_ctl when it is first watched and
stops watching it on EPOLLERR, so that a connection costs 6 epoll_ctl and 2 ioctl where 2 do, and a reset
that comes together with data is never reported. Measured with the same proxy on both: see docs/principles.md.

Everything is level-triggered, so a callback may leave work undone: it is called again. All methods are for
the loop's own thread; `call_threadsafe` is for the others.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

Callback = Callable[[], object]

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
# Errors and hang-ups are reported whatever is asked for; both the reader and the writer find out by trying.
_READ_EVENTS: Final = select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP
_WRITE_EVENTS: Final = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
# Turns that took longer are noted, in seconds; and those that somebody may have noticed are counted.
_NOTED: Final = 0.005
LONG_TURN: Final = 0.02
# Descriptors served in one turn: bounds how long timers, and who comes next, wait under load.
_BATCH: Final = 128


class Timer:
    """A call that is due at a time; see `Reactor.call_later`."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """The call is not made. May be used at any time, and twice."""
        self.callback = None


class Reactor:
    """Calls back when a descriptor is readable or writable, soon, or later, until `stop`."""

    def __init__(self, on_failure: Callable[[BaseException, Callback], None]) -> None:
        """`on_failure` hears of exceptions that a callback let through, and of the callback: a bug, which
        shall cost the one connection its life, but not the others theirs."""
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._muted: set[int] = set()  # readers that hear of errors and hang-ups alone
        self._kept: set[int] = set()  # readers that outlive a failure of theirs
        self._fresh: set[int] = set()  # watched since the events of this turn were fetched
        self._soon: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._on_failure = on_failure
        self._running = False
        self.longest = 0.0  # turn since whoever reads it set it to 0, in seconds; 0 where all were short
        self.long_turns = 0  # ever, of more than LONG_TURN
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._from_threads: deque[Callback] = deque()
        self.add_reader(self._wake_fd, self._woken)

    # --- descriptors ---------------------------------------------------------------------------------

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Calls `callback` whenever `fd` is readable, at its end, or failed. Replacing a reader costs no
        system call."""
        readers = self._readers
        if fd in readers:
            readers[fd] = callback
            if fd in self._muted:
                self._muted.discard(fd)
                self._watch(fd, True)
            return
        readers[fd] = callback
        if fd in self._writers:
            self._watch(fd, True)
        else:
            self._epoll.register(fd, _IN)
            self._fresh.add(fd)

    def keep_reader(self, fd: int) -> None:
        """A failure of the reader of `fd` does not end it: the process would be of no use without it."""
        self._kept.add(fd)

    def add_bell(self, fd: int, callback: Callback) -> None:
        """Calls `callback` once for every write to the eventfd `fd`, which is never read: edge-triggered, so
        that many processes can hear the same one (epoll(7))."""
        self._readers[fd] = callback
        self._epoll.register(fd, _IN | select.EPOLLET)

    def mute_reader(self, fd: int, callback: Callback) -> None:
        """Reads no more, but calls `callback`, once, when `fd` is reset or both its directions have ended:
        nothing is watched after that. What is not watched at all can be reset unnoticed."""
        watched = fd in self._readers or fd in self._writers
        self._readers[fd] = callback
        self._muted.add(fd)
        self._watch(fd, watched)

    def remove_reader(self, fd: int) -> None:
        """Stops that; harmless where there is no reader."""
        if self._readers.pop(fd, None) is not None:
            self._muted.discard(fd)
            if fd in self._writers:
                self._watch(fd, True)
            else:
                self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Watches `fd` no more, which is about to be closed and which no other process has: epoll forgets
        it by itself then (epoll(7), question 6)."""
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)
        self._muted.discard(fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Calls `callback` whenever `fd` is writable or failed."""
        writers = self._writers
        if fd not in writers:
            writers[fd] = callback
            self._watch(fd, fd in self._readers)
        else:
            writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        """Stops that; harmless where there is no writer."""
        if self._writers.pop(fd, None) is not None:
            self._watch(fd, True)

    def _watch(self, fd: int, watched: bool) -> None:
        """Tells the kernel what is wanted of `fd` now; `watched` is whether it knew it before."""
        reads = fd in self._readers
        writes = fd in self._writers
        if not (reads or writes):
            self._epoll.unregister(fd)
            return
        mask = (_IN if reads and fd not in self._muted else 0) | (_OUT if writes else 0)
        if watched:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
            self._fresh.add(fd)

    # --- calls ---------------------------------------------------------------------------------------

    def call_soon(self, callback: Callback) -> None:
        """Calls `callback` after the events of this turn."""
        self._soon.append(callback)

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Calls `callback` in `delay` seconds."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), timer))
        return timer

    def call_threadsafe(self, callback: Callback) -> None:
        """`call_soon` for other threads."""
        self._from_threads.append(callback)
        os.eventfd_write(self._wake_fd, 1)

    def in_thread(self, work: Callable[[], object], done: Callback) -> None:
        """Runs `work`, which must not raise, in a thread of its own, then `done` in the loop. For the few
        calls that block, such as getaddrinfo; their number is the caller's to bound."""

        def run() -> None:
            work()
            self.call_threadsafe(done)

        threading.Thread(target=run, daemon=True).start()

    def _woken(self) -> None:
        os.eventfd_read(self._wake_fd)
        while self._from_threads:
            self._soon.append(self._from_threads.popleft())

    # --- the loop ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs until `stop` is called."""
        self._running = True
        timers, soon = self._timers, self._soon
        monotonic = time.monotonic
        now = monotonic()
        while self._running:
            events = self._epoll.poll(self._patience(now), _BATCH)
            began = monotonic()
            self._dispatch(events)
            now = monotonic()
            if soon or (timers and timers[0][0] <= now):
                self._call_due(now)
                now = monotonic()
            if now - began > _NOTED:
                self._note(now - began)

    def _note(self, took: float) -> None:
        """A turn was long: whoever became ready meanwhile has waited for so many seconds."""
        if took > self.longest:
            self.longest = took
        if took > LONG_TURN:
            self.long_turns += 1

    def stop(self) -> None:
        """Ends `run` after this turn."""
        self._running = False

    def close(self) -> None:
        """Gives the loop's descriptors back."""
        self._epoll.close()
        os.close(self._wake_fd)

    def _patience(self, now: float) -> float:
        if self._soon:
            return 0.0
        return max(0.0, self._timers[0][0] - now) if self._timers else -1.0

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        readers = self._readers
        writers = self._writers
        fresh = self._fresh
        if fresh:
            fresh.clear()
        fd = -1
        callback: Callback | None = None
        left = iter(events)
        while True:
            try:
                for fd, happened in left:
                    if fresh and fd in fresh:
                        continue  # the number was closed and taken anew in this very turn
                    if happened == _IN:  # nearly always
                        if (callback := readers.get(fd)) is not None:
                            callback()
                        continue
                    if happened & _READ_EVENTS and (callback := readers.get(fd)) is not None:
                        if fd in self._muted:
                            self.remove_reader(fd)  # it would be reported for ever
                        callback()
                    if happened & _WRITE_EVENTS and (callback := writers.get(fd)) is not None:
                        callback()
                return
            except Exception as error:
                assert callback is not None
                self._on_failure(error, callback)
                self._forget(fd)

    def _forget(self, fd: int) -> None:
        """Level-triggered, a callback that fails would be called for ever."""
        if fd in self._kept:
            return
        # (Closed descriptors have left epoll by themselves.)
        with contextlib.suppress(OSError):
            self.remove_reader(fd)
        with contextlib.suppress(OSError):
            self.remove_writer(fd)

    def _call_due(self, now: float) -> None:
        timers = self._timers
        if timers and timers[0][0] <= now:
            callback = heapq.heappop(timers)[2].callback
            if callback is not None:
                self._call(callback)
        for _ in range(len(self._soon)):
            self._call(self._soon.popleft())

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:
            self._on_failure(error, callback)
