"""Heads and cells in C are what their twins in Python make of them. (For its sockets see test_sockets.py.)"""

from __future__ import annotations

import contextlib
import gc
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.lost import lost_blocks
from workers.contract import native as native_module
from workers.contract.native import add, native, observe, quick
from workers.core import heads

MANY = settings(max_examples=400)

compiled_only = pytest.mark.skipif(native is None, reason="nothing is compiled here")


def outcome(call: Callable[..., object], *arguments: object) -> object:
    """What `call` returns, with the types of all of it, or which error it raises."""
    try:
        return repr(call(*arguments))
    except Exception as error:
        return type(error)


# --- heads -----------------------------------------------------------------------------------------------

KNOWN = (
    b"host http2-settings connection content-length te transfer-encoding upgrade expect keep-alive"
    b" proxy-connection x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port x-request-id"
    b" forwarded"
).split()
NEARLY_KNOWN = b"h hos hostx content-lengt t tf upgrades x x-forwarded- x-forwarded x-a cookie ~te".split()
# RFC 9110 section 5.5
TEXT = "\t" + "".join(map(chr, (*range(0x20, 0x7F), *range(0x80, 0x100))))
ODD = b"\r\n\0\x7f\t :-_#\x1f\x80\xff"


def spell(name: bytes, upper: int, under: int) -> bytes:
    """`name` with some letters in upper case and some hyphens as underscores: those of the bits."""
    spelled = bytearray(name)
    for at, byte in enumerate(name):
        if upper >> at & 1:
            spelled[at] = ord(chr(byte).upper())
        if byte == ord("-") and under >> at & 1:
            spelled[at] = ord("_")
    return bytes(spelled)


def joined(*parts: bytes | st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*(st.just(part) if isinstance(part, bytes) else part for part in parts)).map(b"".join)


NAMES = st.one_of(
    st.builds(
        spell,
        st.sampled_from(KNOWN + NEARLY_KNOWN),
        st.sampled_from((0, 1, -1)) | st.integers(0, 2**18),
        st.sampled_from((0, 0, -1)) | st.integers(0, 2**18),
    ),
    st.text("aZ09!#$%&'*+-.^_`|~", min_size=1, max_size=20).map(str.encode),
)
BLANKS = st.sampled_from((b"", b" ", b"\t", b" \t \t"))
VALUES = st.text(TEXT, max_size=40).map(lambda text: text.encode("latin-1"))
LINES = st.lists(joined(b"\r\n", NAMES, b":", BLANKS, VALUES, BLANKS), max_size=6).map(b"".join)
REQUESTS = joined(
    st.sampled_from((b"GET", b"M-SEARCH", b"!")),
    b" ",
    st.text("/ab?*:%[]|\"'~", min_size=1, max_size=20).map(str.encode),
    st.sampled_from((b" HTTP/1.0", b" HTTP/1.1")),
    LINES,
    b"\r\n\r\n",
)
RESPONSES = joined(
    st.sampled_from((b"HTTP/1.0 ", b"HTTP/1.1 ")),
    st.integers(100, 599).map(lambda status: b"%d" % status),
    st.just(b"") | joined(b" ", VALUES),
    LINES,
    b"\r\n\r\n",
)
# Where, what is done there, and with which byte.
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 300),
        st.sampled_from(("change", "insert", "remove", "cut")),
        st.sampled_from(ODD) | st.integers(0, 255),
    ),
    max_size=3,
)


def changed(raw: bytes, changes: list[tuple[int, str, int]]) -> bytes:
    data = bytearray(raw)
    for place, change, byte in changes:
        at = place % (len(data) + 1)
        if change == "insert":
            data.insert(at, byte)
        elif change == "cut":
            del data[at:]
        elif at < len(data):
            data[at : at + 1] = b"" if change == "remove" else bytes((byte,))
    return bytes(data)


def compare(name: str, *arguments: object) -> object:
    """The outcome of the C function `name`, which is that of its twin."""
    found = outcome(getattr(native, name), *arguments)
    assert found == outcome(getattr(heads, f"_{name}"), *arguments)
    return found


def compare_parts(name: str, raw: bytes, start: int, end: int) -> None:
    assert compare(name, raw, start, end) == compare(name, bytearray(raw), start, end)


