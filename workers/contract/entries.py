"""What the entries of the ledger hold (see `ledger`), number by number."""

from __future__ import annotations

import enum
from typing import Final

CELL: Final = 8
BUFFER: Final = 256 * 1024
SHELVES: Final = 1024
MAX_ENTRIES: Final = 65_535  # so that a mark is a signed 64-bit number
ENTRY_BYTES: Final = 1024
RECORD_AT: Final = 384  # bytes from the start of an entry
MAX_RECORD: Final = ENTRY_BYTES - RECORD_AT
# A mark: the place of the direction above, the position of its stream below. Place 0 is none: that of a
# direction that is not on the ledger.
POSITION_BITS: Final = 46
POSITION: Final = (1 << POSITION_BITS) - 1


class State(enum.IntEnum):
    """What an entry stands for."""

    FREE = 0
    HELD = 1  # a tunnel of this slot's worker
    COMING = 2  # on its way from another slot: it is this slot's once the giver's entry says GONE
    GONE = 3  # given to another slot


class HeadCell(enum.IntEnum):
    """The slot's own cells."""

    MARK = 0
    USED = 1  # one more than the highest entry that was ever used
    WIDTH = 512  # a page


class EntryCell(enum.IntEnum):
    """The numbers of an entry. Positions of the kernel are those of `workers.io.tcpinfo`: bytes read from a
    socket, and written to it, since it was opened; of a stream: bytes that its source sent in the tunnel."""

    RECORD_SIZE = 0  # bytes
    CLIENT_READ = 1  # what the kernel counted of the client's socket where the stream's position was 0
    CLIENT_WRITTEN = 2
    SERVER_READ = 3
    SERVER_WRITTEN = 4
    GIVER = 5  # while COMING: the slot that gives ...
    GIVER_ENTRY = 6  # ... the entry there ...
    GIVER_SERIAL = 7  # ... and its serial
    CLOSING = 8  # the code of our own Close; CLOSE_SEEN_* added whose answer has come. 0: not closing
    ORDERED = 9  # the code with which somebody asked for the tunnel's end; 0: nobody did
    ORDERED_AT = 10  # when that is due: CLOCK_MONOTONIC, ns
    CLIENT = 12  # DirectionCell, the client's stream
    SERVER = 28
    WIDTH = 48


class DirectionCell(enum.IntEnum):
    """The numbers of one direction, from EntryCell.CLIENT or SERVER."""

    ACCOUNT = 0  # which of the two accounts counts: 0 or 1
    FIRST = 1  # AccountCell, account 0
    SECOND = 5  # account 1
    FRAME = 9  # where the frame ends that the stream is in: see FRAME_*
    HEAD = 10  # two cells: the beginning of a frame's head
    MESSAGES = 12  # about how many passed, as of the last tick
    TOLD = 13  # the position up to which the bytes are counted on the scoreboard
    WIDTH = 16


class AccountCell(enum.IntEnum):
    """What of a stream waits on a shelf, and how far the stream as it was sent on differs from the stream as
    it was received. Written whole beside the one that counts, then made the one that counts."""

    POSITION = 0  # received up to here: the account is of no use for a stream that went on. LAST may be added
    SHIFT = 1  # bytes that were sent on, less those that were received: our own frames, pongs held back
    SIZE = 2  # bytes on the shelf
    SHELF = 3  # its number
    WIDTH = 4


# Added to AccountCell.POSITION where a Close has passed, ours or the source's: what is received after it goes
# nowhere, and the account stays good.
LAST: Final = 1 << 62
# DirectionCell.FRAME: a position at which a frame ends (in the past: between frames), or FRAME_HEAD and a
# position where a head was cut (its length in the low byte of the second HEAD cell), or FRAME_LOST.
FRAME_LOST: Final = -1
FRAME_HEAD: Final = 1 << 60
CLOSE_CODE: Final = 0xFFFF
CLOSE_SEEN_CLIENT: Final = 1 << 16  # nothing more is to be waited for from the client
CLOSE_SEEN_SERVER: Final = 1 << 17

assert EntryCell.WIDTH * CELL <= RECORD_AT


def place(index: int, direction: int) -> int:
    """The place of a direction (0 is the client's stream, 1 the server's) of entry `index`; never 0."""
    return 2 * index + direction + 1
