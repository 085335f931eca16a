"""Pings of our own and their Pongs, as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import websocket as ws
from workers.core.ping import LONGEST, PAYLOAD, PEEKED, frame_size, ping_frame, pong_size

payloads = st.binary(min_size=PAYLOAD, max_size=PAYLOAD)


class Bytes:
    """Frames are read from it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_exactly(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        return taken


@given(payloads, st.binary(min_size=4, max_size=4))
def test_a_ping_is_one_frame_masked_toward_a_server(payload: bytes, mask: bytes) -> None:
    for used in (b"", mask):
        made = ping_frame(payload, used)
        assert made[1] >> 7 == bool(used)
        assert made[2 : 2 + len(used)] == used
        reader = Bytes(made)
        assert ws.read_frame(reader) == ws.Frame(ws.PING, payload)
        assert not reader.data


@given(payloads, st.booleans(), st.binary(max_size=10))
def test_our_pong_is_known_when_it_is_whole_and_possible_before(
    payload: bytes, masked: bool, behind: bytes
) -> None:
    pong = ws.frame(payload, ws.PONG, masked=masked)
    assert pong_size(pong + behind, payload) == len(pong) <= LONGEST
    for size in range(1, len(pong)):
        assert pong_size(pong[:size], payload) == -1


@given(payloads, payloads, st.booleans())
def test_the_pong_of_another_ping_is_not_ours(payload: bytes, other: bytes, masked: bool) -> None:
    pong = ws.frame(other, ws.PONG, masked=masked)
    assert (pong_size(pong, payload) > 0) == (payload == other)


@pytest.mark.parametrize(
    "frame",
    [
        ws.frame(bytes(8), ws.PING),
        ws.frame(bytes(8), ws.BINARY, masked=True),
        ws.frame(bytes(7), ws.PONG),
        ws.frame(bytes(9), ws.PONG, masked=True),
        ws.frame(b"", ws.PONG),
        b"\x0a" + ws.frame(bytes(8), ws.PONG)[1:],  # no FIN
        b"\xca" + ws.frame(bytes(8), ws.PONG)[1:],  # a reserved bit
    ],
    ids=["ping", "binary", "short", "long", "empty", "no-fin", "reserved"],
)
def test_other_frames_are_not_ours_from_their_second_byte_on(frame: bytes) -> None:
    assert pong_size(frame, bytes(8)) == 0
    assert pong_size(frame[:2], bytes(8)) == 0


@given(st.binary(min_size=1, max_size=PEEKED), payloads)
def test_only_a_beginning_of_it_can_become_our_pong(data: bytes, payload: bytes) -> None:
    verdict = pong_size(data, payload)
    whole = [ping_frame(payload, b""), *([ping_frame(payload, data[2:6])] if len(data) >= 6 else [])]
    pongs = [bytes((0x8A,)) + frame[1:] for frame in whole]
    if verdict > 0:
        assert data[:verdict] in pongs
    elif verdict < 0:
        assert len(data) < 6 or any(pong.startswith(data) for pong in pongs)
    else:
        assert not any(pong.startswith(data) or data.startswith(pong) for pong in pongs)


@given(st.integers(0, 200_000), st.booleans(), st.integers(0, PEEKED))
def test_the_size_of_a_frame_is_in_what_is_peeked(length: int, masked: bool, cut: int) -> None:
    frame = ws.frame(bytes(length), masked=masked)
    assert frame_size(frame[:PEEKED]) == len(frame)
    assert frame_size(frame[: min(cut, len(frame))]) in (0, len(frame))
