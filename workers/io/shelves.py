"""What waits for slow readers: the bytes lie on shelves of the ledger, with accounts that say so.

An account is written whole beside the one that counts, then made the one that counts, so a worker may be
killed at any step. Where no shelf is free, the bytes are kept in this process alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from workers.contract.entries import BUFFER, LAST, SHELVES, AccountCell, DirectionCell, EntryCell
from workers.contract.ledger import Area

if TYPE_CHECKING:
    from workers.io.pipe import Pipe

_SPARE: Final = 16  # shelves that are kept in memory for the next one
_ACCOUNTS: Final = (int(DirectionCell.FIRST), int(DirectionCell.SECOND))
_ACCOUNT: Final = int(DirectionCell.ACCOUNT)
_SIZE: Final = int(AccountCell.SIZE)
_SHELF: Final = int(AccountCell.SHELF)


class Shelves:
    """Those of one worker. What its predecessor had at the entries `inherited` stays as it is until
    `end_inheritance`."""

    def __init__(self, area: Area, inherited: Iterable[int]) -> None:
        self._area = area
        self._cells = area.cells
        self._memory = memoryview(area.shelves)
        self._used: set[int] = set()
        self._inherited = {shelf for entry in inherited for shelf in self._shelves_of(entry)}
        self._arrange()

    def put(self, pipe: Pipe, data: bytes | memoryview) -> bytes | memoryview:
        """Accounts for `data` as all that waits in `pipe`, and returns it as it is kept: on a shelf, where
        there is one; a tunnel without is closed, should the worker die now."""
        former = pipe.shelf
        kept: bytes | memoryview = b""
        shelf = -1
        size = len(data)
        if size:
            shelf = self._take() if size <= BUFFER and pipe.position != pipe.total else -1
            if shelf < 0:
                kept = bytes(data)
            else:
                kept = self._memory[shelf * BUFFER : shelf * BUFFER + size]
                kept[:] = data
        pipe.shelf = shelf
        self._account(pipe, size if shelf >= 0 else 0)
        if former >= 0:
            self._give(former)
        return kept

    def restate(self, pipe: Pipe) -> None:
        """Accounts for where `pipe` stands now; what waits lies where it lay."""
        self._account(pipe, self._cells[self._counting(pipe.account) + _SIZE] if pipe.shelf >= 0 else 0)

    def take_back(self, pipe: Pipe) -> None:
        """What waits in `pipe` lies where the predecessor's account says, and stays there."""
        if pipe.out:
            pipe.shelf = shelf = self._cells[self._counting(pipe.account) + _SHELF]
            self._inherited.discard(shelf)
            self._used.add(shelf)
        self.restate(pipe)

    def clear(self, pipe: Pipe) -> None:
        """What lay there was sent, or is kept elsewhere."""
        self._cells[self._counting(pipe.account) + _SIZE] = 0
        self._give(pipe.shelf)
        pipe.shelf = -1

    def end_inheritance(self) -> None:
        """Whatever nobody has taken back may be used, and has no memory any more."""
        self._inherited.clear()
        self._arrange()
        start = 0
        for shelf in (*sorted(self._used), SHELVES):
            if shelf > start:
                self._area.clear_shelves(start, shelf - start)
            start = shelf + 1

    def close(self) -> None:
        """The worker leaves: nothing waits any more."""
        if not self._used and not self._inherited:
            self._area.clear()

    def _arrange(self) -> None:
        taken = self._used | self._inherited
        self._fresh = max(taken, default=-1) + 1  # from here on none was used
        self._free = [shelf for shelf in range(self._fresh - 1, -1, -1) if shelf not in taken]
        self._warm = 0  # how many of those, at the end, still have memory

    # --- accounts ------------------------------------------------------------------------------------

    def _counting(self, account: int) -> int:
        """Where the account of this direction is that counts."""
        return account + _ACCOUNTS[self._cells[account + _ACCOUNT] & 1]

    def _account(self, pipe: Pipe, size: int) -> None:
        cells, account = self._cells, pipe.account
        other = 1 - cells[account + _ACCOUNT]
        at = account + _ACCOUNTS[other]
        cells[at + AccountCell.POSITION] = pipe.total | LAST if pipe.closed else pipe.total
        cells[at + AccountCell.SHIFT] = pipe.shift
        cells[at + AccountCell.SIZE] = size
        cells[at + AccountCell.SHELF] = pipe.shelf
        cells[account + _ACCOUNT] = other

    def _shelves_of(self, entry: int) -> Iterator[int]:
        base = self._area.entry(entry)
        for direction in (EntryCell.CLIENT, EntryCell.SERVER):
            account = self._counting(base + direction)
            if self._cells[account + _SIZE] > 0:
                yield self._cells[account + _SHELF]

    # --- shelves -------------------------------------------------------------------------------------

    def _take(self) -> int:
        if self._free:
            self._warm = max(0, self._warm - 1)
            shelf = self._free.pop()
        elif self._fresh < SHELVES:
            shelf = self._fresh
            self._fresh += 1
        else:
            return -1
        self._used.add(shelf)
        return shelf

    def _give(self, shelf: int) -> None:
        self._used.discard(shelf)
        if self._warm < _SPARE:
            self._warm += 1
            self._free.append(shelf)
        else:
            self._area.clear_shelves(shelf, 1)
            self._free.insert(0, shelf)
