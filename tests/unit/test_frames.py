"""Frame boundaries, message counts and Close codes, whatever the chunks (RFC 6455 section 5.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.core.frames import MEDIUM, MESSAGE, NO_STATUS, OTHER_STATUS, WHOLE, FrameTracker, close_frame

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
MASK = b"\x11\x22\x33\x44"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    first = fin << 7 | rsv << 4 | opcode
    size = len(payload)
    flag = masked << 7
    if size < 126:
        head = bytes([first, flag | size])
    elif size < 1 << 16:
        head = bytes([first, flag | 126]) + struct.pack(">H", size)
    else:
        head = bytes([first, flag | 127]) + struct.pack(">Q", size)
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))


def close(code: int, reason: bytes = b"", *, masked: bool = True) -> bytes:
    return frame(CLOSE, struct.pack(">H", code) + reason, masked=masked)


@dataclass
class Seen:
    messages: int
    close_code: int | None
    at_boundary: bool
    lost: bool


def follow(*chunks: bytes) -> Seen:
    tracker = FrameTracker()
    for chunk in chunks:
        # Not at the start of the buffer, and with foreign bytes behind: both must be left alone.
        tracker.feed(bytearray(b"\x88\x02" + chunk + b"\xff\xff\xff"), 2, 2 + len(chunk))
    return Seen(tracker.messages, tracker.close_code, tracker.at_boundary, tracker.lost)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_one_message_of_any_length(size: int, masked: bool) -> None:
    data = frame(BINARY, b"x" * size, masked=masked)
    assert follow(data) == Seen(1, None, True, False)
    assert follow(data[:-1]) == Seen(0, None, False, False)
    assert follow(data[:-1], data[-1:]) == Seen(1, None, True, False)
    assert follow(data + data) == Seen(2, None, True, False)


def is_told_short(data: bytes) -> bool:
    """Whether `Pipe.on_readable` takes `data` for one message and nothing else, without the tracker."""
    buffer = data + b"\0\0\0\0"  # what an earlier chunk may have left there
    size, second = len(data), buffer[1]
    length = buffer[2] << 8 | buffer[3]
    return (size == WHOLE[second] or size == length + MEDIUM[second]) and MESSAGE[buffer[0]]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [2, 125, 126, 127, 65_535])
def test_a_chunk_that_is_one_message_is_told_without_a_tracker(size: int, masked: bool) -> None:
    data = frame(TEXT, b"x" * size, masked=masked)
    assert is_told_short(data)
    assert not is_told_short(data[:-1])
    assert not is_told_short(data + data)
    assert not is_told_short(frame(PING, b"x" * size, masked=masked))
    assert not is_told_short(frame(TEXT, b"x" * size, fin=False, masked=masked))


@given(
    st.binary(min_size=4, max_size=12) | st.integers(0, 65_535).map(lambda size: b"\x82\xfe" + bytes(size))
)
def test_what_is_told_without_a_tracker_is_what_the_tracker_says(data: bytes) -> None:
    if is_told_short(data):
        assert follow(data) == Seen(1, None, True, False)


def test_a_fragmented_message_counts_once_and_control_frames_do_not() -> None:
    stream = (
        frame(TEXT, b"a", fin=False)
        + frame(PING, b"p")
        + frame(CONTINUATION, b"b", fin=False)
        + frame(PONG)
        + frame(CONTINUATION, b"c")
    )
    assert follow(stream) == Seen(1, None, True, False)


def test_reserved_bits_and_opcodes_are_followed_like_others() -> None:
    assert follow(frame(TEXT, b"deflated", rsv=4) + frame(3, b"?", rsv=3)) == Seen(2, None, True, False)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("code", "seen"),
    [
        (1000, 1000),
        (1001, 1001),
        (1012, 1012),
        (1015, 1015),
        (3000, 3000),
        (4999, 4999),
        (999, OTHER_STATUS),
        (1016, OTHER_STATUS),
        (2999, OTHER_STATUS),
        (5000, OTHER_STATUS),
        (0, OTHER_STATUS),
        (65_535, OTHER_STATUS),
    ],
)
def test_close_code(code: int, seen: int, masked: bool) -> None:
    assert follow(close(code, b"bye", masked=masked)) == Seen(0, seen, True, False)


@pytest.mark.parametrize("masked", [True, False])
def test_close_without_a_code(masked: bool) -> None:
    assert follow(frame(CLOSE, masked=masked)).close_code == NO_STATUS
    assert follow(frame(CLOSE, b"x", masked=masked)).close_code == OTHER_STATUS


def test_the_code_is_known_before_the_reason_has_come() -> None:
    assert follow(close(1001, b"reason")[:8]) == Seen(0, 1001, False, False)


def test_the_first_of_two_close_frames_counts() -> None:
    assert follow(close(1001) + close(1000)).close_code == 1001


def test_an_impossible_length_loses_the_stream_and_keeps_the_figures() -> None:
    nonsense = b"\x82\xff" + b"\xff" * 8
    for lost in (
        follow(frame(TEXT) + nonsense + frame(TEXT)),
        follow(frame(TEXT), nonsense[:5], nonsense[5:]),
    ):
        assert lost == Seen(1, None, False, True)
    assert follow(nonsense, b"x" * 100_000, close(1000)) == Seen(0, None, False, True)


def test_the_largest_length_is_no_nonsense() -> None:
    assert follow(b"\x82\x7f\x7f" + b"\xff" * 7, b"x" * 1000) == Seen(0, None, False, False)


def test_nothing_fed_is_a_boundary() -> None:
    assert follow() == follow(b"") == Seen(0, None, True, False)


frames = st.builds(
    frame,
    st.sampled_from([TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG, 3, 11]),
    st.one_of(st.binary(max_size=8), st.sampled_from([125, 126, 300, 65_535, 65_536]).map(bytes)),
    fin=st.booleans(),
    masked=st.booleans(),
    rsv=st.integers(0, 7),
)


@given(st.lists(frames, max_size=6), st.data())
def test_any_split_gives_the_same_result(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sent) + data.draw(frames)[: data.draw(st.integers(0, 20))]
    # Cuts near the heads, where they hurt.
    starts = [sum(map(len, sent[:count])) for count in range(len(sent) + 1)]
    near = st.sampled_from(starts).flatmap(lambda start: st.integers(start, start + 18))
    cuts = sorted({min(cut, len(stream)) for cut in data.draw(st.lists(near, max_size=12))})
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert follow(*chunks) == follow(stream)


@given(st.lists(frames, max_size=4))
def test_whole_frames_end_at_a_boundary(sent: list[bytes]) -> None:
    assert follow(b"".join(sent)).at_boundary


@given(st.binary(max_size=60))
def test_garbage_byte_by_byte_is_as_garbage_at_once(data: bytes) -> None:
    assert follow(*(data[at : at + 1] for at in range(len(data)))) == follow(data)


# --- closing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [b"", b"\x01\x02\x03\x04"])
@pytest.mark.parametrize("reason", ["", "moved", "x" * 123])
def test_a_close_frame_is_one_whole_frame_with_its_code(mask: bytes, reason: str) -> None:
    frame = close_frame(1012, reason, mask)
    tracker = FrameTracker()
    tracker.feed(frame, 0, len(frame))
    assert tracker.close_code == 1012
    assert tracker.at_boundary
    assert bool(frame[1] & 0x80) is bool(mask)
    payload = frame[6:] if mask else frame[2:]
    plain = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload)) if mask else payload
    assert plain == (1012).to_bytes(2, "big") + reason.encode()


@given(st.lists(st.tuples(st.integers(0, 70_000), st.booleans()), min_size=1, max_size=4), st.data())
def test_reading_to_the_boundary_never_goes_beyond_it(
    sizes: list[tuple[int, bool]], data: st.DataObject
) -> None:
    stream = b"".join(frame(BINARY, bytes(size), masked=masked) for size, masked in sizes)
    ends, at = set(), 0
    for size, masked in sizes:
        at += len(frame(BINARY, bytes(size), masked=masked))
        ends.add(at)
    start = data.draw(st.integers(0, len(stream)))
    tracker = FrameTracker()
    tracker.feed(stream, 0, start)
    at = start
    while not tracker.at_boundary:
        step = min(tracker.to_boundary, 1000)
        tracker.feed(stream, at, at + step)
        at += step
    assert at in ends | {0}
    assert at == min(end for end in ends | {0} if end >= start)
