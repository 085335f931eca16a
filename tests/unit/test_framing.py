"""Chunked bodies: where they end, what of them is sent on, and what is refused, however they arrive."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract import errors
from workers.contract.errors import ProxyError
from workers.core.framing import MAX_EXTENSIONS, MAX_LINE, MAX_TRAILERS, ChunkedBody


class Incomplete(Exception):
    """The body goes on."""


def run(pieces: list[bytes], *, payload_only: bool = False, side: str = "client") -> tuple[bytes, int, bytes]:
    """Feeds a body as a connection would: what was not taken comes again in front of the next piece.
    Returns what is to be sent on, the payload's length, and what lies behind the body."""
    body = ChunkedBody(side=side, payload_only=payload_only)
    held = b""
    sent: list[bytes] = []
    for piece in pieces:
        if body.done:
            held += piece
            continue
        # Dirt on both sides: only the range counts.
        buffer = bytearray(b"0\r\n\r\n" + held + piece + b"\r\n0\r\n\r\n")
        end = 5 + len(held) + len(piece)
        reached = body.feed(buffer, 5, end)
        assert 5 <= reached <= end
        assert all(5 <= a < b <= reached for a, b in body.spans)
        assert all(first[1] < second[0] for first, second in pairwise(body.spans))
        sent.extend(bytes(buffer[a:b]) for a, b in body.spans)
        held = bytes(buffer[reached:end])
        assert body.done or len(held) < MAX_LINE
    if not body.done:
        raise Incomplete
    return b"".join(sent), body.payload, held


def outcome(pieces: list[bytes], *, payload_only: bool = False) -> object:
    try:
        return run(pieces, payload_only=payload_only)
    except ProxyError as error:
        return error.refusal
    except Incomplete:
        return "incomplete"


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def refused(data: bytes, side: str = "client") -> str:
    body = ChunkedBody(side=side)
    with pytest.raises(ProxyError) as caught:
        body.feed(data, 0, len(data))
    assert caught.value.side == side
    assert caught.value.refusal is (errors.BAD_CHUNK if side == "client" else errors.BAD_RESPONSE)
    assert caught.value.refusal.close or side == "upstream"
    return caught.value.detail


# --- strategies -----------------------------------------------------------------------------------------

_FORBIDDEN = [b"Content-Length: 5\r\n", b"TRANSFER-ENCODING: x\r\n", b"Host:a\r\n", b"X_Forwarded_For: 1\r\n"]
_HARMLESS = [b"X-Digest: abc\r\n", b"Server-Timing:\t1 \xe9\r\n", b"Hostess: 1\r\n", b"A:\r\n"]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """(as received, as sent on, payload)"""
    received, sent, payload = b"", b"", b""
    for data in [*draw(st.lists(st.binary(min_size=1, max_size=40), max_size=4)), b""]:
        size = draw(st.sampled_from([b"%x", b"%X", b"000%x"])) % len(data)
        extension = draw(st.sampled_from([b"", b"", b";a", b' ;a="b;c"', b"\t; x=\xe9", b";"]))
        end = b"\r\n" if data else b""
        received += size + extension + b"\r\n" + data + end
        sent += size + b"\r\n" + data + end
        payload += data
    for line in draw(st.lists(st.sampled_from(_FORBIDDEN + _HARMLESS), max_size=4)):
        received += line
        sent += line if line in _HARMLESS else b""
    return received + b"\r\n", sent + b"\r\n", payload


cut_lists = st.lists(st.integers(0, 300), max_size=6)


# --- however it arrives ---------------------------------------------------------------------------------


@given(bodies(), cut_lists, st.binary(max_size=5))
def test_any_split_gives_the_same(body: tuple[bytes, bytes, bytes], cuts: list[int], rest: bytes) -> None:
    received, sent, payload = body
    assert run(split(received + rest, cuts)) == (sent, len(payload), rest)
    assert run(split(received + rest, cuts), payload_only=True) == (payload, len(payload), rest)


@given(bodies())
def test_byte_by_byte_gives_the_same(body: tuple[bytes, bytes, bytes]) -> None:
    received, sent, payload = body
    pieces = [received[i : i + 1] for i in range(len(received))]
    assert run(pieces) == (sent, len(payload), b"")
    assert run(pieces, payload_only=True) == (payload, len(payload), b"")


@given(bodies())
def test_what_is_sent_on_is_a_chunked_body_that_needs_no_more_work(body: tuple[bytes, bytes, bytes]) -> None:
    sent, length, _ = run([body[0]])
    assert run([sent]) == (sent, length, b"")


@given(bodies(), st.integers(0, 300), st.binary(max_size=3), st.integers(0, 3), cut_lists)
def test_damaged_bodies_have_one_reading_too(
    body: tuple[bytes, bytes, bytes], where: int, what: bytes, length: int, cuts: list[int]
) -> None:
    data = body[0]
    where %= len(data)
    data = data[:where] + what + data[where + length :]
    assert outcome(split(data, cuts)) == outcome([data])
    assert outcome(split(data, cuts), payload_only=True) == outcome([data], payload_only=True)


def test_one_span_when_nothing_is_taken_out() -> None:
    data = b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Digest: a\r\n\r\n"
    body = ChunkedBody(side="client")
    assert body.feed(data, 0, len(data)) == len(data)
    assert body.spans == [(0, len(data))]


def test_each_feed_has_its_own_spans_and_data_is_passed_on_at_once() -> None:
    body = ChunkedBody(side="client")
    assert body.feed(b"5\r\nhe", 0, 5) == 5
    assert body.spans == [(0, 5)]
    assert body.feed(b"l", 0, 1) == 1
    assert (body.spans, body.payload, body.done) == ([(0, 1)], 3, False)
    assert body.feed(b"lo\r", 0, 3) == 2
    assert body.spans == [(0, 2)]
    assert body.feed(b"", 0, 0) == 0
    assert body.spans == []


