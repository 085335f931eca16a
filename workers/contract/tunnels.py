"""What a tunnel is when it is not in a worker's hands: the record of it, and what workers and keepers say.

Two conversations, each over a SOCK_SEQPACKET pair that the master makes (see `messages` for how a message
travels). Structs ignore fields that they don't know and have defaults for what an older release does not say,
so two releases can talk; `VERSION` changes where that would not be right.

Worker to worker (*hand-over*), batch by batch; the giver has stopped relaying what it offers::

    giver   Offer + two sockets (and a memfd where bytes wait) per tunnel
    taker   Ready          built, on the taker's ledger as COMING and with its keeper; nothing is relayed
    giver   Go             the giver's entries say GONE: from here on they are the taker's
    taker   Done           they are relayed, and the taker's entries say HELD
    giver   End            no more; what was offered and not told to go stays

Where the pair breaks before Go, the giver goes on with what it offered; the taker, or whoever succeeds it,
asks the giver's states on the ledger whose they are. A giver that lives always says End before it closes
the pair, so an end without it says that the giver is dead: then tunnels that are on no ledger are the
taker's, too.

Worker to keeper::

    worker  Hold + two sockets per tunnel       keep duplicates
    worker  Drop                                close them
    worker  Reclaim                             give back what my predecessor left
    keeper  Back + two sockets per tunnel       (the keeper keeps its own)
    keeper  BackEnd
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from workers.contract.messages import Message, receive_any
from workers.contract.snapshot import ListenerSpec, PoolSpec, RouteSpec, WebSocketSpec

VERSION: Final = 1
# Tunnels in a message: MAX_FDS allows for three descriptors each, MAX_BYTES for what clients send.
BATCH: Final = 64


class StreamRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One direction. `position` counts the bytes that came from its source, `shift` is that of the ledger's
    account. `left`, `ends_message` and `head` say where in a frame it stands (`core.frames`)."""

    position: int = 0
    shift: int = 0
    messages: int = 0
    left: int = 0
    ends_message: int = 0
    head: bytes = b""
    close_code: int | None = None
    lost: bool = False
    ended: bool = False
    untold: int = 0  # bytes that came and are not counted on the scoreboard yet
    waiting: int = 0  # bytes that the sink did not take: in the memfd, the client's stream first


class TunnelRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tunnel. Times are of CLOCK_MONOTONIC. `listener`, `route` and `pool` say whose rows it is counted on,
    and what to do with it where the configuration has them no more: they are cut down to that, and `pool`
    has the one server."""

    version: int = VERSION
    listener: ListenerSpec
    route: RouteSpec
    pool: PoolSpec
    settings: WebSocketSpec
    address: str = ""
    host: bytes = b""
    target: bytes = b""
    request_id: bytes = b""
    started: float
    seen: float
    closer: str = ""
    logged: bool = False
    # The kernel's counts where the streams began, as on the ledger: client read, client written, server read,
    # server written. `None` for a tunnel that is on no ledger.
    bases: tuple[int, int, int, int] | None = None
    entry: int = -1  # the giver's entry, and its serial
    serial: int = 0
    client: StreamRecord = StreamRecord()
    server: StreamRecord = StreamRecord()


# --- hand-over ---------------------------------------------------------------------------------------


class Offer(Message, frozen=True, kw_only=True):
    """These tunnels, in order; the descriptors are the client's and the server's socket of each, and a memfd
    after those whose `waiting` is not 0."""

    giver: int  # slot
    tunnels: tuple[TunnelRecord, ...]


class Ready(Message, frozen=True, kw_only=True):
    """The offered tunnels are built. `refused` are indexes of those that are not: they stay the giver's.
    `entries` has the taker's entry and serial of each offered one; the entry is -1 where it has none."""

    refused: tuple[int, ...] = ()
    entries: tuple[tuple[int, int], ...] = ()


