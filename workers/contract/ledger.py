"""The ledger: what outlives a worker of its tunnels, one memfd with an area per worker slot.

A tunnel is on the ledger while a keeper holds duplicates of its two sockets. What the kernel counts by itself
(how much was read from a socket, and written to it) is not written down again; the ledger has what the kernel
doesn't know: who the tunnel is, where its streams began, and the bytes that were read and not written.

Layout of one area (8-byte cells, native byte order; every part begins on a page)::

    states   per entry: State, serial. Others than the area's own processes read these alone
    head     HeadCell: the mark
    table    `entries` of ENTRY_BYTES: EntryCell, then the record (MessagePack, `tunnels.TunnelRecord`)
    buffer   what the worker receives tunnels' bytes in, one chunk at a time
    shelves  SHELVES of BUFFER bytes: what waits for slow readers

Every cell has one writer at a time: the worker of the slot, or, once that is gone for good, its keeper. Pages
that nobody touches cost nothing, so the capacity is generous.

How a chunk survives: before each `recv` into `buffer` the worker writes the *mark*, which is the direction's
place and the position of its stream. What was read is `consumed - mark`, from the kernel's count; what is
still to be sent is the difference to what was written; it is the tail of the chunk. What a slow reader leaves
is put on a shelf before anything else is received, with an account that says which position it reaches to.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
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
    CLOSING = 8  # the code of our own Close; CLOSE_SENT_* added where it is on its way. 0: not closing
    RESTORED = 9  # how often a keeper gave it back
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
    WIDTH = 16


class AccountCell(enum.IntEnum):
    """What of a stream waits on a shelf, and how far the stream as it was sent on differs from the stream as
    it was received. Written whole beside the one that counts, then made the one that counts."""

    POSITION = 0  # received up to here: the account is of no use for a stream that went on
    SHIFT = 1  # bytes that were sent on, less those that were received: our own frames, pongs held back
    SIZE = 2  # bytes on the shelf
    SHELF = 3  # its number
    WIDTH = 4


# DirectionCell.FRAME: a position at which a frame ends (in the past: between frames), or FRAME_HEAD and a
# position where a head was cut (its length in the low byte of the second HEAD cell), or FRAME_LOST.
FRAME_LOST: Final = -1
FRAME_HEAD: Final = 1 << 60
CLOSE_CODE: Final = 0xFFFF
CLOSE_SENT_CLIENT: Final = 1 << 16  # our Close is in the client's stream, on its way to the server
CLOSE_SENT_SERVER: Final = 1 << 17

assert EntryCell.WIDTH * CELL <= RECORD_AT


class LedgerError(ValueError):
    """The memory is no ledger that this code can read."""


MAGIC: Final = 0x6C62_6C65_6467_6572
FORMAT: Final = 1
_HEADER: Final = mmap.PAGESIZE


class Ledger:
    """The memfd. Made by the master with `create`, inherited through fork, or found again with `attach`;
    `area` maps what a process needs of it."""

    __slots__ = ("entries", "fd", "slots")

    def __init__(self, fd: int, slots: int, entries: int) -> None:
        self.fd = fd
        self.slots = slots
        self.entries = entries  # per slot

    @classmethod
    def create(cls, slots: int, entries: int) -> Ledger:
        """An empty ledger. Raises `OSError` when memory or descriptors are short."""
        entries = max(1, min(entries, MAX_ENTRIES))
        fd = os.memfd_create("lb-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        ledger = cls(fd, slots, entries)
        os.ftruncate(fd, _HEADER + slots * ledger.area_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        with mmap.mmap(fd, _HEADER) as memory, memoryview(memory).cast("q") as cells:
            for index, value in enumerate(ledger._header()):
                cells[index] = value
        return ledger

    @classmethod
    def attach(cls, fd: int) -> Ledger:
        """The ledger in `fd`. Raises `LedgerError` where it is none that this code reads."""
        size = os.fstat(fd).st_size
        if size < _HEADER:
            raise LedgerError("too short for a ledger")
        with mmap.mmap(fd, _HEADER, prot=mmap.PROT_READ) as memory, memoryview(memory).cast("q") as cells:
            found = cells[:8].tolist()
        ledger = cls(fd, found[2], found[3])
        if found != ledger._header() or size != _HEADER + ledger.slots * ledger.area_bytes:
            raise LedgerError(f"no ledger of format {FORMAT}, or cut short")
        return ledger

    def _header(self) -> list[int]:
        return [MAGIC, FORMAT, self.slots, self.entries, ENTRY_BYTES, RECORD_AT, BUFFER, SHELVES]

    @property
    def area_bytes(self) -> int:
        """The size of one slot's area."""
        return self._buffer_at + BUFFER * (1 + SHELVES)

    @property
    def _states_bytes(self) -> int:
        return _pages(self.entries * 2 * CELL)

    @property
    def _buffer_at(self) -> int:
        table = _pages(self.entries * ENTRY_BYTES)
        return self._states_bytes + HeadCell.WIDTH * CELL + table

    def _at(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"worker slot {slot} is beyond the ledger's {self.slots}")
        return _HEADER + slot * self.area_bytes

    def area(self, slot: int) -> Area:
        """Maps the area of worker slot `slot`, for its worker or its keeper."""
        at = self._at(slot)
        memory = mmap.mmap(self.fd, self._buffer_at, offset=at)
        return Area(
            memory,
            self._states_bytes // CELL,
            mmap.mmap(self.fd, BUFFER, offset=at + self._buffer_at),
            mmap.mmap(self.fd, BUFFER * SHELVES, offset=at + self._buffer_at + BUFFER),
            self.entries,
        )

    def states(self, slot: int) -> memoryview:
        """The (State, serial) cells of all entries of `slot`, to be read by others."""
        return memoryview(mmap.mmap(self.fd, self._states_bytes, offset=self._at(slot))).cast("q")


