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

import fcntl
import mmap
import os
from typing import Final

from workers.contract.entries import (
    BUFFER,
    CELL,
    ENTRY_BYTES,
    MAX_ENTRIES,
    MAX_RECORD,
    RECORD_AT,
    SHELVES,
    EntryCell,
    HeadCell,
)
from workers.contract.native import quick


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
        self.cells = quick(memoryview(memory).cast("q"))
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

    def clear_shelves(self, first: int, count: int) -> None:
        """Gives the memory of so many shelves back to the system."""
        self.shelves.madvise(mmap.MADV_REMOVE, first * BUFFER, count * BUFFER)

    def clear(self) -> None:
        """Gives back all memory that bytes of tunnels lay in."""
        self.buffer.madvise(mmap.MADV_REMOVE)
        self.shelves.madvise(mmap.MADV_REMOVE)


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