class Go(Message, frozen=True, kw_only=True):
    """They are the taker's."""


class Done(Message, frozen=True, kw_only=True):
    """They are relayed. The giver may use its entries again."""


class End(Message, frozen=True, kw_only=True):
    """No more come; what was offered last, and has not gone, stays the giver's."""


# --- keepers -----------------------------------------------------------------------------------------


class Hold(Message, frozen=True, kw_only=True):
    """Keep these: (entry, serial) each; the descriptors are two per tunnel, client and server."""

    tunnels: tuple[tuple[int, int], ...]


class Drop(Message, frozen=True, kw_only=True):
    """They are over, or somebody else's: close your duplicates. With `reset` nobody has them any more, and
    their ends must not take that for an end in order."""

    entries: tuple[int, ...]
    reset: bool = False


class Reclaim(Message, frozen=True, kw_only=True):
    """Give back what the entries say is this slot's."""


class Back(Message, frozen=True, kw_only=True):
    """These are yours: entries, with the descriptors as in `Hold`. What waits is on the shelves."""

    entries: tuple[int, ...]


class BackEnd(Message, frozen=True, kw_only=True):
    """That was all. `lost` is how many could not be given back."""

    lost: int = 0


# --- master to keeper, and back ----------------------------------------------------------------------


class Attend(Message, frozen=True, kw_only=True):
    """A worker comes; its end of the pair is beside this message."""


class Settle(Message, frozen=True, kw_only=True):
    """The worker is gone for good: bring the ledger into a state that needs its buffer no more."""


class Settled(Message, frozen=True, kw_only=True):
    """Done; so many tunnels are held, and so many were closed since their bytes can't be proved."""

    held: int
    closed: int = 0


class KeeperReady(Message, frozen=True, kw_only=True):
    """The loop runs."""

    pid: int


class Leave(Message, frozen=True, kw_only=True):
    """Close everything and exit."""


class Ping(Message, frozen=True, kw_only=True):
    """Say that your loop runs."""


class Pong(Message, frozen=True, kw_only=True):
    """It does."""


Handover = Offer | Ready | Go | Done | End
Keeping = Hold | Drop | Reclaim | Back | BackEnd
ToKeeper = Attend | Settle | Leave | Ping
FromKeeper = Settled | KeeperReady | Pong

_handover: msgspec.msgpack.Decoder[Handover] = msgspec.msgpack.Decoder(Handover)
_keeping: msgspec.msgpack.Decoder[Keeping] = msgspec.msgpack.Decoder(Keeping)
_to_keeper: msgspec.msgpack.Decoder[ToKeeper] = msgspec.msgpack.Decoder(ToKeeper)
_from_keeper: msgspec.msgpack.Decoder[FromKeeper] = msgspec.msgpack.Decoder(FromKeeper)
_record_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(TunnelRecord)


def receive_handover(channel: socket.socket) -> tuple[Handover, list[int]] | None:
    """The next message of a hand-over; see `receive_any`."""
    return receive_any(channel, _handover)


def receive_keeping(channel: socket.socket) -> tuple[Keeping, list[int]] | None:
    """The next message between worker and keeper; see `receive_any`."""
    return receive_any(channel, _keeping)


def receive_in_keeper(channel: socket.socket) -> tuple[ToKeeper, list[int]] | None:
    """The next message of the master to a keeper; see `receive_any`."""
    return receive_any(channel, _to_keeper)


def receive_from_keeper(channel: socket.socket) -> tuple[FromKeeper, list[int]] | None:
    """The next message of a keeper to the master; see `receive_any`."""
    return receive_any(channel, _from_keeper)


def encode_record(record: TunnelRecord) -> bytes:
    """MessagePack bytes, for the ledger."""
    return _record_encoder.encode(record)


def decode_record(data: bytes) -> TunnelRecord:
    """The inverse. Raises `snapshot.DECODE_ERRORS`."""
    return _record_decoder.decode(data)
