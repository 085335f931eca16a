"""Numbered messages whose every byte the receiver knows beforehand, so that nothing can be lost, repeated,
exchanged or altered unseen; and the account of what was.

Message `number` of one direction of a tunnel is a head of 32 characters (who, which way, which number, how
long) and a piece of a text that every process makes alike. Its place in that text, and where the profile
says so its length, follow from the number. The receiver builds the message that must come next and compares
all of it.
"""

from __future__ import annotations

import random
import urllib.parse
from collections import Counter
from typing import Final, Literal

import msgspec

SIZES: Final = (32, 1024, 20 * 1024, 200 * 1024)  # bytes
# How often each size comes, in 64 messages of the profile "mix".
_SHARES: Final = (39, 17, 7, 1)
_MIX: Final = [size for size, share in zip(SIZES, _SHARES, strict=True) for _ in range(share)]
random.Random(1).shuffle(_MIX)
LARGEST: Final = 1024 * 1024
HEAD: Final = 32  # characters
MESSAGE, END = "m", "e"
_TEXT: Final = random.Random(20).randbytes(LARGEST * 2).hex().encode()
_PLACES: Final = len(_TEXT) - LARGEST

Side = Literal["c", "s"]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What both ends of a tunnel do. The client tells the server in the query of its request."""

    tunnel: int = 0
    profile: str = "mix"  # "mix", "flood" (sizes up to 1 MiB, as fast as it goes), or a number of bytes
    rate: float = 1.0  # messages a second, each way; a flood has none
    deflate: bool = False  # permessage-deflate, RFC 7692
    half: Literal["", "c", "s"] = ""  # who ends its direction after a few messages, and only that
    slow: Literal["", "c", "s"] = ""  # who reads slowly ...
    read: int = 0  # ... at so many bytes a second

    def target(self) -> str:
        """The request target that says all this."""
        fields = {name: value for name, value in msgspec.to_builtins(self).items() if value}
        return "/chaos?" + urllib.parse.urlencode(fields)

    @classmethod
    def parse(cls, target: str) -> Terms:
        """The terms in a request target. Raises `msgspec.ValidationError`."""
        pairs = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(target).query))
        deflate = pairs.pop("deflate", "") == "True"
        return msgspec.structs.replace(msgspec.convert(pairs, cls, strict=False), deflate=deflate)


class Tally:
    """What the tunnels of one process, or of all, came to."""

    __slots__ = (
        "closed",
        "corrupt",
        "duplicated",
        "finished",
        "longest",
        "lost",
        "opened",
        "received",
        "received_bytes",
        "refused",
        "sent",
    )

    def __init__(self) -> None:
        self.opened = 0
        self.refused = 0  # handshakes without a tunnel
        self.finished = 0  # tunnels of which both ends say that all has come
        self.sent = 0  # messages
        self.received = 0  # messages, right and in their turn
        self.received_bytes = 0
        self.lost = 0
        self.duplicated = 0
        self.corrupt = 0
        self.longest = 0.0  # seconds without a message on a tunnel that should have had one; since last asked
        self.closed: Counter[str] = Counter()  # tunnels that ended before they should, by code or how

    def add(self, other: Tally) -> Tally:
        """Adds the account of another process; returns this one."""
        for name in Tally.__slots__:
            if name == "closed":
                self.closed.update(other.closed)
            elif name == "longest":
                self.longest = max(self.longest, other.longest)
            else:
                setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def fields(self) -> dict[str, object]:
        """All of it, for JSON."""
        return {name: getattr(self, name) for name in Tally.__slots__}

    @classmethod
    def of(cls, fields: dict[str, object]) -> Tally:
        """What `fields` was made of."""
        tally = cls()
        for name in Tally.__slots__:
            setattr(tally, name, fields[name])
        tally.closed = Counter(tally.closed)
        return tally


def size_of(terms: Terms, number: int) -> int:
    """The length of message `number`, in bytes."""
    if terms.profile == "mix":
        return _MIX[(number * 7 + terms.tunnel) % len(_MIX)]
    if terms.profile == "flood":
        mixed = (number * 2_654_435_761 + terms.tunnel * 40_503) & 0xFFFF_FFFF
        octave = HEAD << (mixed >> 16) % 16  # as many of 32 bytes as of 1 MiB
        return min(LARGEST, octave + mixed % octave)
    return max(HEAD, min(LARGEST, int(terms.profile)))


def message(terms: Terms, side: Side, number: int, kind: str = MESSAGE) -> bytes:
    """Message `number` (the first is 0) from `side`. One of kind END says with its number how many were."""
    size = HEAD if kind == END else size_of(terms, number)
    at = (number * 104_729 + terms.tunnel * 7_919 + (side == "s") * 1_299_709) % _PLACES
    head = b"lb%b%b%08x%012x%08x" % (side.encode(), kind.encode(), terms.tunnel, number, size)
    return head + _TEXT[at : at + size - HEAD]


class Incoming:
    """What one end of a tunnel gets: `take` each message, and `tally` has what was wrong with it."""

    __slots__ = ("ended", "next", "side", "tally", "terms")

    def __init__(self, terms: Terms, side: Side, tally: Tally) -> None:
        self.terms = terms
        self.side = side
        self.tally = tally
        self.next = 0
        self.ended = False  # the other end has sent all that it will

    def take(self, payload: bytes) -> None:
        """Compares a message with the one that must come."""
        if payload == message(self.terms, self.side, self.next):
            self.next += 1
            self.tally.received += 1
            self.tally.received_bytes += len(payload)
        else:
            self._judge(payload)

    def _judge(self, payload: bytes) -> None:
        number = self._number(payload)
        if number is None:
            self.tally.corrupt += 1
            self.next += 1
        elif number < self.next or self.ended:
            self.tally.duplicated += 1
        else:
            self.tally.lost += number - self.next
            self.next = number
            if payload[3:4] == END.encode():
                self.ended = True
            else:
                self.take(payload)

    def _number(self, payload: bytes) -> int | None:
        """Which message of this direction `payload` is; `None` where it is none, or altered."""
        try:
            kind, number = payload[3:4].decode("ascii"), int(payload[12:24], 16)
        except ValueError:
            return None
        if kind not in (MESSAGE, END) or number > self.next + (1 << 32):
            return None
        return number if payload == message(self.terms, self.side, number, kind) else None
