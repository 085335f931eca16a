"""OpenSSL on a socket, without `ssl.SSLSocket` around it.

`SSLSocket` is a layer of Python over the C object that does the work: it makes two calls of every read and
write, and asks the kernel eight times per connection for what is known (4 ioctl, 2 getsockname,
2 getpeername). Here that C object is made as `SSLSocket` makes it, by `SSLContext._wrap_socket`. This is not
documented, but has been the same since Python 3.7, and gevent stands on it, too. All of that kind is in
this file.

Unlike in an `SSLSocket`, the engine stays after the end of TLS: a read then is an end, never ciphertext as
if it were data. It knows the descriptor by its number, so `CLOSED` has to take its place when that is closed.
"""

from __future__ import annotations

import errno
import os
import ssl
from _socket import socket as RawSocket
from typing import Any, Final, Protocol, cast

from workers.io.sockets import Socket


class Engine(Protocol):
    """The C object. All but `pending` and the properties raise `ssl.SSLError` (which `OSError` includes), of
    which `SSLWantReadError` and `SSLWantWriteError` mean: wait for the descriptor, and do the same again."""

    context: ssl.SSLContext

    def do_handshake(self) -> None:
        """Goes on with the handshake, to its end."""

    def read(self, size: int, buffer: bytearray | memoryview, /) -> int:
        """At most `size` bytes of plaintext into `buffer`: how many; 0 where the peer said close_notify."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Encrypts and sends all of `data`: its length."""

    def pending(self) -> int:
        """How much plaintext is decrypted already, in bytes."""

    def shutdown(self) -> object:
        """Sends close_notify, and reads until the peer's."""

    def version(self) -> str | None:
        """ "TLSv1.3" and the like; `None` before the handshake."""

    def selected_alpn_protocol(self) -> str | None:
        """What was agreed on, if anything."""


class _Closed:
    """As a closed socket behaves: there is nothing to read, and nothing can be done."""

    __slots__ = ()

    context: ssl.SSLContext

    def do_handshake(self) -> None:
        raise self._error()

    def read(self, size: int, buffer: bytearray | memoryview, /) -> int:
        raise self._error()

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        raise self._error()

    def pending(self) -> int:
        return 0

    def shutdown(self) -> object:
        raise self._error()

    def version(self) -> None:
        return None

    def selected_alpn_protocol(self) -> None:
        return None

    @staticmethod
    def _error() -> OSError:
        return OSError(errno.EBADF, os.strerror(errno.EBADF))


CLOSED: Final[Engine] = _Closed()


class TlsSocket(RawSocket):
    """A non-blocking socket with the engine on it. `server_name` is what the client asked for (SNI)."""

    __slots__ = ("__weakref__", "engine", "server_name")  # The engine needs to refer to it weakly.

    engine: Engine
    server_name: str | None

    @property
    def context(self) -> ssl.SSLContext:
        """What `SSLContext.sni_callback` replaces where another certificate is for the name."""
        return self.engine.context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        self.engine.context = context


def take_over(
    sock: Socket, context: ssl.SSLContext, *, server_side: bool, server_name: str | None
) -> TlsSocket:
    """TLS on `sock`, which is detached; the descriptor keeps its number. As a client, `server_name` is sent
    and checked against the certificate.

    Raises `ValueError` where the context checks names and there is none, or one that can't be a name; `sock`
    is still the caller's then."""
    if context.check_hostname and not server_name:
        raise ValueError("the certificate can't be checked without a name: set server_name")
    name = None if server_name is None else server_name.encode("idna").decode("ascii")
    if name is not None and (not name or name.startswith(".")):
        raise ValueError(f"{server_name!r} is no name of a server")
    taken = TlsSocket(sock.family, sock.type, sock.proto, sock.detach())
    taken.setblocking(False)
    taken.server_name = server_name
    taken.engine = cast(Any, context)._wrap_socket(taken, server_side, name)
    return taken
