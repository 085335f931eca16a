"""The sockets of connections: non-blocking streams, in C where that is compiled (`_native.c`).

CPython's sockets serve every use there is. They ask the kernel for what is known here (an ioctl and a
getsockname for each connection that is accepted), take addresses apart for each connect, and give the GIL
back around calls that never wait. Both kinds are used alike; CPython's are what runs where nothing was
compiled, and what says how the other kind shall behave.
"""

from __future__ import annotations

import os
import socket
import struct
from _socket import socket as RawSocket
from collections.abc import Callable
from typing import Any, Final, Protocol, cast, overload

from workers.contract.native import native

_STREAM: Final = int(socket.SOCK_STREAM) | int(socket.SOCK_NONBLOCK)


class Socket(Protocol):
    """A connected socket, or one that is about to be. What asks the kernel raises `OSError`."""

    @property
    def family(self) -> int:
        """`AF_INET`, `AF_INET6` or `AF_UNIX`."""

    @property
    def type(self) -> int:
        """`SOCK_STREAM`."""

    @property
    def proto(self) -> int:
        """Of `socket(2)`: 0, which of a family's stream protocols is the one."""

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on."""

    def close(self) -> None:
        """Closes; a second call does nothing."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """At most `size` bytes."""

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        """Bytes received, 0 at the end."""

    def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """Bytes that the kernel took."""

    def shutdown(self, how: int, /) -> None:
        """`SHUT_WR` ends our direction."""

    def connect_ex(self, address: Any, /) -> int:
        """Connects to what `packed` made; returns an errno, 0 where the connection stands."""

    def getpeername(self) -> object:
        """Raises where there is no peer, as when it has left before."""

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """setsockopt(2)."""

    @overload
    def getsockopt(self, level: int, option: int, /) -> int: ...
    @overload
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


Accept = Callable[[], tuple[Socket, str] | None]


def adopted(fd: int) -> Socket:
    """The socket of the descriptor `fd`, which is taken over, made non-blocking. Raises `OSError` where it is
    none; the descriptor is still the caller's then."""
    sock = RawSocket(fileno=fd)
    try:
        sock.setblocking(False)
    except OSError:
        sock.detach()
        raise
    return sock if native is None else cast(Socket, native.adopted(sock.detach(), sock.family))


def _opened(family: int) -> Socket:
    sock = RawSocket(family, _STREAM)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


# A new socket of a family, with TCP_NODELAY. Raises `OSError`: descriptors or memory are short.
opened: Final[Callable[[int], Socket]] = _opened if native is None else native.opened


def acceptor(listening: RawSocket) -> Accept:
    """What accepts a connection each time that it is called: the socket and the address of its peer (empty
    for a Unix socket), or `None` where none waits or it left meanwhile. Raises other `OSError`: accept(2)."""
    if native is not None:
        accepted, fd = native.accepted, listening.fileno()
        return lambda: accepted(fd)
    accept = cast(Any, listening)._accept  # socket.accept without building a socket.socket, which costs 2 us
    family = listening.family

    def accept_one() -> tuple[Socket, str] | None:
        try:
            fd, address = accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        sock = RawSocket(family, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        return sock, address[0] if isinstance(address, tuple) else ""

    return accept_one


def packed(family: int, sockaddr: Any) -> Any:
    """What `Socket.connect_ex` takes for the address `sockaddr` of Python's sockets: packed as the kernel
    wants it, once instead of with each connect."""
    if native is None:
        return sockaddr
    if family == socket.AF_UNIX:  # unix(7): a NUL in front is the abstract kind, which has none behind
        path = os.fsencode(sockaddr)
        return struct.pack("@H", family) + path + (b"" if path.startswith(b"\0") else b"\0")
    port = struct.pack("!H", sockaddr[1])
    address = socket.inet_pton(family, sockaddr[0].partition("%")[0])
    if family == socket.AF_INET:
        return struct.pack("@H2s4s8x", family, port, address)
    flow, scope = sockaddr[2:]
    return struct.pack("@H2s4s16sI", family, port, struct.pack("!I", flow), address, scope)