@compiled_only
@MANY
@given(REQUESTS, CHANGES, st.binary(max_size=9))
@example(b"GET / HTTP/1.1\r\nX_Forwarded-for:a\r\nhost: b \t\r\n\r\n", [], b"")
def test_requests(raw: bytes, changes: list[tuple[int, str, int]], before: bytes) -> None:
    whole = before + raw
    assert heads._request_parts(whole, len(before), len(whole)) is not None
    compare_parts("request_parts", whole, len(before), len(whole))
    bad = before + changed(raw, changes)
    compare_parts("request_parts", bad, len(before), len(bad))


@compiled_only
@MANY
@given(RESPONSES, CHANGES, st.binary(max_size=9))
@example(b"HTTP/1.1 200\r\nTE:\r\n\r\n", [], b"")
def test_responses(raw: bytes, changes: list[tuple[int, str, int]], before: bytes) -> None:
    whole = before + raw
    assert heads._response_parts(whole, len(before), len(whole)) is not None
    compare_parts("response_parts", whole, len(before), len(whole))
    bad = before + changed(raw, changes)
    compare_parts("response_parts", bad, len(before), len(bad))


@compiled_only
@MANY
@given(LINES, CHANGES, NAMES.map(bytes.lower) | st.sampled_from(KNOWN) | st.sampled_from((b"", b":", b"X")))
@example(b"\r\n\r\n:a\r\nb: \t c\t \r\nb", [], b"")
@example(b"\r\n\r\n:a\r\nb: \t c\t \r\nb", [], b"b")
def test_values(fields: bytes, changes: list[tuple[int, str, int]], name: bytes) -> None:
    compare("field_values", fields, name)
    compare("field_values", changed(fields, changes), name)


STARTS = st.integers(0, 90) | st.sampled_from((2**63 - 1, 2**63, 2**70))
ENDS = st.integers(-3, 90) | st.sampled_from((-(2**63), 2**63 - 1, 2**63, -(2**70)))


@compiled_only
@MANY
@given(st.sampled_from((b"GET / HTTP/1.1", b"HTTP/1.1 200 OK")), STARTS, ENDS, st.booleans())
def test_ranges(line: bytes, start: int, end: int, changeable: bool) -> None:
    raw = line + b"\r\nHost: a\r\nTE: b\r\n\r\n" + line + b"\r\n\r\n"
    for name in ("request_parts", "response_parts"):
        compare(name, bytearray(raw) if changeable else raw, start, end)


@compiled_only
@pytest.mark.parametrize("name", ["request_parts", "response_parts"])
def test_every_byte_at_every_offset(name: str) -> None:
    """The C looks at eight bytes at a time, from wherever a value begins."""
    line = b"GET / HTTP/1.1" if name == "request_parts" else b"HTTP/1.1 200 abcdefghijk"
    for length in range(18):
        for at in range(length + 1):
            for byte in range(256) if length in (8, 17) else (*ODD, 0x20, 0x7E, 0x81):
                value = b"a" * at + bytes((byte,)) + b"b" * (length - at)
                for raw in (line + b"\r\nte:" + value + b"\r\n\r\n", line + value + b"\r\n\r\n"):
                    assert outcome(getattr(native, name), raw, 0, len(raw)) == outcome(
                        getattr(heads, f"_{name}"), raw, 0, len(raw)
                    ), raw


@compiled_only
@pytest.mark.parametrize("name", ["request_parts", "response_parts"])
def test_every_cut(name: str) -> None:
    line = b"GET / HTTP/1.1" if name == "request_parts" else b"HTTP/1.1 200 OK"
    raw = line + b"\r\nHost: a\r\nX_Forwarded_For: b\r\nContent-Length:0\r\n\r\n"
    for end in range(len(raw)):
        compare_parts(name, raw, 0, end)
        compare_parts(name, raw[:end], 0, end)
        for byte in ODD:
            compare_parts(name, raw[:end] + bytes((byte,)) + raw[end:], 0, len(raw) + 1)


@compiled_only
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("request_parts", ()),
        ("request_parts", (b"", 0)),
        ("request_parts", (b"", 0, 0, 0)),
        ("request_parts", ("GET / HTTP/1.1\r\n\r\n", 0, 18)),
        ("request_parts", (None, 0, 0)),
        ("response_parts", (b"", None, 0)),
        ("response_parts", (b"", 0, 1.0)),
    ],
)
def test_wrong_arguments(name: str, arguments: tuple[object, ...]) -> None:
    assert compare(name, *arguments) is TypeError


