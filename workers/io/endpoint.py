"""One end of a connection that the worker owns: a non-blocking socket registered with the event loop.

What platform.md calls traps is kept here, in one place: integer fds are registered, `close` always
unregisters first, the writer is armed only while something is left over, and a reader is paused lazily (a
pair of calls costs more than a recv), when it fires while its sink is full.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from workers.core.wheel import NEVER, Timed
from workers.io.sockets import Socket
from workers.io.tls import Stream, TlsStream

if TYPE_CHECKING:
    from workers.io.worker import Worker

# SO_LINGER with a time of zero: close sends RST and drops what is queued (man 7 socket).
_RESET: Final = struct.pack("ii", 1, 0)
_UNSPEC: Final = struct.pack("@H14x", socket.AF_UNSPEC)
_libc: Final = ctypes.CDLL(None, use_errno=True)


def reset(stream: Stream) -> None:
    """Closes `stream` with RST: what its peer got must not look like the whole (design, invariant 1)."""
    if isinstance(stream, TlsStream):
        stream.abort()
        return
    with contextlib.suppress(OSError):  # the peer may have reset it already
        cast(Socket, stream).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    stream.close()


def sever(stream: Stream, *, failed: bool) -> None:
    """Ends a connection of which another process has a duplicate, so that closing it would say nothing:
    with FIN, or with RST where it `failed` (connect(2): AF_UNSPEC dissolves the association)."""
    if failed and _libc.connect(stream.fileno(), _UNSPEC, len(_UNSPEC)) == 0:
        return
    with contextlib.suppress(OSError):  # the peer may have ended it already
        cast(Socket, stream).shutdown(socket.SHUT_RDWR)


def has_failed(stream: Stream) -> bool:
    """Whether the connection was reset, or failed otherwise; asking takes the error away. Two ends that
    were both sent in order are no failure, though the kernel calls that state closed, too."""
    try:
        return bool(cast(Socket, stream).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    except OSError:
        return True


class Endpoint(Timed):
    """A connection's socket, its left-over output and its place in the timeout wheel.

    Subclasses implement `on_readable`, `on_drained` (the left-over output was sent), `on_error` (the
    connection failed; it is to be closed) and `on_deadline`.
    """

    __slots__ = ("fd", "muted", "out", "reading", "secure", "sock", "worker", "writing")

    def __init__(self, worker: Worker, sock: Stream, fd: int) -> None:
        self.deadline = NEVER
        self.due = NEVER
        self.worker = worker
        self.sock = sock
        self.fd = fd  # -1 once closed
        self.out = b""  # what the kernel did not take yet; the source of it is paused meanwhile
        self.reading = False
        self.muted = False
        self.writing = False
        self.secure = False  # whether `sock` is a TlsStream

    def on_readable(self) -> None:
        """Bytes, an end or an error wait."""
        raise NotImplementedError

    def on_drained(self) -> None:
        """All left-over output was sent."""
        raise NotImplementedError

    def on_error(self, error: OSError) -> None:
        """The connection failed while it was written to."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Ends the connection, and what goes over it, at once."""
        raise NotImplementedError

    def resume(self) -> None:
        """Watches for bytes (again)."""
        if not self.reading and self.fd >= 0:
            self.reading = True
            self.muted = False
            self.worker.loop.add_reader(self.fd, self.read_all if self.secure else self.on_readable)
            if self.secure and self.tls_stream.pending():
                # The kernel knows nothing of what OpenSSL holds already.
                self.worker.loop.call_soon(self._read_held)

    def _read_held(self) -> None:
        if self.fd >= 0 and self.reading and self.tls_stream.pending():
            self.read_all()

    def read_all(self) -> None:
        """Reads what is there; of TLS also what is to be read before the loop is waited for."""
        self.on_readable()
        while self.secure and self._holds_more:
            self.on_readable()

    @property
    def tls_stream(self) -> TlsStream:
        """`sock`, where it is `secure`."""
        return cast(TlsStream, self.sock)

    @property
    def _holds_more(self) -> bool:
        return self.fd >= 0 and self.reading and self.tls_stream.deferred is not None

    def pause(self) -> None:
        """Stops reading: the sink is full, or the peer has sent its end. What is reset meanwhile is found
        when reading goes on."""
        if self.reading:
            self.reading = False
            self.worker.loop.remove_reader(self.fd)

    def mute(self) -> None:
        """Stops reading, but hears of a reset (`on_hangup`)."""
        if self.reading:
            self.reading = False
            self.muted = True
            self.worker.loop.mute_reader(self.fd, self._on_hangup)

    def _on_hangup(self) -> None:
        self.muted = False
        if has_failed(self.sock):
            self.on_error(ConnectionResetError("reset by the peer"))

    def expect(self, seconds: float) -> None:
        """Sets the deadline to `seconds` from now."""
        deadline = self.worker.now + seconds
        self.deadline = deadline
        if deadline < self.due:
            self.worker.wheel.move(self)

    def write(self, data: bytes | memoryview) -> None:
        """Sends at once what the kernel takes, and keeps the rest. The caller pauses the source while
        `out` is not empty, so that at most one more piece is ever added."""
        if self.out:
            self.out += data
            return
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.on_error(error)
            return
        if sent < len(data):
            self.out = bytes(data[sent:])
            self.writing = True
            self.worker.loop.add_writer(self.fd, self._on_writable)
            self.on_blocked()

    def on_blocked(self) -> None:
        """The kernel's buffer is full: subclasses bound how long."""

    def _on_writable(self) -> None:
        try:
            sent = self.sock.send(self.out)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.on_error(error)
            return
        self.out = self.out[sent:]
        if self.out:
            self.on_blocked()
            return
        self.unwatch_writing()
        self.on_drained()

    def unwatch_writing(self) -> None:
        """Takes the writer away, if there is one."""
        if self.writing:
            self.writing = False
            self.worker.loop.remove_writer(self.fd)

    def release(self) -> Stream:
        """Hands the socket out, as to a tunnel; this endpoint is closed then. A registered reader stays:
        the taker puts its own in its place at once, which costs no system call."""
        loop = self.worker.loop
        if self.muted:
            loop.remove_reader(self.fd)
        if self.writing:
            loop.remove_writer(self.fd)
        self.reading = self.muted = self.writing = False
        self._dismiss()
        return self.sock

    def close(self) -> None:
        """Closes the connection; harmless when it is closed."""
        if self.fd >= 0:
            self._forget()
            self.sock.close()

    def abort(self) -> None:
        """Closes with RST; harmless when it is closed."""
        if self.fd >= 0:
            self._forget()
            reset(self.sock)

    def _forget(self) -> None:
        self.worker.loop.forget(self.fd)
        self.reading = self.muted = self.writing = False
        self._dismiss()

    def _dismiss(self) -> None:
        self.worker.wheel.drop(self)
        self.deadline = NEVER
        self.fd = -1
        self.out = b""
