"""Which bytes of a tunnel a dead worker still had to send: arithmetic on positions, and no more.

Positions count the bytes of one direction since the tunnel began. `read` of them were taken from the source,
as the kernel says, and `written` were given to the sink. What lies between is what only the worker had: the
tail of the chunk that it had received last, or of what waited on a shelf for a slow reader. Nothing is ever
guessed: where the positions don't fit together, `Unproved` is raised.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from workers.contract.entries import FRAME_HEAD, FRAME_LOST
from workers.core.frames import FrameTracker


class Unproved(ValueError):
    """The positions don't say which bytes are missing; the text says why."""


class Account(NamedTuple):
    """What waits on a shelf: `size` bytes, for a stream that was read up to `position`. `shift` is how much
    longer the stream to the sink is than the one from the source, up to there: frames of our own, less pongs
    that were meant for us. With `last`, what was read after it is not sent on."""

    position: int
    shift: int
    size: int
    last: bool = False


class Unsent(NamedTuple):
    """The bytes `start` to `end` of the shelf, or of the last chunk (`on_shelf` is false)."""

    on_shelf: bool
    start: int
    end: int


NOTHING: Final = Unsent(True, 0, 0)


def unsent(read: int, written: int, account: Account, mark: int, chunk: int) -> Unsent:
    """What is still to be sent. `mark` is the position before the last chunk, -1 where that was another
    direction's; no chunk is larger than `chunk`. Raises `Unproved`."""
    if account.last:
        read = min(read, account.position)
    left = read + account.shift - written
    if left < 0:
        raise Unproved(f"{-left} bytes more were written than read")
    if read == account.position:
        if left > account.size:
            raise Unproved(f"{left} bytes are missing, and {account.size} were kept")
        return Unsent(True, account.size - left, account.size)
    if read < account.position:
        raise Unproved(f"{account.position - read} bytes fewer were read than accounted for")
    if not left:
        return NOTHING
    size = read - mark
    if mark < 0 or not 0 < size <= chunk:
        raise Unproved(f"{left} bytes are missing, and they are not those of the last chunk")
    if left > size:
        raise Unproved(f"{left} bytes are missing, and the last chunk had {size}")
    return Unsent(False, size - left, size)


def frames_at(position: int, frame: int, head: bytes) -> FrameTracker:
    """The tracker of a stream at `position`, from what the ledger has of it: DirectionCell.FRAME, HEAD."""
    tracker = FrameTracker()
    if frame == FRAME_LOST:
        tracker.lose()
    elif frame >= FRAME_HEAD:
        if frame - FRAME_HEAD == position:
            tracker.resume(0, head)
    elif frame > position:
        tracker.resume(frame - position, b"")
    return tracker


def frames_after(mark: int, frame: int, head: bytes, chunk: memoryview) -> FrameTracker:
    """The tracker behind `chunk`, which began at position `mark`. The ledger may have been written before
    it or after it."""
    position = mark + len(chunk)
    if frame == FRAME_LOST or frame == FRAME_HEAD + position or (frame < FRAME_HEAD and frame >= position):
        return frames_at(position, frame, head)
    tracker = frames_at(mark, frame, head)
    tracker.feed(chunk, 0, len(chunk))
    return tracker
