"""The access log's lines: what they hold, and that nothing a client sends can break or forge one."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.core.logline import MAX_LINE, Exchange, TunnelEnd, agent_and_referer, line_format

JSON = line_format("json")
COMBINED = line_format("combined")
COMBINED_LINE = re.compile(
    r"\S+ - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\]"
    r' "[^"]*" \d{3} \d+ "[^"]*" "[^"]*".*\n'
)

EXCHANGE = Exchange(
    1763846644.123456,
    "192.0.2.7",
    b"GET",
    b"/chat?room=1",
    b"www.example.com",
    "HTTP/1.1",
    200,
    5120,
    321,
    0.0123456789,
    "chat",
    "pool-a",
    "10.0.0.11:9000",
    0.0100001,
    2,
    "",
    b"8c5ff3a0",
    b"curl/8.0",
    b"https://example.com/",
)
END = TunnelEnd(
    1763846644.999999,
    "2001:db8::7",
    b"/ws",
    b"www.example.com",
    "HTTP/1.1",
    100,
    200,
    3600.25,
    "chat",
    "pool-a",
    "10.0.0.11:9000",
    b"8c5ff3a0",
    1000,
    "client",
    3,
    5,
)


def changed(record: Any, **values: object) -> Any:
    return msgspec.structs.replace(record, **values)


def test_json_exchange() -> None:
    line = JSON.exchange(EXCHANGE)
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "time": "2025-11-22T21:24:04.123Z",
        "event": "request",
        "client": "192.0.2.7",
        "method": "GET",
        "target": "/chat?room=1",
        "host": "www.example.com",
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes_sent": 5120,
        "bytes_received": 321,
        "duration": 0.012345,
        "route": "chat",
        "pool": "pool-a",
        "server": "10.0.0.11:9000",
        "upstream_time": 0.01,
        "attempts": 2,
        "reason": "",
        "request_id": "8c5ff3a0",
        "user_agent": "curl/8.0",
        "referer": "https://example.com/",
    }


def test_json_without_upstream_and_with_a_reason() -> None:
    record = changed(EXCHANGE, upstream_time=None, reason="no_route", status=404)
    line = json.loads(JSON.exchange(record))
    assert (line["upstream_time"], line["reason"], line["status"]) == (None, "no_route", 404)


def test_json_tunnel() -> None:
    opened = json.loads(JSON.exchange(changed(EXCHANGE, event="websocket_open", status=101)))
    closed = json.loads(JSON.tunnel_end(END))
    assert opened["event"] == "websocket_open"
    assert opened["request_id"] == closed["request_id"]
    assert closed == {
        "time": "2025-11-22T21:24:04.999Z",
        "event": "websocket_close",
        "client": "2001:db8::7",
        "target": "/ws",
        "host": "www.example.com",
        "protocol": "HTTP/1.1",
        "bytes_sent": 100,
        "bytes_received": 200,
        "duration": 3600.25,
        "route": "chat",
        "pool": "pool-a",
        "server": "10.0.0.11:9000",
        "request_id": "8c5ff3a0",
        "close_code": 1000,
        "closed_by": "client",
        "messages_sent": 3,
        "messages_received": 5,
    }
    assert json.loads(JSON.tunnel_end(changed(END, close_code=None, closed_by="none")))["close_code"] is None


def test_combined_exchange() -> None:
    assert COMBINED.exchange(EXCHANGE) == (
        b'192.0.2.7 - - [22/Nov/2025:21:24:04 +0000] "GET /chat?room=1 HTTP/1.1" 200 5120'
        b' "https://example.com/" "curl/8.0"\n'
    )


def test_combined_shows_a_dash_for_what_is_absent() -> None:
    line = COMBINED.exchange(changed(EXCHANGE, referer=b"", user_agent=b"", client=""))
    assert line.startswith(b"- - - [")
    assert line.endswith(b' "-" "-"\n')


def test_combined_tunnel() -> None:
    opened = COMBINED.exchange(changed(EXCHANGE, event="websocket_open", status=101))
    assert opened.endswith(b' "curl/8.0" websocket_open\n')
    assert COMBINED.tunnel_end(END) == (
        b'2001:db8::7 - - [22/Nov/2025:21:24:04 +0000] "GET /ws HTTP/1.1" 101 100 "-" "-"'
        b" websocket_close duration=3600.250 received=200 code=1000 by=client messages=3/5\n"
    )


def test_combined_escapes_as_nginx_does() -> None:
    line = COMBINED.exchange(changed(EXCHANGE, user_agent=b'a "b" \\ \x1b[0m \xc3\xa9\x7f'))
    assert line.endswith(b'"a \\x22b\\x22 \\x5C \\x1B[0m \\xC3\\xA9\\x7F"\n')


def test_json_keeps_text_and_escapes_the_rest() -> None:
    line = JSON.exchange(changed(EXCHANGE, user_agent="Grüße \u65e5\u672c".encode()))
    assert "Grüße \u65e5\u672c" in line.decode()
    for odd in ("\x7f", "\x9b31m", "\u2028", "\u202e", "\U000e0001", "\x1b[2J\r\n"):
        line = JSON.exchange(changed(EXCHANGE, user_agent=odd.encode()))
        assert line.isascii()
        assert json.loads(line)["user_agent"] == odd
    line = JSON.exchange(changed(EXCHANGE, user_agent=b"\xff\xfe"))
    assert json.loads(line)["user_agent"] == "\\xff\\xfe"


def test_time_is_kept_per_second_but_never_stale() -> None:
    for second, expected in ((0.0, "00:00:00.000"), (0.9999, "00:00:00.999"), (1.0, "00:00:01.000")):
        record = changed(EXCHANGE, now=1763769600.0 + second)
        assert json.loads(JSON.exchange(record))["time"] == f"2025-11-22T{expected}Z"
    assert b"22/Nov/2025:00:00:01 " in COMBINED.exchange(changed(EXCHANGE, now=1763769601.5))
    assert b"22/Nov/2025:00:00:02 " in COMBINED.exchange(changed(EXCHANGE, now=1763769602.5))


WIRE = st.one_of(
    st.binary(max_size=300),
    st.binary(min_size=3000, max_size=9000),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
)


@given(WIRE, WIRE, WIRE, WIRE)
def test_a_line_is_one_printable_bounded_line(
    target: bytes, host: bytes, agent: bytes, referer: bytes
) -> None:
    record = changed(EXCHANGE, target=target, host=host, user_agent=agent, referer=referer)
    end = changed(END, target=target, host=host, request_id=referer)
    for line in (
        JSON.exchange(record),
        JSON.tunnel_end(end),
        COMBINED.exchange(record),
        COMBINED.tunnel_end(end),
    ):
        assert len(line) <= MAX_LINE
        assert line.endswith(b"\n")
        assert line[:-1].decode().isprintable()
    assert json.loads(JSON.exchange(record))["status"] == 200
    assert json.loads(JSON.tunnel_end(end))["close_code"] == 1000
    assert COMBINED_LINE.fullmatch(COMBINED.exchange(record).decode())


@pytest.mark.parametrize("byte", [b"a", b'"', b"\x1b", b"\xff", "\u2028".encode()])
def test_long_values_are_cut_and_say_so(byte: bytes) -> None:
    record = changed(EXCHANGE, target=byte * 32_768, user_agent=byte * 32_768, referer=byte * 32_768)
    line = JSON.exchange(record)
    assert len(line) <= MAX_LINE
    assert json.loads(line)["target"].endswith("...")
    assert json.loads(line)["request_id"] == "8c5ff3a0"
    combined = COMBINED.exchange(record)
    assert len(combined) <= MAX_LINE
    assert combined.endswith(b'..."\n')


def test_short_values_are_kept_when_another_is_cut() -> None:
    line = json.loads(JSON.exchange(changed(EXCHANGE, target=b"/" * 5000)))
    assert len(line["target"]) > 1000
    assert line["user_agent"] == "curl/8.0"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"\r\nHost: a\r\nUser-Agent:  curl/8 \r\nReferer:https://a/", (b"curl/8", b"https://a/")),
        (b"\r\nreferer: R\r\nuser-agent: U", (b"U", b"R")),
        (b"\r\nX-User-Agent: no\r\nHost: referer: no", (b"", b"")),
        (b"\r\nUser-Agent:", (b"", b"")),
        (b"", (b"", b"")),
    ],
)
def test_agent_and_referer(fields: bytes, expected: tuple[bytes, bytes]) -> None:
    assert agent_and_referer(fields) == expected


def test_unknown_format() -> None:
    with pytest.raises(KeyError):
        line_format("xml")
