"""What the master and its workers say to each other, and how it travels.

One Unix SOCK_SEQPACKET pair per child. A message is one datagram: a MessagePack tagged struct of at most
`MAX_BYTES` with at most `MAX_FDS` descriptors (SCM_RIGHTS; the kernel takes 253). What is larger goes into
a sealed memfd. A truncated datagram has lost descriptors or bytes for good, so it is an error.

A reload in messages: `Attach`* and `Prepare` -> `Prepared` or `Refused`; then `Commit` -> `Committed`, or
`Abort`. The first configuration of a fresh worker comes the same way, so there is one path.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from workers.contract.snapshot import DECODE_ERRORS

MAX_BYTES = 64 * 1024
MAX_FDS = 253
_SPACE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base of all messages."""


# --- what a descriptor beside a message is -----------------------------------------------------------


class ListenerFd(Message, frozen=True, kw_only=True):
    """A listening socket for the listener `listener` (its name) bound to `address` (canonical).
    `home` is the worker slot that it was made for: a worker may serve a retired sibling's too."""

    listener: str
    address: str
    home: int


class CertificateFd(Message, frozen=True, kw_only=True):
    """A memfd with chain and key in PEM, for `listener` and `certificate` (`CertificateSpec.name`)."""

    listener: str
    certificate: str


class SnapshotFd(Message, frozen=True, kw_only=True):
    """A sealed memfd with an encoded `Snapshot`."""


class AccessLogFd(Message, frozen=True, kw_only=True):
    """The access log's file, opened for appending (absent when it is off)."""


FdRole = ListenerFd | CertificateFd | SnapshotFd | AccessLogFd


# --- tunnels, as the admin API sees them --------------------------------------------------------------


class TunnelFilter(Message, frozen=True, kw_only=True):
    """What a tunnel must match; empty fields match all. `client` is an address, or the start of one;
    `older` and `idle` are seconds at the least."""

    numbers: tuple[int, ...] = ()
    route: str = ""
    pool: str = ""
    server: str = ""
    client: str = ""
    older: float = 0.0
    idle: float = 0.0


class TunnelReport(Message, frozen=True, kw_only=True):
    """One tunnel. Bytes and messages are counted by who sent them; -1 where frames are not inspected."""

    number: int  # unique in its worker process, growing
    route: str
    pool: str
    server: str
    client: str
    host: str
    path: str
    request_id: str
    age: float  # seconds
    idle: float  # seconds since a byte passed
    client_bytes: int
    server_bytes: int
    client_messages: int
    server_messages: int
    tls: bool
    crash_safe: bool = False  # whether it would outlive its worker with every byte


# --- master to worker --------------------------------------------------------------------------------


class Attach(Message, frozen=True, kw_only=True):
    """More descriptors for the `Prepare` of `generation` that follows; `roles[i]` says what fd i is."""

    generation: int
    roles: tuple[FdRole, ...]


class Prepare(Message, frozen=True, kw_only=True):
    """Build everything for this configuration, but serve nothing of it yet. The descriptors are those
    of this message and of the `Attach` before it. The listeners are all that this worker shall serve
    afterwards: what it has and is not among them is accepted empty and closed at commit."""

    generation: int
    roles: tuple[FdRole, ...]


class Commit(Message, frozen=True, kw_only=True):
    """Serve `generation` from now on."""

    generation: int


class Abort(Message, frozen=True, kw_only=True):
    """Forget what was prepared for `generation`."""

    generation: int


class ReopenLogs(Message, frozen=True, kw_only=True):
    """The access log was reopened: write to the descriptor beside this message from now on."""


class Stop(Message, frozen=True, kw_only=True):
    """Stop accepting (the accept queue is served first), end what is in flight, close what is left after
    `grace` seconds, and exit. `grace = 0` stops at once. A second `Stop` replaces the first. Tunnels are
    closed politely over the time that `drain.spread` and `grace` leave; those that can be handed over are
    left alone where `hand_over` is set: `Give` comes for them."""

    grace: float
    hand_over: bool = False


class Keep(Message, frozen=True, kw_only=True):
    """This is the way to your keeper (the descriptor beside this message, see `tunnels`): let it hold your
    tunnels. A second one replaces the first, whose keeper is gone. With `reclaim` it has tunnels of a
    predecessor: ask for them once you serve."""

    reclaim: bool = False


class Give(Message, frozen=True, kw_only=True):
    """Hand over up to `count` tunnels to the worker in slot `taker`, which has the other end of the pair
    beside this message; answered by `Given`."""

    transfer: int
    taker: int
    count: int
    reason: Literal["retire", "rebalance", "upgrade"]


class Take(Message, frozen=True, kw_only=True):
    """Take over what comes over the pair beside this message."""

    transfer: int
    giver: int
    reason: Literal["retire", "rebalance", "upgrade"]


