"""How much was read from a TCP socket, and written to it, by the kernel's own counts (tcp(7), TCP_INFO).

A socket's holder may die at any moment; these counts don't. They are of use only as differences: a SYN counts
as a byte that was written.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final, NamedTuple

from workers.io.sockets import Socket

# struct tcp_info of linux/tcp.h: the state is its first byte.
_BYTES: Final = struct.Struct("@QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_BYTES_AT: Final = 120
_SIZE: Final = _BYTES_AT + _BYTES.size
_INT: Final = struct.Struct("i")
_ROOM: Final = bytes(_INT.size)
# How often the counters are read anew while traffic changes them; each look takes about 2 us.
_TRIES: Final = 1000

CLOSE: Final = 7
# States in which the peer's FIN was received, and in which ours was sent. (CLOSE counts as both: where it is
# a reset, nothing can go on anyway.)
_FIN_RECEIVED: Final = frozenset((6, CLOSE, 8, 9, 11))  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING
_FIN_SENT: Final = frozenset(
    (4, 5, 6, CLOSE, 9, 11)
)  # FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, LAST_ACK, CLOSING


class Counts(NamedTuple):
    """Bytes read from a socket and written to it, and its state (net/tcp_states.h)."""

    read: int
    written: int
    state: int


class NotCounted(OSError):
    """The kernel doesn't count this socket's bytes, or they never stood still."""


def is_counted(sock: Socket) -> bool:
    """Whether the kernel counts what goes over `sock`: Unix sockets have no TCP_INFO."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def counts(sock: Socket) -> Counts:
    """The counts of the moment. For a socket that nobody reads or writes meanwhile they are exact: what the
    peer sends moves a counter and a queue by the same, so both are read until the counter was the same before
    and after. Raises `OSError`."""
    before = _info(sock)
    for _ in range(_TRIES):
        unread = queue(sock.fileno(), termios.FIONREAD)
        unacked = queue(sock.fileno(), termios.TIOCOUTQ)
        after = _info(sock)
        if after == before:
            state, acked, received = before
            return Counts(
                received - (state in _FIN_RECEIVED) - unread, acked + unacked - (state in _FIN_SENT), state
            )
        before = after
    raise NotCounted("its counters never stood still")


def _info(sock: Socket) -> tuple[int, int, int]:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    if len(info) < _SIZE:
        raise NotCounted("this kernel's TCP_INFO has no byte counters (Linux 4.1)")
    acked, received = _BYTES.unpack_from(info, _BYTES_AT)
    return info[0], acked, received


def queue(fd: int, request: int) -> int:
    """Bytes in a queue of the socket `fd`: SIOCINQ and SIOCOUTQ have the numbers of FIONREAD and TIOCOUTQ."""
    size: int = _INT.unpack(fcntl.ioctl(fd, request, _ROOM))[0]
    return size
