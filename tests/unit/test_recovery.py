"""Which bytes a dead worker still had to send, by positions alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract.entries import FRAME_HEAD, FRAME_LOST
from workers.core.frames import FrameTracker
from workers.core.recovery import (
    NOTHING,
    Account,
    Unproved,
    Unsent,
    frames_after,
    frames_at,
    unsent,
)

CHUNK = 1000
POSITIONS = st.integers(0, 1 << 45)
SIZES = st.integers(1, CHUNK)


@given(POSITIONS, st.integers(-100, 100), SIZES, st.data())
def test_the_tail_of_the_last_chunk(began: int, shift: int, size: int, data: st.DataObject) -> None:
    sent = data.draw(st.integers(0, size))
    account = Account(data.draw(st.integers(0, began)), shift, data.draw(st.integers(0, CHUNK)))
    found = unsent(began + size, began + shift + sent, account, began, CHUNK)
    assert found == (NOTHING if sent == size else Unsent(False, sent, size))


@given(POSITIONS, st.integers(-100, 100), SIZES, st.data())
def test_the_tail_of_what_was_kept(position: int, shift: int, size: int, data: st.DataObject) -> None:
    sent = data.draw(st.integers(0, size))
    written = position + shift - size + sent
    mark = data.draw(st.integers(-1, position))
    assert unsent(position, written, Account(position, shift, size), mark, CHUNK) == Unsent(True, sent, size)


@given(POSITIONS, SIZES)
def test_bytes_of_which_nobody_knows_are_not_guessed(position: int, missing: int) -> None:
    account = Account(position, 0, 0)
    for read, written, mark in (
        (position, position - missing, position),  # nothing was kept
        (position, position + missing, position),  # more was written than read
        (position - missing, position - missing, -1),  # fewer were read than accounted for
        (position + missing, position, -1),  # the last chunk was another direction's
        (position + missing, position - 1, position),  # more is missing than the chunk had
        (position + CHUNK + missing, position, position),  # no chunk is that large
        (position + missing, position, position + missing),  # the chunk had nothing
    ):
        with pytest.raises(Unproved):
            unsent(read, written, account, mark, CHUNK)


def frame(size: int) -> bytes:
    if size < 126:
        return bytes((0x82, size)) + bytes(size)
    return bytes((0x82, 126)) + size.to_bytes(2, "big") + bytes(size)


STREAMS = st.lists(st.one_of(st.integers(0, 20), st.integers(120, 300)), min_size=1, max_size=8).map(
    lambda sizes: b"".join(map(frame, sizes))
)


def noted(tracker: FrameTracker, position: int) -> tuple[int, bytes] | None:
    """What a worker writes down of a tracker at `position`; nothing between two frames."""
    if tracker.at_boundary:
        return None
    return (FRAME_HEAD | position, tracker.head) if tracker.head else (position + tracker.left, b"")


@given(STREAMS, st.data())
def test_frames_are_followed_on(stream: bytes, data: st.DataObject) -> None:
    """Killed behind any chunk, before or after it was written down where its frames end."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream)), min_size=1)))
    tracker, frame_cell, head, start = FrameTracker(), 0, b"", 0
    for end in cuts:
        before = frame_cell, head
        tracker.feed(stream, start, end)
        if (note := noted(tracker, end)) is not None:
            frame_cell, head = note
        chunk = memoryview(stream)[start:end]
        for found in (
            frames_after(start, *before, chunk),
            frames_after(start, frame_cell, head, chunk),
            frames_at(end, frame_cell, head),
        ):
            assert (found.at_boundary, found.left, found.head) == (
                tracker.at_boundary,
                tracker.left,
                tracker.head,
            )
        start = end


def test_a_lost_stream_stays_lost() -> None:
    assert frames_at(5, FRAME_LOST, b"").lost
    after = frames_after(5, FRAME_LOST, b"", memoryview(frame(3)))
    assert after.lost and not after.at_boundary