class MoveTunnels(Message, frozen=True, kw_only=True):
    """Ask up to `count` clients of tunnels that match to come again, with a Close frame each over `spread`
    seconds, and send those who come again within `until` (monotonic) to the server `target` of the pool
    `pool` (empty: to whom the pool's balance chooses, but not to where they were), at most `total` of
    them and as long as it has less than `aim` tunnels; answered by `TunnelsClosed`."""

    request: int
    where: TunnelFilter
    count: int
    code: int
    spread: float
    until: float
    pool: str
    total: int  # in all workers; a client may come again to another
    target: str = ""
    aim: int = 0
    reason: str = ""


class ListTunnels(Message, frozen=True, kw_only=True):
    """Tell about the tunnels that match; answered by `Tunnels` with the same `request`."""

    request: int
    where: TunnelFilter
    after: int = 0  # only tunnels with a higher number: where the last page ended
    limit: int = 100


class CloseTunnels(Message, frozen=True, kw_only=True):
    """Close the tunnels that match, each with a Close frame (RFC 6455 section 5.5.1) to both sides, evenly
    over `spread` seconds; answered by `TunnelsClosed` with the same `request` as soon as it is planned."""

    request: int
    where: TunnelFilter
    code: int
    reason: str = ""
    spread: float = 0.0


# --- worker to master --------------------------------------------------------------------------------


class Ready(Message, frozen=True, kw_only=True):
    """The event loop runs and the channel is read."""

    pid: int


class Prepared(Message, frozen=True, kw_only=True):
    """`generation` can be committed."""

    generation: int


class Refused(Message, frozen=True, kw_only=True):
    """`generation` can't be served here; `error` is for the operator."""

    generation: int
    error: str


class Committed(Message, frozen=True, kw_only=True):
    """`generation` is served."""

    generation: int


class Tunnels(Message, frozen=True, kw_only=True):
    """One page, by number. `more` says that there are others behind the last; `total` counts all that
    match, on this page or not."""

    request: int
    tunnels: tuple[TunnelReport, ...]
    total: int
    more: bool


class TunnelsClosed(Message, frozen=True, kw_only=True):
    """So many tunnels are being closed."""

    request: int
    count: int


class Given(Message, frozen=True, kw_only=True):
    """The hand-over `transfer` is over: so many went; `error` where it broke off, and the rest stayed."""

    transfer: int
    count: int
    error: str = ""


class Reclaimed(Message, frozen=True, kw_only=True):
    """What the keeper had of the predecessor is relayed again: `restored` tunnels; `closed` could not be
    proved, or had nothing to go on with, and were reset."""

    restored: int
    closed: int


AnyMessage = (
    Attach
    | Prepare
    | Commit
    | Abort
    | ReopenLogs
    | Stop
    | Keep
    | Give
    | Take
    | ListTunnels
    | CloseTunnels
    | MoveTunnels
    | Ready
    | Prepared
    | Refused
    | Committed
    | Tunnels
    | TunnelsClosed
    | Given
    | Reclaimed
)


class ChannelError(ConnectionError):
    """The channel can't be trusted any more: truncated, malformed, or too large a message."""


class DescriptorsLost(ChannelError):
    """`message` came, but not all of its descriptors: this process may open no more."""

    def __init__(self, message: object) -> None:
        super().__init__("not all descriptors of a message could be taken; raise the limit of open files")
        self.message = message


_Any = TypeVar("_Any")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def pair() -> tuple[socket.socket, socket.socket]:
    """A channel: (master's end, child's end), both non-blocking and close-on-exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def send(channel: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Sends one message with its descriptors, whole or not at all.

    Raises `BlockingIOError` when the peer's queue is full (nothing was sent), `ChannelError` when the
    message is over the limits, `OSError` when the peer is gone.
    """
    data = _encoder.encode(message)
    if len(data) > MAX_BYTES or len(fds) > MAX_FDS:
        raise ChannelError(f"{type(message).__name__} is over the limits: {len(data)} bytes, {len(fds)} fds")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([data], ancillary)


def receive(channel: socket.socket) -> tuple[AnyMessage, list[int]] | None:
    """The next message of a worker's channel; see `receive_any`."""
    return receive_any(channel, _decoder)


def receive_any(
    channel: socket.socket, decoder: msgspec.msgpack.Decoder[_Any]
) -> tuple[_Any, list[int]] | None:
    """The next message and its descriptors (close-on-exec, now the caller's); `None` when the peer closed.

    Raises `BlockingIOError` when nothing waits, and `ChannelError` when the datagram was truncated or is
    no message (`DescriptorsLost` where the message itself is whole); descriptors that came with it are closed
    then.
    """
    data, ancillary, flags, _ = channel.recvmsg(MAX_BYTES + 1, _SPACE, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % 4
            fds.extend(array.array("i", payload[:whole]))
    if not data and not fds:
        return None
    try:
        if flags & socket.MSG_TRUNC:
            raise ChannelError("truncated message")
        message = decoder.decode(data)
        if flags & socket.MSG_CTRUNC:
            raise DescriptorsLost(message)
        return message, fds
    except (ChannelError, *DECODE_ERRORS) as error:
        for fd in fds:
            socket.close(fd)
        if isinstance(error, ChannelError):
            raise
        raise ChannelError(f"malformed message: {error}") from error
