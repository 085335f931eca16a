"""TLS behind the interface of a plain non-blocking socket.

The engine sits on the socket itself (`workers.io.tls_engine`): it costs about what memory BIOs cost, keeps no
buffer while it is idle, and is the only way that can come to kernel TLS. What differs from a plain socket
is hidden here, above all three things that lose or repeat bytes when left to OpenSSL: a blocked write,
a half-close, and a connection that ends without close_notify.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import socket
import ssl
import struct
from typing import Final, Protocol

from workers.io.sockets import Socket
from workers.io.tls_engine import CLOSED, take_over
from workers.io.tls_errors import TlsError, TlsTruncated, failure

__all__ = ["RECORD", "Handshake", "Stream", "TlsError", "TlsStream", "TlsTruncated"]

# RFC 8446 section 5.1: no record carries more plaintext.
RECORD: Final = 16384

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Stream(Protocol):
    """What the relay code needs. A non-blocking `socket.socket` is one as it is, `TlsStream` another."""

    def fileno(self) -> int:
        """The descriptor to register; -1 once closed."""

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        """Bytes received, 0 at the end. Raises `BlockingIOError` or another `OSError`."""

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """Bytes accepted. Raises `BlockingIOError` or another `OSError`."""

    def shutdown(self, how: int, /) -> None:
        """`SHUT_WR` ends our direction; reading goes on."""

    def close(self) -> None:
        """Closes; a second call does nothing."""


class Handshake(enum.Enum):
    """What a handshake needs next."""

    WANT_READ = "want-read"
    WANT_WRITE = "want-write"
    DONE = "done"


class TlsStream:
    """One TLS connection over a connected socket, used like a plain non-blocking socket.

    The stream takes the socket over (`sock` is detached, the descriptor keeps its number). First call
    `handshake` until it says `DONE`; then:

    - After `recv_into`, go on until it raises `BlockingIOError` or `pending` is 0: the kernel reports
      nothing of what OpenSSL holds already.
    - `send` takes as much as a plain socket would. Where it raises `BlockingIOError`, or took a part, wait
      until the descriptor is writable and offer the rest, beginning with the same bytes, from any buffer.
    - An `OSError` other than `BlockingIOError` is final: `abort()`. Only `TlsTruncated` may be taken for
      an end, by a caller that knows the message to be complete.

    A read never waits for a write, nor a write for a read: renegotiation is off in both contexts.
    """

    __slots__ = ("_engine", "_notify", "_read", "_socket", "_unsent", "_write", "deferred")

    def __init__(
        self,
        sock: Socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None = None,
    ) -> None:
        """Wraps `sock`. As a client, `server_name` is sent (SNI) and checked against the certificate.

        Raises `OSError` where the peer is gone (the socket is closed then), and `ValueError` where the
        context checks names and there is no `server_name` (the socket is still the caller's).
        """
        try:
            sock.getpeername()
        except OSError:  # It left already: no need for the engine, which costs a few KiB.
            sock.close()
            raise
        self._socket = take_over(sock, context, server_side=server_side, server_name=server_name)
        self._engine = engine = self._socket.engine
        # Bound once. They stay right for as long as the descriptor is ours: `_release` replaces them, since
        # the engine would go on with whoever gets the number next.
        self._read = engine.read
        self._write = engine.write
        # Public because it is asked for after every read: with a buffer of a record or more, this is all that
        # `pending` can count, and an attribute costs a tenth of the call.
        # What the next read has to deliver before OpenSSL is asked: plaintext, or how the stream failed.
        self.deferred: bytes | TlsError | None = None
        # The plaintext of a record that OpenSSL has encrypted and the kernel has not taken whole.
        self._unsent: bytes | None = None
        # The rest of our close_notify; empty once it is sent.
        self._notify: bytes | None = None

    def handshake(self) -> Handshake:
        """Goes on with the handshake, and says what to wait for.

        Raises `TlsError`: "plain_http" (see `send_plain`), "not_tls", "version", "no_shared_cipher",
        "verify_failed", "certificate_rejected", "name_rejected", "closed", "reset" or "protocol". The
        peer has been sent an alert where TLS has one.
        """
        try:
            self._engine.do_handshake()
        except ssl.SSLWantReadError:
            return Handshake.WANT_READ
        except ssl.SSLWantWriteError:
            return Handshake.WANT_WRITE
        except OSError as error:
            raise failure(error) from error
        return Handshake.DONE

    @property
    def version(self) -> str:
        """ "TLSv1.2" or "TLSv1.3" once the handshake is done; empty before."""
        return self._engine.version() or ""

    @property
    def alpn(self) -> str:
        """The protocol that was agreed on; empty where none was."""
        return self._engine.selected_alpn_protocol() or ""

    @property
    def server_name(self) -> str | None:
        """The name that the client asked for, lower case, or `None` where it sent none."""
        return self._socket.server_name

    def fileno(self) -> int:
        """The descriptor, the same as before TLS; -1 once closed."""
        return self._socket.fileno()

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:
        """As `socket.getsockopt`."""
        return (
            self._socket.getsockopt(level, option, size) if size else self._socket.getsockopt(level, option)
        )

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        """Plaintext into `buffer` (not empty): how many bytes, 0 at a clean end (close_notify).

        Raises `BlockingIOError` when the descriptor has to become readable first, `TlsTruncated` when the
        connection ended without close_notify, and `TlsError` when it broke ("reset", "protocol"); both again
        at every further read.
        """
        if self.deferred is not None:
            return self._recv_deferred(buffer)
        try:
            received = self._read(len(buffer), buffer)
        except ssl.SSLWantReadError:
            raise BlockingIOError(errno.EAGAIN, "no whole record is here yet") from None
        except ssl.SSLZeroReturnError:  # what close_notify becomes once we have sent ours
            return 0
        except OSError as error:
            raise self._fail_read(error) from error
        # A full record is seldom the last one, and the loop's turn costs more than a read in vain.
        if received == RECORD and len(buffer) > RECORD:
            return self._recv_more(buffer, received)
        return received

    def _recv_more(self, buffer: bytearray | memoryview, received: int) -> int:
        with memoryview(buffer) as view:
            count = RECORD
            while count == RECORD and received < len(view):
                with view[received:] as room:
                    count = self._read_more(room)
                received += count
        return received

    def _read_more(self, room: memoryview) -> int:
        """Reads another record: its length; 0 where there is none, and the next read will say why."""
        try:
            return self._read(len(room), room)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return 0
        except OSError as error:
            self._fail_read(error)
            return 0

    def _fail_read(self, error: OSError) -> TlsError:
        """What `error` means to the caller, now and at every read to come."""
        self.deferred = broken = failure(error)
        return broken

    def _recv_deferred(self, buffer: bytearray | memoryview) -> int:
        deferred = self.deferred
        assert deferred is not None
        if not isinstance(deferred, bytes):
            try:
                raise deferred
            finally:
                del deferred  # Its traceback holds this frame.
        count = min(len(deferred), len(buffer))
        buffer[:count] = deferred[:count]
        if count:
            self.deferred = deferred[count:] or None
        return count

    def pending(self) -> int:
        """How much can be read without a readable descriptor, in bytes; 0 means wait for it."""
        deferred = self.deferred
        if deferred is None:
            return self._engine.pending()
        return len(deferred) if isinstance(deferred, bytes) else 1

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """Encrypts and sends as much of `data` as the kernel takes, in records of 16 KiB: how many bytes.

        Raises `BlockingIOError` where that is nothing. A record that the kernel took in part is kept (at
        most 16 KiB) and finished by the next call, which has to begin with the same bytes: `ValueError`
        where it does not, since these are on their way already. `TlsError` when the connection broke.
        """
        size = len(data)
        if size > RECORD or self._unsent is not None:
            return self._send_records(data)
        if not size:
            return 0
        try:
            return self._write(data)
        except ssl.SSLWantWriteError:
            self._unsent = bytes(data)
        except OSError as error:
            raise failure(error) from error
        raise BlockingIOError(errno.EAGAIN, "the kernel takes no more")

    def _send_records(self, data: bytes | bytearray | memoryview) -> int:
        with memoryview(data) as view:
            sent = self._send_unsent(view)
            while sent < len(view) and self._unsent is None:
                with view[sent : sent + RECORD] as record:
                    sent += self._send_record(record)
        if not sent:
            raise BlockingIOError(errno.EAGAIN, "the kernel takes no more")
        return sent

    def _send_record(self, record: memoryview) -> int:
        """Sends a record: its length, or 0 where the kernel did not take it whole; it is unsent then."""
        try:
            return self._write(record)
        except ssl.SSLWantWriteError:
            # OpenSSL must be given this record again whatever became of the caller's buffer.
            self._unsent = bytes(record)
            return 0
        except OSError as error:
            raise failure(error) from error

    def _send_unsent(self, view: memoryview) -> int:
        """Finishes the record that is under way: its length, 0 where there is none."""
        unsent = self._unsent
        if unsent is None:
            return 0
        if bytes(view[: len(unsent)]) != unsent:
            raise ValueError("a send that blocked has to be repeated with the same bytes first")
        try:
            self._write(unsent)
        except ssl.SSLWantWriteError:
            raise BlockingIOError(errno.EAGAIN, "the kernel takes no more") from None
        except OSError as error:
            raise failure(error) from error
        self._unsent = None
        return len(unsent)

    def shutdown(self, how: int, /) -> None:
        """As `socket.shutdown`: `SHUT_WR` is `shutdown_write`, which may raise `BlockingIOError`."""
        if how != socket.SHUT_WR:
            raise ValueError("TLS can only be shut down for writing: close() or abort() ends both directions")
        self.shutdown_write()

    def shutdown_write(self) -> None:
        """Ends our direction with close_notify (RFC 8446 section 6.1); reading goes on. Once is enough, a
        further call does nothing.

        Raises `BlockingIOError` where the kernel took it in part: call again when writable. `ValueError`
        while a `send` is unfinished: finish it, or `abort()`. `OSError` when the connection broke, or
        when there are no descriptors left (three are needed for a moment).
        """
        if self._unsent is not None:
            raise ValueError("a record is sent in part: send the rest first, or abort()")
        if self._notify is None:
            self._notify = self._close_notify()
        while self._notify:
            sent = self._socket.send(self._notify)
            self._notify = self._notify[sent:]

    def _close_notify(self) -> bytes:
        """Our close_notify, encrypted.

        The engine's `shutdown` does not stop at sending it: it goes on to read the peer's, and throws away
        the record that it finds instead. So OpenSSL gets what it has read already taken from it, and an empty
        socket under its descriptor for as long as it shuts down. The descriptor's registration with the
        event loop belongs to the socket that `saved` holds, so it is not touched.
        """
        if isinstance(self.deferred, TlsError):
            raise self.deferred
        if held := self._engine.pending():
            room = bytearray(held)
            count = self._read(held, room)
            self.deferred = (self.deferred or b"") + room[:count]
        descriptor = self._socket.fileno()
        empty, written = socket.socketpair()
        with empty, written:
            empty.setblocking(False)
            saved = os.dup(descriptor)
            try:
                os.dup2(empty.fileno(), descriptor, inheritable=False)
                self._unwrap()
            finally:
                os.dup2(saved, descriptor, inheritable=False)
                os.close(saved)
            written.setblocking(False)
            return written.recv(RECORD)

    def _unwrap(self) -> None:
        try:
            self._engine.shutdown()
        except ssl.SSLWantReadError:
            return  # Sent, and the peer's is not here yet.
        except OSError as error:
            raise failure(error) from error
        # The peer had ended its direction before: every read says so.
        self.deferred = b""

    def send_plain(self, data: bytes) -> None:
        """Answers a client that spoke plain HTTP (`handshake` failed with "plain_http") in plain: best
        effort, in one piece. Then `close`."""
        # What is left unread would turn the close into a reset, which takes the answer with it.
        with contextlib.suppress(BlockingIOError):
            self._socket.recv(65536)
        self._socket.send(data)

    def close(self) -> None:
        """Says close_notify if it can be said at once, and closes. Data that was not sent is lost, and
        the peer can tell. A second call does nothing."""
        if self._socket.fileno() < 0:
            return
        if self._unsent is None and self._notify is None and not isinstance(self.deferred, TlsError):
            # The peer may be gone, or the handshake not done: then there is nobody to tell.
            with contextlib.suppress(OSError, ValueError):
                self._engine.shutdown()
        self._release()

    def abort(self) -> None:
        """Closes with a reset (RST), so that nobody takes this for an end. A second call does nothing."""
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        finally:
            self._release()

    def _release(self) -> None:
        self._unsent = self.deferred = None
        self._engine = self._socket.engine = CLOSED
        self._read = CLOSED.read
        self._write = CLOSED.write
        self._socket.close()