def test_a_done_body_takes_nothing_more() -> None:
    body = ChunkedBody(side="client")
    assert body.feed(b"0\r\n\r\nGET /", 0, 10) == 5
    assert body.done
    assert body.feed(b"GET /", 0, 5) == 0
    assert body.spans == []


# --- what is taken out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"Content-Length", b"Transfer-Encoding", b"Host", b"Connection", b"TE", b"Trailer", b"Upgrade",
        b"Authorization", b"Cookie", b"Set-Cookie", b"Content-Type", b"Content-Encoding", b"Content-Range",
        b"X-Forwarded-For", b"Forwarded", b"X-Request-ID", b"content_length", b"X_Forwarded-Proto",
    ],
)  # fmt: skip
def test_trailers_that_frame_route_or_authenticate_are_taken_out(name: bytes) -> None:
    data = b"0\r\nA: 1\r\n" + name + b": 5\r\nB: 2\r\n\r\n"
    assert run([data]) == (b"0\r\nA: 1\r\nB: 2\r\n\r\n", 0, b"")


def test_payload_only_drops_trailers_too() -> None:
    assert run([b"3;x\r\nabc\r\n0\r\nA: 1\r\n\r\nrest"], payload_only=True) == (b"abc", 3, b"rest")


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "upstream"])
@pytest.mark.parametrize(
    "data",
    [
        b"\r\n", b"\n", b"x\r\n", b"0x5\r\nhello\r\n", b"+5\r\nhello\r\n", b"-1\r\n", b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n", b"5\nhello\r\n", b"5;a\nhello\r\n", b"5;a\rb\r\nhello\r\n", b"5;\x00\r\n",
        b"5,5\r\n", b"5\r\nhelloo\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\r0", b"5_0\r\n", b"0\r\nA : 1\r\n\r\n", b"0\r\n A: 1\r\n\r\n", b"0\r\nA: 1\n\r\n",
        b"0\r\nA\r\n\r\n", b"0\r\nA: 1\r\n b\r\n\r\n", b"0\r\nA: \x00\r\n\r\n", b"0\r\n\n",
        b"0\r\n:a\r\n\r\n", b"0000000000000001\r\nx\r\n", b"ffffffffffffffff\r\n", b"\xb2\r\nxx\r\n",
        b"5\r\r\nhello\r\n",
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused(data: bytes, side: str) -> None:
    assert refused(data, side)
    assert outcome([data[i : i + 1] for i in range(len(data))]) is errors.BAD_CHUNK


def test_a_chunk_that_is_too_long_is_refused_at_its_first_byte_too_many() -> None:
    assert refused(b"5\r\nhello!") == "no CRLF after a chunk"


def test_the_largest_size_is_fifteen_digits() -> None:
    body = ChunkedBody(side="client")
    data = b"f" * 15 + b"\r\n" + b"x"
    assert body.feed(data, 0, len(data)) == len(data)
    assert (body.payload, body.done) == (1, False)


@pytest.mark.parametrize("line", [b"5;", b"5 ;", b"5;" + b"a" * 80, b"0\r\nA:"])
def test_lines_are_bounded_alike_however_they_arrive(line: bytes) -> None:
    start = line.rfind(b"\n") + 1
    tail = {True: b"\r\n", False: b"hello\r\n0\r\n\r\n"}[bool(start)]
    fits = line + b"x" * (MAX_LINE - 2 - len(line) + start) + b"\r\n" + tail
    over = line + b"x" * (MAX_LINE - 1 - len(line) + start) + b"\r\n" + tail
    for cuts in ([], [MAX_LINE // 2], [MAX_LINE - 2], [MAX_LINE - 1], [MAX_LINE], [start + MAX_LINE - 1]):
        assert outcome(split(fits, cuts)) == outcome([fits]) != errors.BAD_CHUNK
        assert outcome(split(fits, cuts), payload_only=True) != errors.BAD_CHUNK
        assert outcome(split(over, cuts)) is errors.BAD_CHUNK
        assert outcome(split(over, cuts), payload_only=True) is errors.BAD_CHUNK


def test_a_line_without_end_is_refused_at_the_bound() -> None:
    assert refused(b"5;" + b"a" * MAX_LINE) == "chunk line is too long"


@pytest.mark.parametrize("line", [b"A: 1\r\n", b"Host: a\r\n"])
def test_the_trailer_section_is_bounded(line: bytes) -> None:
    fits = b"0\r\n" + line * (MAX_TRAILERS // len(line)) + b"\r\n"
    assert run([fits])[1] == 0
    assert refused(b"0\r\n" + line * (MAX_TRAILERS // len(line) + 1)) == "trailers are too large"
    assert outcome(split(fits[:-2] + line + b"\r\n", list(range(0, 300, 7)))) is errors.BAD_CHUNK


def test_the_cost_of_tiny_chunks_grows_with_their_number_alone() -> None:
    data = b"1;x\r\na\r\n" * 10_000 + b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n"
    begin = time.process_time()
    assert run([data])[1] == 20_000
    assert time.process_time() - begin < 2  # about 0.1 s; anything quadratic takes minutes


def test_the_extensions_of_a_body_are_bounded() -> None:
    line = b"1;" + b"x" * 1000 + b"\r\na\r\n"
    count = MAX_EXTENSIONS // (len(line) - 3)
    assert run([line * count + b"0\r\n\r\n"])[1] == count
    assert outcome([line * (count + 1) + b"0\r\n\r\n"]) is errors.BAD_CHUNK
