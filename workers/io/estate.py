"""What a dead worker left of its tunnels on the ledger: read, proved, and put in order.

The keeper does it for the one direction whose last chunk lies in the worker's buffer, at once; the successor
for every tunnel that it takes over. Sources of truth are the kernel's counts; see `core.recovery`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from workers.contract.entries import (
    BUFFER,
    CELL,
    FRAME_HEAD,
    FRAME_LOST,
    LAST,
    POSITION,
    POSITION_BITS,
    SHELVES,
    AccountCell,
    DirectionCell,
    EntryCell,
    HeadCell,
    State,
)
from workers.contract.ledger import Area
from workers.contract.tunnels import StreamRecord
from workers.core import recovery
from workers.core.frames import FrameTracker
from workers.core.recovery import Account, Unproved
from workers.io import tcpinfo
from workers.io.sockets import Socket
from workers.io.tcpinfo import Counts

_DIRECTIONS: Final = (int(EntryCell.CLIENT), int(EntryCell.SERVER))


class Stream(NamedTuple):
    """One direction as it goes on: the record of it, the bytes that are still to be sent, and whether those
    are the last."""

    record: StreamRecord
    unsent: bytes | memoryview  # on its shelf
    last: bool


class Estate:
    """The area of a slot whose worker is gone."""

    def __init__(self, area: Area) -> None:
        self._area = area
        self._cells = area.cells

    def marked(self) -> int:
        """The entry of the direction that received last; -1 where it has none."""
        place = int(self._cells[self._area.head + HeadCell.MARK]) >> POSITION_BITS
        return (place - 1) // 2 if place > 0 else -1

    def clear_mark(self) -> None:
        """Nothing in the buffer matters any more."""
        self._cells[self._area.head + HeadCell.MARK] = 0

    def giver(self, entry: int) -> tuple[int, int, int]:
        """From where a tunnel that is COMING comes: slot, entry and serial."""
        base = self._area.entry(entry)
        slot, theirs, serial = self._cells[
            base + EntryCell.GIVER : base + EntryCell.GIVER_SERIAL + 1
        ].tolist()
        return slot, theirs, serial

    def forget_coming(self) -> None:
        """What is COMING still did not come: it is its giver's."""
        cells = self._cells
        for entry in range(int(cells[self._area.head + HeadCell.USED])):
            if cells[2 * entry] == State.COMING:
                cells[2 * entry] = State.FREE

    def settle(self, entry: int, client: Socket, server: Socket) -> None:
        """Puts what the buffer has of the tunnel `entry` onto a shelf. Raises `Unproved`, or `OSError` where
        the sockets don't tell their counts."""
        mark = int(self._cells[self._area.head + HeadCell.MARK])
        direction = ((mark >> POSITION_BITS) - 1) % 2
        read, written = self._positions(entry, direction, tcpinfo.counts(client), tcpinfo.counts(server))
        at = self._area.entry(entry) + _DIRECTIONS[direction]
        account, _ = self._account(at)
        began = mark & POSITION
        if read == account.position or read == began:
            return  # the last chunk is accounted for, or there was none
        unsent = recovery.unsent(read, written, account, began, BUFFER)
        chunk = memoryview(self._area.buffer)[: read - began]
        tracker = recovery.frames_after(began, *self._frame(at), chunk)
        data = bytes(chunk[unsent.start : unsent.end]) if not unsent.on_shelf else b""
        chunk.release()
        # First the account, which says that the chunk is known, then where its frames end.
        if not account.last:
            self._put_account(at, Account(read, account.shift, len(data)), data)
        put_frame(self._area, at, read, tracker)

    def streams(self, entry: int, client: Socket, server: Socket) -> tuple[Stream, Stream]:
        """Both directions of the tunnel `entry`, as they go on. Raises `Unproved` or `OSError`."""
        counts = tcpinfo.counts(client), tcpinfo.counts(server)
        up, down = (self._stream(entry, direction, *counts) for direction in (0, 1))
        return up, down

    def _stream(self, entry: int, direction: int, client: Counts, server: Counts) -> Stream:
        read, written = self._positions(entry, direction, client, server)
        at = self._area.entry(entry) + _DIRECTIONS[direction]
        account, shelf = self._account(at)
        unsent = recovery.unsent(read, written, account, -1, 0)
        start = shelf * BUFFER
        data = memoryview(self._area.shelves)[start + unsent.start : start + unsent.end]
        tracker = recovery.frames_at(read, *self._frame(at))
        record = StreamRecord(
            position=read,
            shift=account.shift - (read - account.position if account.last else 0),
            messages=int(self._cells[at + DirectionCell.MESSAGES]),
            untold=read - int(self._cells[at + DirectionCell.TOLD]),
            left=0 if tracker.lost else tracker.left,
            ends_message=tracker.ends_message,
            head=tracker.head,
            lost=tracker.lost,
            waiting=len(data),
        )
        return Stream(record, data, account.last)

    def _positions(self, entry: int, direction: int, client: Counts, server: Counts) -> tuple[int, int]:
        """How much of the direction was read, and how much was written."""
        base = self._area.entry(entry)
        client_read, client_written, server_read, server_written = self._cells[
            base + EntryCell.CLIENT_READ : base + EntryCell.SERVER_WRITTEN + 1
        ].tolist()
        if direction == 0:
            return client.read - client_read, server.written - server_written
        return server.read - server_read, client.written - client_written

    # --- accounts ------------------------------------------------------------------------------------

    def _account(self, at: int) -> tuple[Account, int]:
        """The account that counts, and its shelf."""
        cells = self._cells
        place = at + (DirectionCell.SECOND if cells[at + DirectionCell.ACCOUNT] else DirectionCell.FIRST)
        position, shift, size, shelf = cells[place : place + AccountCell.WIDTH].tolist()
        if size and not 0 <= shelf < SHELVES:
            raise Unproved(f"there is no shelf {shelf}")
        return Account(position & ~LAST, shift, size, bool(position & LAST)), shelf

    def _put_account(self, at: int, account: Account, data: bytes) -> None:
        shelf = self._free_shelf() if data else -1
        if data:
            self._area.shelves[shelf * BUFFER : shelf * BUFFER + len(data)] = data
        cells = self._cells
        other = 1 - cells[at + DirectionCell.ACCOUNT]
        place = at + (DirectionCell.SECOND if other else DirectionCell.FIRST)
        cells[place + AccountCell.POSITION] = account.position
        cells[place + AccountCell.SHIFT] = account.shift
        cells[place + AccountCell.SIZE] = account.size
        cells[place + AccountCell.SHELF] = shelf
        cells[at + DirectionCell.ACCOUNT] = other

    def _free_shelf(self) -> int:
        """A shelf that no tunnel's account names."""
        area = self._area
        taken = set()
        for entry in range(self._cells[area.head + HeadCell.USED]):
            if area.state(entry) != State.FREE:
                for direction in _DIRECTIONS:
                    account, shelf = self._account(area.entry(entry) + direction)
                    if account.size:
                        taken.add(shelf)
        free = next((shelf for shelf in range(SHELVES) if shelf not in taken), None)
        if free is None:
            raise Unproved("no shelf is free for the bytes in flight")
        return free

    # --- frames --------------------------------------------------------------------------------------

    def _frame(self, at: int) -> tuple[int, bytes]:
        where = (at + DirectionCell.HEAD) * CELL
        head = self._area.memory[where : where + 2 * CELL]
        return int(self._cells[at + DirectionCell.FRAME]), head[: min(head[-1], 2 * CELL - 1)]


def put_frame(area: Area, at: int, position: int, tracker: FrameTracker) -> None:
    """Writes down where the frame ends that the direction at `at` is in, at `position`."""
    cells, cell = area.cells, at + DirectionCell.FRAME
    if tracker.lost:
        cells[cell] = FRAME_LOST
    elif tracker.head:
        head = tracker.head
        where = (at + DirectionCell.HEAD) * CELL
        cells[cell] = FRAME_LOST  # while the head is being written
        area.memory[where : where + 2 * CELL] = head.ljust(2 * CELL - 1, b"\0") + bytes((len(head),))
        cells[cell] = FRAME_HEAD | position
    else:
        end = position + tracker.left
        cells[cell] = end if end < FRAME_HEAD else FRAME_LOST