class Area:
    """One slot's area, mapped. `cells` begins with the states; `head` and `entry` give first indexes."""

    __slots__ = ("buffer", "cells", "entries", "head", "memory", "shelves", "table")

    def __init__(
        self, memory: mmap.mmap, head: int, buffer: mmap.mmap, shelves: mmap.mmap, entries: int
    ) -> None:
        self.memory = memory
        self.cells = memoryview(memory).cast("q")
        self.head = head
        self.table = head + int(HeadCell.WIDTH)
        self.buffer = buffer
        self.shelves = shelves
        self.entries = entries

    def entry(self, index: int) -> int:
        """Index in `cells` of the first cell of entry `index`."""
        return self.table + index * (ENTRY_BYTES // CELL)

    def state(self, index: int) -> int:
        """The `State` of entry `index`."""
        return int(self.cells[2 * index])

    def serial(self, index: int) -> int:
        """Which of all that were ever in it the entry has now."""
        return int(self.cells[2 * index + 1])

    def put_record(self, index: int, record: bytes) -> None:
        """Writes down who the tunnel is; at most MAX_RECORD bytes."""
        base = self.entry(index)
        at = base * CELL + RECORD_AT
        self.memory[at : at + len(record)] = record
        self.cells[base + EntryCell.RECORD_SIZE] = len(record)

    def record(self, index: int) -> bytes:
        """What `put_record` wrote."""
        base = self.entry(index)
        size = min(MAX_RECORD, self.cells[base + EntryCell.RECORD_SIZE])
        at = base * CELL + RECORD_AT
        return self.memory[at : at + size]

    def clear_shelf(self, shelf: int) -> None:
        """Gives the memory of a shelf back to the system."""
        self.shelves.madvise(mmap.MADV_REMOVE, shelf * BUFFER, BUFFER)


def place(index: int, direction: int) -> int:
    """The place of a direction (0 is the client's stream, 1 the server's) of entry `index`; never 0."""
    return 2 * index + direction + 1


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