@compiled_only
@pytest.mark.parametrize("arguments", [(b"",), (b"", "a"), (None, b"a"), (b"", b"", b"")])
def test_wrong_arguments_of_values(arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        native.field_values(*arguments)


class Shrinking:
    """Empties a buffer when it is collected, which it is not before: it refers to itself."""

    def __init__(self, buffer: bytearray, told: list[str]) -> None:
        self.buffer = buffer
        self.told = told
        self.itself = self

    def __del__(self) -> None:
        self.told.append("collected")
        with contextlib.suppress(BufferError):
            self.buffer.clear()


@compiled_only
@pytest.mark.parametrize("name", ["request_parts", "response_parts"])
def test_a_buffer_is_held_while_it_is_read(name: str) -> None:
    line = b"GET / HTTP/1.1" if name == "request_parts" else b"HTTP/1.1 200 OK"
    raw = line + b"\r\nTE: a\r\nUpgrade: b" * 1000 + b"\r\n\r\n"
    expected = getattr(heads, f"_{name}")(raw, 0, len(raw))
    buffer = bytearray(raw)
    parts = getattr(native, name)
    thresholds = gc.get_threshold()
    gc.collect()
    told: list[str] = []
    Shrinking(buffer, told)
    gc.set_threshold(1)
    try:
        found = parts(buffer, 0, len(raw))
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()
    assert found == expected
    assert told == ["collected"]


GOOD = b"GET / HTTP/1.1\r\nHost: a\r\nX_Request_ID: b\r\nX-A: c\r\n\r\n"
ANSWER = b"HTTP/1.1 200 \r\nTE: a\r\nUpgrade: b\r\n\r\n"
CALLS: dict[str, Callable[[], Any]] = {
    "request": lambda: native.request_parts(bytearray(GOOD), 0, len(GOOD)),
    "bad request": lambda: native.request_parts(GOOD, 0, len(GOOD) - 1),
    "request of wrong type": lambda: native.request_parts(None, 0, 1),
    "request of wrong range": lambda: native.request_parts(bytearray(GOOD), 0, 2**70),
    "response": lambda: native.response_parts(ANSWER, 0, len(ANSWER)),
    "bad response": lambda: native.response_parts(bytearray(ANSWER), 0, len(ANSWER) - 1),
    "values": lambda: native.field_values(GOOD, b"x-a"),
    "no values": lambda: native.field_values(GOOD, 1),
    "cells": lambda: list(native.Cells(memoryview(bytearray(64)).cast("q"))),
    "wrong cells": lambda: native.Cells(memoryview(bytearray(64))),
    "cell": lambda: native.Cells(memoryview(bytearray(64)).cast("q"))[8],
}


@compiled_only
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_no_memory_is_lost(call: Callable[[], object]) -> None:
    assert lost_blocks(lambda: outcome(call), 1000) < 100


# --- cells -----------------------------------------------------------------------------------------------

SIZE = 8


def plain_row() -> memoryview:
    return memoryview(bytearray(8 * SIZE)).cast("q")


@pytest.fixture
def rows() -> Iterator[tuple[memoryview, memoryview]]:
    """A row behind `quick`, and a memoryview of the same contents."""
    yield quick(plain_row()), plain_row()


KEYS: list[Any] = [
    *range(-SIZE - 2, SIZE + 2), True, 2**31, 2**63 - 1, 2**63, -(2**63), 2**70, -(2**70),
    slice(1, 3), slice(None), slice(None, None, 2), slice(-2, None), slice(5, 2), 1.0, "1", None, (0,),
]  # fmt: skip
NUMBERS: list[Any] = [
    0, 1, -1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**70, True, 1.0, "1", None,
]  # fmt: skip


def get(row: memoryview, key: Any) -> object:
    found: object = row[key]
    return found.tolist() if isinstance(found, memoryview) else found


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_cells_are_read_as_those_of_a_memoryview(rows: tuple[memoryview, memoryview], key: Any) -> None:
    ours, plain = rows
    for index in range(SIZE):
        ours[index] = plain[index] = index * 1_000_003 - 5
    assert outcome(get, ours, key) == outcome(get, plain, key)


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_cells_are_written_as_those_of_a_memoryview(rows: tuple[memoryview, memoryview], key: Any) -> None:
    values: list[Any] = [*NUMBERS, memoryview(bytearray(range(16))).cast("q")]
    for value in values:
        results = [outcome(row.__setitem__, key, value) for row in rows]
        assert results[0] == results[1], value
        assert list(rows[0]) == list(rows[1]), value


def test_cells_are_a_row(rows: tuple[memoryview, memoryview]) -> None:
    ours, _ = rows
    ours[3] += 7
    assert (len(ours), list(ours), 7 in ours, 8 in ours) == (SIZE, [0, 0, 0, 7, 0, 0, 0, 0], True, False)
    with pytest.raises(TypeError):
        del ours[0]  # type: ignore[attr-defined]


def test_cells_share_their_memory() -> None:
    memory = mmap.mmap(-1, 4096)
    row = memoryview(memory).cast("q")
    one, other = quick(row), quick(row[4:8])
    one[5] = -3
    other[2] = 2**63 - 1
    assert (other[1], one[6], row[5]) == (-3, 2**63 - 1, -3)
    with pytest.raises(BufferError):
        memory.close()
    del one, other, row
    memory.close()


@compiled_only
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: native.Cells(), TypeError),
        (lambda: native.Cells(bytearray(8)), TypeError),
        (lambda: native.Cells(memoryview(bytearray(8)), view=1), TypeError),
        (lambda: native.Cells(memoryview(bytearray(8))), TypeError),
        (lambda: native.Cells(memoryview(bytearray(8)).cast("Q")), TypeError),
        (lambda: native.Cells(memoryview(bytearray(8)).cast("d")), TypeError),
        (lambda: native.Cells(memoryview(bytearray(32)).cast("q", (2, 2))), TypeError),
        (lambda: native.Cells(memoryview(bytearray(32)).cast("q")[::2]), BufferError),
        (lambda: native.Cells(memoryview(bytes(8)).cast("q")), BufferError),
        (lambda: native.Cells(memoryview(bytearray(64))[1:9].cast("q")), ValueError),
    ],
)
def test_what_is_no_row_of_cells(make: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


@MANY
@given(
    st.integers(-(2**40), 2**40),
    st.lists(st.integers(-SIZE - 1, SIZE) | st.sampled_from((2**70, -(2**70))), max_size=4),
)
def test_an_amount_is_added(amount: int, indexes: list[int]) -> None:
    ours, plain = quick(plain_row()), plain_row()
    assert outcome(add, ours, amount, *indexes) == outcome(native_module._add, plain, amount, *indexes)
    assert list(ours) == list(plain)


@MANY
@given(
    st.integers(-SIZE - 1, SIZE + 1),
    st.integers(0, SIZE + 1) | st.just(2**63 - 1),
    st.lists(st.integers(-9, 9), max_size=6).map(lambda bounds: tuple(sorted(bounds))),
    st.integers(-10, 10),
)
def test_a_value_goes_into_its_bucket(
    at_sum: int, at_buckets: int, bounds: tuple[int, ...], value: int
) -> None:
    ours, plain = quick(plain_row()), plain_row()
    told = outcome(native_module._observe, plain, at_sum, at_buckets, bounds, value)
    assert outcome(observe, ours, at_sum, at_buckets, bounds, value) == told
    assert told is IndexError or list(ours) == list(plain)


@compiled_only
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("add", (0, 1, 0)),
        ("add", ()),
        ("add", (None, 1, 0)),
        ("add", (quick(plain_row()), 1, "0")),
        ("observe", (None, 0, 0, (), 0)),
        ("observe", (quick(plain_row()), 0, 0, [], 0)),
        ("observe", (quick(plain_row()), "0", 0, (), 0)),
        ("observe", (quick(plain_row()), 0, "0", (), 0)),
        ("observe", (quick(plain_row()), 0, 0, ("0",), 0)),
        ("observe", (quick(plain_row()), 0, 0, (), "0")),
    ],
)
def test_what_can_not_be_counted(name: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        getattr(native, name)(*arguments)
